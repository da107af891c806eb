//! Phi 1 to 2 under Microsoft's first names, and Phixtral, whose networks are experts: Phi with
//! fused queries, keys and values, and a head with a norm of its own. Follows `phixtral` of mlx-lm,
//! and Microsoft's own code where there are no experts.

use crate::prelude::*;

pub const FAMILY: Family = Family { model_types: &["phixtral", "phi-msft"], build };

#[derive(Deserialize)]
struct Config {
    rotary_dim: Size,
    num_local_experts: Size,
    num_experts_per_tok: Size,
}

/// Names of checkpoints, and those that mlx-lm reads instead.
const NAMES: &[(&str, &str)] = &[
    ("n_embd", "hidden_size"),
    ("model_dim", "hidden_size"),
    ("n_layer", "num_hidden_layers"),
    ("num_layers", "num_hidden_layers"),
    ("n_head", "num_attention_heads"),
    ("num_heads", "num_attention_heads"),
    ("num_vocab", "vocab_size"),
    ("n_head_kv", "num_key_value_heads"),
    ("n_inner", "intermediate_size"),
    ("n_positions", "max_position_embeddings"),
    ("layer_norm_epsilon", "rms_norm_eps"),
];

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let (c, e) = read(config)?;
    let rope = Rope::rotary_dim(&c, *e.rotary_dim)?;
    let ([queries, keys], width) = (c.qk_widths(), c.hidden_size);
    let norm = |w: &Scope| w.layer_norm_with_bias("ln", width, c.rms_norm_eps);
    let body = w.at("transformer");
    let block = |i| {
        let w = body.at("h").at(i);
        let a = w.at("mixer");
        a.at("Wqkv").require("bias")?;
        let [q, k, v] = a.fused("Wqkv", width, [queries, keys, keys])?;
        let output = a.linear_with_bias("out_proj", queries, width)?;
        let attention =
            Attention::new([q, k, v, output], &c, rope.clone()).precision(|_| Dtype::Float32);
        let ffn: Ffn = if w.has_below("mlp") {
            Box::new(PlainMlp::read(&w.at("mlp"), ["fc1", "fc2"], &c, gelu_tanh)?)
        } else {
            Box::new(PlainExperts::read(&w.at("moe"), &c, &e)?)
        };
        Ok(Block::new(Residual::pre(norm(&w)?, Parallel(attention, ffn))))
    };
    let head = w.at("lm_head");
    Ok(Box::new(Decoder {
        embedding: body.at("embd").embedding("wte", c.vocab_size, width)?,
        embedding_scale: None,
        blocks: (0..c.num_hidden_layers).map(block).collect::<Result<_>>()?,
        norm: norm(&head)?,
        head: Head::new(Some(head.linear_with_bias("linear", width, c.vocab_size)?)),
    }))
}

fn read(config: &Json) -> Result<(Text, Config)> {
    let first = |names: [&str; 2], default: i64| {
        let value = names.iter().find_map(|name| config.get(name).and_then(Json::as_i64));
        value.unwrap_or(default)
    };
    let width = first(["n_embd", "model_dim"], 2560);
    let mut complete = config::with_defaults(config, json!({
        "n_embd": width, "n_layer": first(["n_layer", "num_layers"], 32),
        "n_head": first(["n_head", "num_heads"], 32), "vocab_size": first(["num_vocab", ""], 51200),
        "layer_norm_epsilon": 1e-5, "mlp_bias": true, "rotary_dim": 32, "num_local_experts": 4,
        "num_experts_per_tok": 2,
    }));
    if complete.get("n_inner").is_none_or(Json::is_null) {
        complete["n_inner"] = json!(width.saturating_mul(4));
    }
    Ok((Text::read_renamed(&complete, NAMES)?, config::read(&complete)?))
}

/// Experts without gates.
struct PlainExperts {
    router: LinearRouter,
    up: Experts,
    down: Experts,
}

impl PlainExperts {
    fn read(w: &Scope, c: &Text, e: &Config) -> Result<Self> {
        let (count, width, inner) = (*e.num_local_experts, c.hidden_size, c.intermediate_size);
        let logits = w.linear("gate", width, count)?;
        let choice = (count, *e.num_experts_per_tok);
        let first = if w.has_below("switch_mlp") { "switch_mlp" } else { "mlp.0" };
        let read = |name, sizes| {
            w.at(first).at(name).require("bias")?;
            w.experts_named(["switch_mlp", "mlp"], name, sizes)
        };
        Ok(PlainExperts {
            router: LinearRouter::new(logits, top_k_then_softmax, choice)?.choosing(first_top_k),
            up: read("fc1", [count, width, inner])?,
            down: read("fc2", [count, inner, width])?,
        })
    }
}

impl Layer for PlainExperts {
    type State = ();

    fn state(&self, _: &CachePlan) {}

    fn forward(&self, x: &Array, (): &mut (), _: &Step) -> Result<Array> {
        let (ids, weights) = self.router.route(x)?;
        let y = dispatch(x, &ids, |x, ids, sorted| {
            self.down.forward(&gelu_tanh(&self.up.forward(x, ids, sorted)?)?, ids, sorted)
        })?;
        mix(&y, &weights)
    }
}
