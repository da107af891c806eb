//! Llama 2 and 3 and their many renamings: pre-norm blocks with grouped-query attention and SwiGLU.
//! The other families describe themselves by their differences from this one. Follows `llama` of
//! mlx-lm, and Mistral's own code, as in transformers, for the window of Mistral 7B.

use crate::families::prelude::*;

pub const FAMILY: Family = Family {
    model_types: &["llama", "mistral", "yi", "smollm", "smollm2", "iquestcoder", "xverse"],
    build,
    recommended: Recommended::NOTHING,
};

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    // transformers omits fields that have its default.
    let config = &config::with_defaults(config, json!({"tie_word_embeddings": true}));
    let is_mistral = config.get("model_type").and_then(Json::as_str) == Some("mistral");
    let c = if is_mistral { mistral(config)? } else { Text::read(config)? };
    Ok(Box::new(decoder(w, &c)?))
}

/// The config of Mistral 7B, whose layers all slide, unless it says that its window is null.
pub fn mistral(config: &Json) -> Result<Text> {
    let has_window = config.names().any(|name| name == "sliding_window");
    let c = match has_window {
        true => Text::read(config)?,
        false => Text::read(&config.with("sliding_window", 4096))?,
    };
    Ok(all_sliding(c))
}

/// The config of a model that has a window in every layer, or in none.
pub fn all_sliding(c: Text) -> Text {
    if c.layer_types.is_some() || c.sliding_window.is_none() {
        return c;
    }
    let layer_types = vec!["sliding_attention".into(); c.num_hidden_layers as usize];
    Text { layer_types: Some(layer_types).into(), ..c }
}

pub fn decoder(w: &Scope, c: &Text) -> Result<Decoder> {
    let rope = Rope::of(c)?;
    Decoder::stack(w, c, |i, w| block(w, c, i, rope.clone()))
}

pub fn block(w: &Scope, c: &Text, layer: i32, rope: Rope) -> Result<Block> {
    let attention = Attention::read(&w.at("self_attn"), QKVO, c, rope)?;
    let mlp = Mlp::of(&w.at("mlp"), GATE_UP_DOWN, c)?;
    pre_norm(w, c, attention.window(c.window(layer)?), mlp)
}
