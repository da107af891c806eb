//! InternLM 3: Llama with one switch for the biases of attention and one for the others.
//! Follows `internlm3` of mlx-lm.

use super::llama;
use crate::prelude::*;

pub const FAMILY: Family = Family { model_types: &["internlm3"], build };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(config, json!({"tie_word_embeddings": false}));
    let c = Text::read_renamed(config, &[("qkv_bias", "attention_bias"), ("bias", "mlp_bias")])?;
    Ok(Box::new(llama::decoder(w, &c)?))
}
