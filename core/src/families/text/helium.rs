//! Helium: Llama whose rotary pairs are neighbours. Follows `helium` of mlx-lm.

use super::qwen2;
use crate::prelude::*;

pub const FAMILY: Family = Family { model_types: &["helium"], build };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let mut c = Text::read(&config::with_defaults(config, json!({"tie_word_embeddings": false})))?;
    c.rope_traditional = true;
    Ok(Box::new(qwen2::decoder(w, &c)?))
}
