//! Llama 2 and 3 and their many renamings: norms before each branch, grouped-query attention,
//! SwiGLU. Follows `llama` of mlx-lm.

use crate::prelude::*;

pub const FAMILY: Family = Family {
    model_types: &["llama", "mistral", "yi", "smollm", "smollm2", "iquestcoder", "xverse"],
    build,
};

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    // Transformers leaves out of a config what is its default.
    let c = Text::read(&config::with_defaults(config, json!({"tie_word_embeddings": true})))?;
    let rope = Rope::of(&c)?;
    let decoder = Decoder::stack(w, &c, |i, w| {
        let attention = Attention::read(&w.at("self_attn"), QKVO, &c, rope.clone())?;
        let mlp = Mlp::read(&w.at("mlp"), GATE_UP_DOWN, &c, swiglu)?;
        pre_norm(w, &c, attention.window(c.window(i)?), mlp)
    })?;
    Ok(Box::new(decoder))
}
