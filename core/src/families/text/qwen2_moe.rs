//! Qwen 1.5 and 2 MoE: Qwen 2's attention; routed experts beside a shared expert with a gate of its
//! own. Follows `qwen2_moe` of mlx-lm, and transformers for dense layers, sliding windows,
//! normalised top-k weights and `rope_scaling`.

use crate::families::prelude::*;
use crate::families::text::{qwen2, qwen3_moe};

pub const FAMILY: Family =
    Family { model_types: &["qwen2_moe"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "rope_theta": 1e6, "decoder_sparse_step": 1, "norm_topk_prob": false,
            "qkv_bias": true,
        }),
    );
    let c = Text::read_renamed(config, &[("qkv_bias", "attention_bias")])?;
    let c = qwen2::switch_windows(c, config, |i, first| i % 2 == 0 && i < first)?;
    let experts = qwen3_moe::Config::read(config)?;
    let Size(inner) = config::field(config, "shared_expert_intermediate_size")?;
    let rope = Rope::of(&c)?;
    Ok(Box::new(Decoder::stack(w, &c, |i, w| {
        let attention = qwen2::attention(&w.at("self_attn"), &c, rope.clone())?;
        let mlp = w.at("mlp");
        let ffn = if experts.is_sparse(i) {
            let shared = shared_expert(&mlp, &c, inner)?;
            sum(qwen3_moe::experts(&mlp, &c, &experts, first_top_k)?, shared)
        } else {
            dense(&mlp, &c)?
        };
        pre_norm(w, &c, attention.window(c.window(i)?), ffn)
    })?))
}

/// `sigmoid(gate(x)) · mlp(x)`.
pub fn shared_expert(w: &Scope, c: &Text, inner: i32) -> Result<impl Layer<State = ()> + 'static> {
    let gate = w.linear("shared_expert_gate", c.hidden_size, 1)?;
    let mlp = Mlp::sized(&w.at("shared_expert"), c, inner)?;
    Ok(Map(move |x: &Array| Ok(ops::sigmoid(gate.forward(x)?)?.multiply(mlp.apply(x)?)?)))
}
