//! Mistral Small 3.1, Ministral 3 and Mistral 4: the text model of a multimodal checkpoint, whose
//! vision tower is ignored. Follows `mistral3` of mlx-lm.

use crate::families::prelude::*;
use crate::families::text::{llama, ministral3, mistral4};

pub const FAMILY: Family =
    Family { model_types: &["mistral3"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    if config.get("text_config").is_none_or(Json::is_null) {
        return Err(Error::config("text_config", "missing"));
    }
    let text = &config::text(config)?;
    ignore_parts(w, &["vision_tower", "multi_modal_projector"]);
    let kind = text.get("model_type").filter(|kind| !kind.is_null());
    match kind.map(Json::as_str) {
        Some(Some("ministral3")) => Ok(Box::new(ministral3::decoder(text, w)?)),
        Some(Some("mistral4")) => Ok(Box::new(mistral4::decoder(text, w)?)),
        // The tensors tell whether the embeddings are tied, if the config does not.
        Some(Some("llama")) => Ok(Box::new(llama::decoder(w, &Text::read(text)?)?)),
        None | Some(Some("mistral")) => {
            Ok(Box::new(llama::decoder(w, &llama::mistral(text)?)?))
        }
        Some(_) => {
            let reason = format!("{} is not supported", kind.cloned().unwrap_or("null".into()));
            Err(Error::unsupported("text_config.model_type", reason))
        }
    }
}
