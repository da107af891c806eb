//! Phi 1 to 2 under Microsoft's first names, and Phixtral, whose MLPs are experts: Phi with a fused
//! QKV projection and an output head with a norm of its own. Follows `phixtral` of mlx-lm, and
//! Microsoft's own code for models without experts.

use crate::families::prelude::*;
use crate::families::text::gpt2;

pub const FAMILY: Family =
    Family { model_types: &["phixtral", "phi-msft"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    rotary_dim: Size,
    num_local_experts: Size,
    num_experts_per_tok: Size,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    // mlx-lm reads other names than checkpoints have.
    let other = |name: &str, default: i32| config.get(name).cloned().unwrap_or(default.into());
    let config = &config::with_defaults(
        config,
        json!({
            "n_embd": other("model_dim", 2560), "n_layer": other("num_layers", 32),
            "n_head": other("num_heads", 32), "vocab_size": other("num_vocab", 51200),
            "attention_bias": true, "mlp_bias": true, "rotary_dim": 32, "num_local_experts": 4,
            "num_experts_per_tok": 2,
        }),
    );
    let (c, e): (Text, Config) = (gpt2::read(config)?, config::read(config)?);
    let rope = Rope::rotary_dim(&c, Some(e.rotary_dim))?;
    let norm = |w: &Scope| w.layer_norm_with_bias("ln", c.hidden_size, c.rms_norm_eps);
    let head = w.at("lm_head");
    let logits = head.linear_with_bias("linear", c.hidden_size, c.vocab_size)?;
    let (body, ends) =
        (w.at("transformer"), Ends { norm: norm(&head)?, head: Head::new(Some(logits)) });
    let names = Names { embedding: "embd.wte", layers: "h", ..Names::default() };
    Ok(Box::new(Decoder::assemble(&body, names, &c, ends, |_, w| {
        let (a, names) = (w.at("mixer"), ["Wqkv", "out_proj"]);
        grouped::require_biases(&a, names, &c)?;
        let attention = Attention::fused(&a, names, &c, rope.clone())?;
        let ffn: Ffn = if w.has_below("mlp") {
            Box::new(PlainMlp::read(
                &w.at("mlp"),
                PlainNames { up: "fc1", down: "fc2" },
                &c,
                gelu_tanh,
            )?)
        } else {
            experts(&w.at("moe"), &c, &e)?
        };
        let branches = Parallel(attention.precision(|_| Dtype::Float32), ffn);
        Ok(Block::new(Residual::pre(norm(w)?, branches)))
    })?))
}

/// Experts without gates.
fn experts(w: &Scope, c: &Text, e: &Config) -> Result<Ffn> {
    let (count, width, inner) = (*e.num_local_experts, c.hidden_size, c.intermediate_size);
    let logits = w.linear("gate", width, count)?;
    let router = LinearRouter::new(logits, top_k_then_softmax, count, *e.num_experts_per_tok)?
        .choosing(first_top_k);
    let first = if w.has_below("switch_mlp") { "switch_mlp" } else { "mlp.0" };
    let read = |name, input, output| {
        w.at(first).at(name).require("bias")?;
        let names = ExpertNames { stacked: "switch_mlp", split: "mlp" };
        w.experts_named(names, name, StackSizes { experts: count, input, output })
    };
    let (up, down) = (read("fc1", width, inner)?, read("fc2", inner, width)?);
    Ok(Box::new(Map(move |x: &Array| {
        let (ids, weights) = router.route(x)?;
        let y = dispatch(x, &ids, |x, ids, sorted| {
            down.forward(&gelu_tanh(&up.forward(x, ids, sorted)?)?, ids, sorted)
        })?;
        mix(&y, &weights)
    })))
}
