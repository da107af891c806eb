//! TeleChat 3: Llama without tied embeddings unless the config says so. Follows `telechat3` of
//! mlx-lm.

use crate::families::prelude::*;
use crate::families::text::llama;

pub const FAMILY: Family =
    Family { model_types: &["telechat3"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let c = Text::read(&config::with_defaults(config, json!({"tie_word_embeddings": false})))?;
    Ok(Box::new(llama::decoder(w, &c)?))
}
