//! Llama 2 and 3 and their many renamings: pre-norm blocks with grouped-query attention and SwiGLU.
//! The other families describe themselves by their differences from this one. Follows `llama` of
//! mlx-lm.

use crate::families::prelude::*;

pub const FAMILY: Family = Family {
    model_types: &["llama", "mistral", "yi", "smollm", "smollm2", "iquestcoder", "xverse"],
    build,
    recommended: Recommended::NOTHING,
};

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    // transformers omits fields that have its default.
    let c = Text::read(&config::with_defaults(config, json!({"tie_word_embeddings": true})))?;
    Ok(Box::new(decoder(w, &c)?))
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
