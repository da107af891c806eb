//! The language model of Llama 4 Scout and Maverick, inside a multimodal checkpoint. Follows `llama4` of
//! mlx-lm.

use crate::families::prelude::*;
use crate::families::text::llama4_text::{decoder, read};

pub fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    config::field::<Option<bool>>(config, "tie_word_embeddings")?;
    // Unlike in other models of this kind, the text model says whether embeddings are tied.
    let tied = config.pointer("/text_config/tie_word_embeddings").cloned();
    let text = config::text(config)?.with("tie_word_embeddings", tied.unwrap_or(false.into()));
    let defaults = json!({
        "vocab_size": 202_048, "hidden_size": 5120, "intermediate_size": 8192,
        "intermediate_size_mlp": 16384, "num_hidden_layers": 48, "num_attention_heads": 40,
        "num_key_value_heads": 8, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5,
        "num_local_experts": 16,
    });
    let (config, c) = read(&config::with_defaults(&text, defaults))?;
    // The norms of queries and keys have an epsilon of their own.
    Ok(Box::new(decoder(&config, w, &c, 1e-6)?))
}
