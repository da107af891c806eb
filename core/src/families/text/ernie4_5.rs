//! ERNIE 4.5 (dense): Llama with an interleaved rotary embedding and one switch for all biases.
//! Follows `ernie4_5` of mlx-lm.

use crate::families::prelude::*;
use crate::families::text::llama;

pub const FAMILY: Family =
    Family { model_types: &["ernie4_5", "ernie4.5"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(config, json!({"tie_word_embeddings": true}));
    let names = [("use_bias", "attention_bias"), ("use_bias", "mlp_bias")];
    let mut c = Text::read_renamed(config, &names)?;
    c.rope_traditional = true.into();
    Ok(Box::new(llama::decoder(w, &c)?))
}
