//! GLM 4 (9B) and GLM-Edge: GLM 4 (0414) without the norms after each branch. Follows `glm` of
//! mlx-lm, and the authors' code for the partial rotary embedding.

use crate::families::prelude::*;
use crate::families::text::{glm4, phi3, qwen2};

pub const FAMILY: Family =
    Family { model_types: &["glm"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let (c, rope) = glm4::read(config)?;
    Ok(Box::new(Decoder::stack(w, &c, |_, w| {
        let attention = qwen2::attention(&w.at("self_attn"), &c, rope.clone())?;
        pre_norm(w, &c, attention, phi3::mlp(&w.at("mlp"), &c)?)
    })?))
}
