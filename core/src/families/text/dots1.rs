//! dots.llm1: Qwen 3's attention and DeepSeek V3's mixture of experts. Follows `dots1` of mlx-lm,
//! and transformers where that has windows or biases.

use super::{glm4_moe, qwen3};
use crate::prelude::*;

pub const FAMILY: Family = Family { model_types: &["dots1"], build };

#[derive(Deserialize)]
struct Config {
    #[serde(deserialize_with = "config::size")]
    moe_intermediate_size: i32,
    #[serde(default, deserialize_with = "config::count")]
    n_shared_experts: i32,
    #[serde(default, deserialize_with = "config::count")]
    first_k_dense_replace: i32,
    #[serde(default, deserialize_with = "config::optional_size")]
    max_window_layers: Option<i32>,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let (c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    let routing: LossFreeRouting = config::read(config)?;
    let window = |i| match (&c.layer_types, e.max_window_layers) {
        (None, Some(full)) if i >= full => Ok(c.sliding_window),
        _ => c.window(i),
    };
    let rope = Rope::of(&c)?;
    Ok(Box::new(Decoder::stack(w, &c, |i, w| {
        let attention = qwen3::attention(&w.at("self_attn"), &c, rope.clone())?;
        let mlp = w.at("mlp");
        let ffn = if i < e.first_k_dense_replace {
            Box::new(Mlp::read(&mlp, GATE_UP_DOWN, &c, swiglu)?)
        } else {
            glm4_moe::experts(&mlp, &c, &routing, [e.moe_intermediate_size, e.n_shared_experts])?
        };
        pre_norm(w, &c, attention.window(window(i)?), ffn)
    })?))
}
