//! GPT-NeoX and Pythia: attention and a network without a gate side by side, each after its own layer
//! norm; queries, keys and values in one matrix, head by head. Follows `gpt_neox` of mlx-lm.

use crate::prelude::*;

pub const FAMILY: Family = Family { model_types: &["gpt_neox"], build };

#[derive(Deserialize)]
struct Config {
    use_parallel_residual: Option<bool>,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let e: Config = config::read(config)?;
    let width = config.get("hidden_size").and_then(Json::as_i64).unwrap_or(0);
    let config = &config::with_defaults(config, json!({
        "layer_norm_eps": 1e-5, "tie_word_embeddings": false, "attention_bias": true,
        "mlp_bias": true, "intermediate_size": width.saturating_mul(4),
    }));
    let names = [
        ("layer_norm_eps", "rms_norm_eps"),
        ("rotary_emb_base", "rope_theta"),
        ("rotary_pct", "partial_rotary_factor"),
    ];
    let mut c = Text::read_renamed(config, &names)?;
    c.num_key_value_heads = None;
    let rope = Rope::share(&c, 0.25)?;
    let parallel = e.use_parallel_residual.unwrap_or(true);
    // As published, then as mlx-lm writes it.
    let (body, layers, head) = if w.has_below("gpt_neox") {
        (w.at("gpt_neox"), "layers", w.clone())
    } else {
        (w.at("model"), "h", w.at("model"))
    };
    let norm = |w: &Scope, name| w.layer_norm_with_bias(name, c.hidden_size, c.rms_norm_eps);
    let head =
        Head::named(&head, "embed_out", c.tie_word_embeddings, c.hidden_size, c.vocab_size)?;
    let ends = (norm(&body, "final_layer_norm")?, head);
    Ok(Box::new(Decoder::assemble(&body, ["embed_in", layers], &c, ends, |_, w| {
        // Masks and rotary frequencies of old exporters; they follow from the config.
        w.at("attention").ignore_named(&["masked_bias", "inv_freq"]);
        w.at("attention").ignore("bias");
        let attention = attention(&w.at("attention"), &c, rope.clone())?;
        let names = ["dense_h_to_4h", "dense_4h_to_h"];
        let mlp = PlainMlp::read(&w.at("mlp"), names, &c, gelu_tanh)?;
        let (pre, post) = (norm(w, "input_layernorm")?, norm(w, "post_attention_layernorm")?);
        Ok(if parallel {
            Block::new(SideBySide { pre, attention, post, mlp })
        } else {
            Block::new((Residual::pre(pre, attention), Residual::pre(post, mlp)))
        })
    })?))
}

fn attention(w: &Scope, c: &Text, rope: Rope) -> Result<Attention> {
    if c.attention_bias {
        w.at("query_key_value").require("bias")?;
        w.at("dense").require("bias")?;
    }
    let (heads, head_dim) = (c.num_attention_heads, c.head_dim());
    let [q, k, v] = w.fused_by_group("query_key_value", c.hidden_size, heads, [head_dim; 3])?;
    let output = w.linear("dense", heads * head_dim, c.hidden_size)?;
    Ok(Attention::new([q, k, v, output], c, rope))
}

/// `x + (attention(pre(x)) + mlp(post(x)))`.
struct SideBySide {
    pre: Norm,
    attention: Attention,
    post: Norm,
    mlp: PlainMlp,
}

impl Layer for SideBySide {
    type State = <Attention as Layer>::State;

    fn state(&self, plan: &CachePlan) -> Self::State {
        self.attention.state(plan)
    }

    fn forward(&self, x: &Array, state: &mut Self::State, step: &Step) -> Result<Array> {
        let attention = self.attention.forward(&self.pre.forward(x)?, state, step)?;
        let mlp = self.mlp.forward(&self.post.forward(x)?, &mut (), step)?;
        Ok(attention.add(mlp)?.add(x)?)
    }
}
