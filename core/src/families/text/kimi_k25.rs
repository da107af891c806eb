//! Kimi K2.5: DeepSeek V3 inside a multimodal checkpoint, whose vision tower is ignored. Follows
//! `kimi_k25` of mlx-lm.

use crate::families::prelude::*;
use crate::families::text::deepseek_v3;

pub const FAMILY: Family =
    Family { model_types: &["kimi_k25"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    if config.get("text_config").is_none_or(Json::is_null) {
        return Err(Error::config("text_config", "missing"));
    }
    ignore_parts(w, &["vision_tower", "vision_model", "multi_modal_projector", "mm_projector"]);
    Ok(Box::new(deepseek_v3::decoder(&config::text(config)?, w)?))
}
