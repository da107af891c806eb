//! MiMo: Qwen 2 with multi-token prediction layers, which are ignored. Follows `mimo` of mlx-lm.

use crate::families::prelude::*;
use crate::families::text::qwen2;

pub const FAMILY: Family =
    Family { model_types: &["mimo"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let mut c = Text::read(&config::with_defaults(config, json!({"tie_word_embeddings": false})))?;
    c.attention_bias = true.into();
    // The multi-token prediction layers are ignored; they are meant for speculative decoding.
    w.at("model").ignore("mtp_layers");
    Ok(Box::new(qwen2::decoder(w, &c)?))
}
