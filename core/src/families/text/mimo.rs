//! MiMo: Qwen 2 that was also trained to predict further tokens. Follows `mimo` of mlx-lm.

use super::qwen2;
use crate::prelude::*;

pub const FAMILY: Family = Family { model_types: &["mimo"], build };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let mut c = Text::read(&config::with_defaults(config, json!({"tie_word_embeddings": false})))?;
    c.attention_bias = true;
    // These only predict further tokens.
    w.at("model").ignore("mtp_layers");
    Ok(Box::new(qwen2::decoder(w, &c)?))
}
