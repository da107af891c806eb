//! Mistral Small 3.1 and Ministral 3: Llama or Ministral 3 in a wrapper, whose vision tower is left
//! out. Follows `mistral3` of mlx-lm.

use super::{llama, ministral3};
use crate::prelude::*;

pub const FAMILY: Family = Family { model_types: &["mistral3"], build };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let text = config.get("text_config").filter(|text| text.is_object());
    let text = text.ok_or_else(|| Error::config("text_config", "missing, or not an object"))?;
    for part in ["vision_tower", "multi_modal_projector"] {
        w.ignore(part);
        w.at("model").ignore(part);
    }
    match text.get("model_type").and_then(Json::as_str).unwrap_or("mistral") {
        "ministral3" => Ok(Box::new(ministral3::decoder(text, w)?)),
        "mistral" | "llama" => Ok(Box::new(llama::decoder(w, &Text::read(text)?)?)),
        kind => {
            let reason = format!("`{kind}` is not supported yet");
            Err(Error::config("text_config.model_type", reason))
        }
    }
}
