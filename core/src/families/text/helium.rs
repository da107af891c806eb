//! Helium: Llama with an interleaved rotary embedding. Follows `helium` of mlx-lm.

use crate::families::prelude::*;
use crate::families::text::qwen2;

pub const FAMILY: Family =
    Family { model_types: &["helium"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let mut c = Text::read(&config::with_defaults(config, json!({"tie_word_embeddings": false})))?;
    c.rope_traditional = true.into();
    Ok(Box::new(qwen2::decoder(w, &c)?))
}
