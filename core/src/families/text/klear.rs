//! Klear: Qwen 3's attention; two coefficients of each token mix the outputs of the routed experts
//! and of the shared expert. Follows `Klear` of mlx-lm.

use crate::families::prelude::*;
use crate::families::text::{qwen3, qwen3_moe};

pub const FAMILY: Family =
    Family { model_types: &["klear", "Klear"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(config, json!({"routed_scaling_factor": 1.0}));
    let (c, e): (Text, qwen3_moe::Config) = (Text::read(config)?, config::read(config)?);
    let shared = config::field(config, "n_shared_experts")?;
    let rope = Rope::of(&c)?;
    Ok(Box::new(Decoder::stack(w, &c, |i, w| {
        let attention = qwen3::attention(&w.at("self_attn"), &c, rope.clone())?;
        let mlp = w.at("mlp");
        let ffn = if e.is_sparse(i) { mixed(&mlp, &c, config, shared)? } else { dense(&mlp, &c)? };
        pre_norm(w, &c, attention, ffn)
    })?))
}

fn mixed(w: &Scope, c: &Text, config: &Json, Size(shared): Size) -> Result<Ffn> {
    let routing = LossFreeRouting::read(config, &[("num_experts", "n_routed_experts")])?;
    // Configs contain other values for these, which the reference ignores.
    let routing = LossFreeRouting { n_group: None, routed_scaling_factor: 1.0, ..routing };
    let (count, normalizes) = (routing.n_routed_experts, routing.norm_topk_prob);
    let Size(inner) = config::field(config, "moe_intermediate_size")?;
    let bias = w.tensor("expert_bias", &[count])?;
    let logits = w.linear("gate", c.hidden_size, count)?;
    let router = LossFreeRouter::new(logits, Some(bias), &routing)?.rounded();
    let router = if normalizes { router.normalized() } else { router };
    let routed =
        Moe::new(router, stacked_experts(w, c, ExpertSizes { count, width: c.hidden_size, inner })?);
    let width = config::product("n_shared_experts", [inner, shared])?;
    let shared = Mlp::sized(&w.at("shared_experts"), c, width)?;
    let coefficient = w.linear_with_bias("coefficient", c.hidden_size, 2)?;
    Ok(Box::new(Map(move |x: &Array| {
        let coefficients = ops::softmax_axis(coefficient.forward(x)?, -1, true)?;
        let parts = ops::split_equal(&coefficients, 2, -1)?;
        let routed = routed.apply(x)?.multiply(&parts[0])?;
        Ok(routed.add(shared.apply(x)?.multiply(&parts[1])?)?)
    })))
}
