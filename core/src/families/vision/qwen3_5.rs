//! Qwen 3.5 and 3.6 with vision: Qwen3-VL's tower without DeepStack, and Qwen 3.5, dense or with
//! experts. Follows `modeling_qwen3_5` of transformers.

use crate::families::{
    multimodal,
    prelude::*,
    text::qwen3_5,
    vision::{qwen2_vl::sighted, qwen3_vl::Qwen3Tower},
};

pub const FAMILY: Family = Family {
    model_types: &["qwen3_5", "qwen3_5_moe"],
    build,
    recommended: qwen3_5::RECOMMENDED,
};

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let text = qwen3_5::build(&multimodal::text_config(config, w)?, w)?;
    if !multimodal::has_tower(config, w)? {
        return Ok(text);
    }
    Ok(Box::new(sighted(config, text, Qwen3Tower::read(config, w)?)?))
}
