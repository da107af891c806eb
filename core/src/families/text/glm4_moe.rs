//! GLM 4.5 to 4.7: Llama with biases as in Qwen 2, of whose heads a part is rotated, and DeepSeek
//! V3's mixture of routed and shared experts. Follows `glm4_moe` of mlx-lm, and transformers where
//! that scales positions.

use super::{
    deepseek_v3::{Sparsity, ignore_predictions},
    qwen2,
};
use crate::prelude::*;

pub const FAMILY: Family = Family { model_types: &["glm4_moe"], build };

pub fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let c = Text::read(config)?;
    let use_qk_norm: bool = config::field(config, "use_qk_norm")?;
    let sparsity = Sparsity::read(config, c.num_hidden_layers)?;
    let routing: LossFreeRouting = config::read(config)?;
    let rope = Rope::share(&c, 0.5)?;
    ignore_predictions(w, &c);
    Ok(Box::new(Decoder::stack(w, &c, |i, w| {
        let a = w.at("self_attn");
        let mut attention = qwen2::attention(&a, &c, rope.clone())?;
        if use_qk_norm {
            attention = attention.qk_norm(QkNorm::before_rope(&a, ["q_norm", "k_norm"], &c)?);
        }
        let network = sparsity.network(&w.at("mlp"), &c, i, |w, _| router(w, &c, &routing))?;
        pre_norm(w, &c, attention, network)
    })?))
}

/// Routed experts of width `inner`, beside a network as wide as `shared` of them.
pub fn experts(
    w: &Scope,
    c: &Text,
    routing: &LossFreeRouting,
    [inner, shared]: [i32; 2],
) -> Result<Ffn> {
    let experts = stacked(w, [routing.n_routed_experts, c.hidden_size, inner])?;
    beside_shared(w, c, Moe::new(router(w, c, routing)?, experts), [inner, shared])
}

/// A router whose correction stands with it, or beside it.
pub fn router(w: &Scope, c: &Text, routing: &LossFreeRouting) -> Result<LossFreeRouter> {
    let place = if w.has("e_score_correction_bias") { w } else { &w.at("gate") };
    router_corrected(w, place, c, routing)
}

/// A router whose correction stands in this place.
pub fn router_corrected(
    w: &Scope,
    place: &Scope,
    c: &Text,
    routing: &LossFreeRouting,
) -> Result<LossFreeRouter> {
    let count = routing.n_routed_experts;
    let correction = place.tensor("e_score_correction_bias", &[count])?;
    let logits = w.linear("gate", c.hidden_size, count)?;
    LossFreeRouter::new(logits, Some(correction), routing)
}

/// Experts as MLX files stack them, below one of two names, or as they were published.
pub fn stacked(w: &Scope, sizes: [i32; 3]) -> Result<GatedExperts> {
    let name = if w.has_below("switch_mlp") { "switch_mlp" } else { "experts" };
    GatedExperts::read(w, name, sizes, swiglu)
}

/// A mixture beside a network as wide as `shared` experts, if that is any.
pub fn beside_shared(w: &Scope, c: &Text, moe: Moe, [inner, shared]: [i32; 2]) -> Result<Ffn> {
    if shared == 0 {
        return Ok(Box::new(moe));
    }
    let inner = config::product("moe_intermediate_size", [shared, inner])?;
    Ok(sum(moe, Mlp::sized(&w.at("shared_experts"), c, inner, swiglu)?))
}
