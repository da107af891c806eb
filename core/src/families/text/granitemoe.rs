//! Granite MoE: Granite with a mixture of experts, whose router computes in float32. Follows
//! `granitemoe` of mlx-lm.

use crate::families::prelude::*;
use crate::families::text::granite;

pub const FAMILY: Family =
    Family { model_types: &["granitemoe"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
pub struct Config {
    num_local_experts: Size,
    num_experts_per_tok: Size,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let e: Config = config::read(config)?;
    granite::build_with(config, w, |w, c| experts(&w.at("block_sparse_moe"), c, &e))
}

pub fn experts(w: &Scope, c: &Text, e: &Config) -> Result<Moe> {
    let (count, width) = (*e.num_local_experts, c.hidden_size);
    let sizes = ExpertSizes { count, width, inner: c.intermediate_size };
    let logits = w.at("router").linear("layer", width, count)?;
    let router = LinearRouter::new(logits, route, count, *e.num_experts_per_tok)?;
    let experts = if ["input_linear", "output_linear"].iter().any(|name| w.has_below(name)) {
        let names = FusedNames { gate_up: "input_linear.weight", down: "output_linear.weight" };
        GatedExperts::read_fused(w, names, sizes, gate_of(c)?)?
    } else {
        GatedExperts::read(w, "switch_mlp", sizes, gate_of(c)?)?
    };
    Ok(Moe::new(router, experts))
}

fn route(logits: &Array, k: i32, top_k: TopK) -> Result<(Array, Array)> {
    top_k_then_softmax(&logits.as_dtype(Dtype::Float32)?, k, top_k)
}
