//! Qwen 3 MoE: Qwen 3's attention; routed experts except in the layers that the config lists as
//! dense. Follows `qwen3_moe` of mlx-lm, and Qwen's own code for `rope_scaling` and
//! the sliding window.

use crate::families::prelude::*;
use crate::families::text::qwen3;

pub const FAMILY: Family = Family { model_types: &["qwen3_moe"], build, recommended: RECOMMENDED };

const RECOMMENDED: Recommended = Recommended {
    sampling: Sampling { top_k: 20, ..Sampling::nucleus(0.6, 0.95) },
    ..Recommended::NOTHING
};

#[derive(Deserialize)]
pub struct Config {
    pub num_experts: Count,
    pub num_experts_per_tok: Size,
    pub moe_intermediate_size: Size,
    decoder_sparse_step: Size,
    mlp_only_layers: Option<Vec<i32>>,
    pub norm_topk_prob: bool,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let (c, e) = (Text::read(config)?, Config::read(config)?);
    let slides: Option<bool> = config::field(config, "use_sliding_window")?;
    let window = c.sliding_window.filter(|_| slides == Some(true));
    let rope = Rope::of(&c)?;
    Ok(Box::new(Decoder::stack(w, &c, |i, w| {
        let attention =
            qwen3::attention(&w.at("self_attn"), &c, rope.clone())?.window(window);
        let mlp = w.at("mlp");
        let ffn: Ffn =
            if e.is_sparse(i) { Box::new(experts(&mlp, &c, &e, top_k)?) } else { dense(&mlp, &c)? };
        pre_norm(w, &c, attention, ffn)
    })?))
}

impl Config {
    /// Reads the fields; transformers writes `num_local_experts`.
    pub fn read(config: &Json) -> Result<Self> {
        Self::read_renamed(config, &[])
    }

    /// As [`Config::read`], with further names: `(theirs, ours)`.
    pub fn read_renamed(config: &Json, names: &[(&str, &str)]) -> Result<Self> {
        let names = [&[("num_local_experts", "num_experts")][..], names].concat();
        config::read_renamed(config, &names, config::read)
    }

    pub fn is_sparse(&self, layer: i32) -> bool {
        *self.num_experts > 0
            && !self.mlp_only_layers.as_ref().is_some_and(|dense| dense.contains(&layer))
            && (layer + 1) % *self.decoder_sparse_step == 0
    }
}

pub fn experts(w: &Scope, c: &Text, e: &Config, top_k: TopK) -> Result<Moe> {
    let count = *e.num_experts;
    let sizes = ExpertSizes { count, width: c.hidden_size, inner: *e.moe_intermediate_size };
    let route = if e.norm_topk_prob { softmax_then_top_k_normalized } else { softmax_then_top_k };
    let logits = w.linear("gate", c.hidden_size, count)?;
    let router = LinearRouter::new(logits, route, count, *e.num_experts_per_tok)?;
    Ok(Moe::new(router.choosing(top_k), GatedExperts::read(w, "switch_mlp", sizes, gate_of(c)?)?))
}
