//! Qwen 3 MoE: Qwen 3's attention; routed experts except in the layers that the config lists as
//! dense. Follows `qwen3_moe` of mlx-lm, and Qwen's own code where that scales positions.

use super::qwen3;
use crate::{
    parts::router::{TopK, softmax_then_top_k, softmax_then_top_k_normalized, top_k},
    prelude::*,
};

pub const FAMILY: Family = Family { model_types: &["qwen3_moe"], build };

#[derive(Deserialize)]
pub struct Config {
    #[serde(deserialize_with = "config::count")]
    pub num_experts: i32,
    #[serde(deserialize_with = "config::size")]
    pub num_experts_per_tok: i32,
    #[serde(deserialize_with = "config::size")]
    pub moe_intermediate_size: i32,
    #[serde(deserialize_with = "config::size")]
    decoder_sparse_step: i32,
    mlp_only_layers: Option<Vec<i32>>,
    pub norm_topk_prob: bool,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let (c, e): (Text, Config) = (qwen3::read(config)?, config::read(config)?);
    let rope = Rope::of(&c)?;
    Ok(Box::new(Decoder::stack(w, &c, |i, w| {
        let attention = qwen3::attention(&w.at("self_attn"), &c, rope.clone())?;
        let mlp = w.at("mlp");
        let ffn: Ffn = if e.is_sparse(i) {
            Box::new(experts(&mlp, &c, &e, top_k)?)
        } else {
            Box::new(Mlp::read(&mlp, GATE_UP_DOWN, &c, swiglu)?)
        };
        pre_norm(w, &c, attention, ffn)
    })?))
}

impl Config {
    pub fn is_sparse(&self, layer: i32) -> bool {
        self.num_experts > 0
            && !self.mlp_only_layers.as_ref().is_some_and(|dense| dense.contains(&layer))
            && (layer + 1) % self.decoder_sparse_step == 0
    }
}

pub fn experts(w: &Scope, c: &Text, e: &Config, top_k: TopK) -> Result<Moe> {
    let sizes = [e.num_experts, c.hidden_size, e.moe_intermediate_size];
    let route =
        if e.norm_topk_prob { softmax_then_top_k_normalized } else { softmax_then_top_k };
    let logits = w.linear("gate", c.hidden_size, e.num_experts)?;
    let router = LinearRouter::new(logits, route, (e.num_experts, e.num_experts_per_tok))?;
    Ok(Moe::new(router.choosing(top_k), GatedExperts::read(w, "switch_mlp", sizes, swiglu)?))
}
