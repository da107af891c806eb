//! Qwen 1.5 and 2 MoE: Qwen 2's attention; routed experts beside one that all tokens share, through
//! a gate of its own. Follows `qwen2_moe` of mlx-lm, and transformers where that has dense layers,
//! windows, weights that sum to one, or scales positions.

use super::{qwen2, qwen3_moe};
use crate::prelude::*;

pub const FAMILY: Family = Family { model_types: &["qwen2_moe"], build };

#[derive(Deserialize)]
struct Config {
    shared_expert_intermediate_size: Size,
    use_sliding_window: bool,
    max_window_layers: Count,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(config, json!({
        "rope_parameters": {"rope_theta": 1e6}, "decoder_sparse_step": 1, "norm_topk_prob": false,
        "use_sliding_window": false, "max_window_layers": 28, "qkv_bias": true,
    }));
    let e: Config = config::read(config)?;
    let experts: qwen3_moe::Config = config::read(config)?;
    let mut c = Text::read_renamed(config, &[("qkv_bias", "attention_bias")])?;
    if !e.use_sliding_window {
        c.layer_types = None;
    } else if c.layer_types.is_none() {
        let slides = |i| i % 2 == 0 && i < *e.max_window_layers;
        let kind = |i| if slides(i) { "sliding_attention" } else { "full_attention" };
        c.layer_types = Some((0..c.num_hidden_layers).map(|i| kind(i).to_string()).collect());
    }
    let rope = Rope::of(&c)?;
    Ok(Box::new(Decoder::stack(w, &c, |i, w| {
        let attention = qwen2::attention(&w.at("self_attn"), &c, rope.clone())?;
        let mlp = w.at("mlp");
        let ffn = if experts.is_sparse(i) {
            let shared = shared_expert(&mlp, &c, *e.shared_expert_intermediate_size)?;
            sum(qwen3_moe::experts(&mlp, &c, &experts, first_top_k)?, shared)
        } else {
            dense(&mlp, &c)?
        };
        pre_norm(w, &c, attention.window(c.window(i)?), ffn)
    })?))
}

/// `sigmoid(gate(x)) · mlp(x)`.
fn shared_expert(w: &Scope, c: &Text, inner: i32) -> Result<impl Layer<State = ()> + 'static> {
    let gate = w.linear("shared_expert_gate", c.hidden_size, 1)?;
    let mlp = Mlp::sized(&w.at("shared_expert"), c, inner, swiglu)?;
    Ok(Map(move |x: &Array| Ok(ops::sigmoid(gate.forward(x)?)?.multiply(mlp.apply(x)?)?)))
}
