//! Llama 4 Scout and Maverick (text): the dense text models with experts in some layers or all, of
//! which a token takes one, multiplied by its score before it enters, beside one that all share.
//! Follows `llama4` of mlx-lm, and Meta's code, as transformers has it, for `no_rope_layers` and
//! `moe_layers`.

use super::llama4_text::{decoder, dense, read};
use crate::{
    parts::router::{check_choice, first_top_k},
    prelude::*,
};
use mlx_rs::{Dtype, ops::indexing::take_along_axis};

pub const FAMILY: Family = Family { model_types: &["llama4"], build };

#[derive(Deserialize)]
struct Config {
    #[serde(deserialize_with = "config::size")]
    num_local_experts: i32,
    #[serde(deserialize_with = "config::size")]
    num_experts_per_tok: i32,
    moe_layers: Option<Vec<i32>>,
    #[serde(deserialize_with = "config::size")]
    interleave_moe_layer_step: i32,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(config::text(config)?, json!({
        "vocab_size": 202_048, "hidden_size": 5120, "intermediate_size": 8192,
        "intermediate_size_mlp": 16384, "num_hidden_layers": 48, "num_attention_heads": 40,
        "num_key_value_heads": 8, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5,
        "num_local_experts": 16, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1,
    }));
    let ((c, e), m): (_, Config) = (read(config)?, config::read(config)?);
    check_choice("num_experts_per_tok", (1, m.num_experts_per_tok))?;
    // The text is read alone.
    ignore_parts(w, &["vision_model", "multi_modal_projector"]);
    let has_experts = |i: i32| match &m.moe_layers {
        Some(layers) => layers.contains(&i),
        None => (i + 1) % m.interleave_moe_layer_step == 0,
    };
    // The norms of queries and keys have an epsilon of their own.
    let decoder = decoder(w, &c, &e, 1e-6, |i, w| {
        Ok(if has_experts(i) {
            Box::new(ScaledMoe::read(w, &c, m.num_local_experts)?)
        } else {
            Box::new(dense(w, &c, &e)?)
        })
    })?;
    Ok(Box::new(decoder))
}

/// Experts that get tokens times the sigmoid of their logits, beside one that gets them as they are.
struct ScaledMoe {
    router: Linear,
    experts: GatedExperts,
    shared: Mlp,
}

impl ScaledMoe {
    fn read(w: &Scope, c: &Text, count: i32) -> Result<Self> {
        Ok(ScaledMoe {
            router: w.linear("router", c.hidden_size, count)?,
            experts: experts(w, [count, c.hidden_size, c.intermediate_size])?,
            shared: Mlp::read(&w.at("shared_expert"), GATE_UP_DOWN, c, swiglu)?,
        })
    }
}

/// Stacked by MLX, or as published: gate and up in one tensor, all matrices turned.
fn experts(w: &Scope, [count, width, inner]: [i32; 3]) -> Result<GatedExperts> {
    let e = w.at("experts");
    if !e.has("gate_up_proj") {
        return GatedExperts::read(w, "experts", [count, width, inner], swiglu);
    }
    let both = e.parameter("gate_up_proj").turned([count, 2 * inner, width])?;
    let down = e.parameter("down_proj").turned([count, width, inner])?;
    GatedExperts::of(w, [both.rows(1, 0, inner)?, both.rows(1, inner, 2 * inner)?, down], swiglu)
}

impl Layer for ScaledMoe {
    type State = ();

    fn state(&self, _: &CachePlan) {}

    fn forward(&self, x: &Array, (): &mut (), step: &Step) -> Result<Array> {
        let logits = self.router.forward(x)?;
        let ids = first_top_k(&logits, 1)?;
        let scores = take_along_axis(&logits, &ids, -1)?.as_dtype(Dtype::Float32)?;
        let scaled = x.multiply(ops::sigmoid(scores)?.as_dtype(x.dtype())?)?;
        let y = self.experts.forward(&scaled, &ids)?.squeeze_axes(&[-2])?;
        Ok(y.add(self.shared.forward(x, &mut (), step)?)?)
    }
}
