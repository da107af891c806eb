//! Qwen 3: Llama with a norm of queries and keys in each head. Follows `qwen3` of mlx-lm, and
//! Qwen's own code for sliding windows.

use crate::families::prelude::*;
use crate::families::text::qwen2;

pub const FAMILY: Family = Family { model_types: &["qwen3"], build, recommended: RECOMMENDED };

const RECOMMENDED: Recommended = Recommended {
    sampling: Sampling { top_k: 20, ..Sampling::nucleus(0.6, 0.95) },
    ..Recommended::NOTHING
};

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let c = qwen2::switch_windows(read(config)?, config, |i, first| i >= first)?;
    let rope = Rope::of(&c)?;
    Ok(Box::new(Decoder::stack(w, &c, |i, w| {
        let mlp = Mlp::of(&w.at("mlp"), GATE_UP_DOWN, &c)?;
        let attention = attention(&w.at("self_attn"), &c, rope.clone())?;
        pre_norm(w, &c, attention.window(c.window(i)?), mlp)
    })?))
}

/// The config fields, with an explicit `head_dim`.
pub fn read(config: &Json) -> Result<Text> {
    Text::read(&config::with_defaults(config, json!({"head_dim": 128})))
}

pub fn attention(w: &Scope, c: &Text, rope: Rope) -> Result<Attention> {
    let norms = QkNorm::before_rope(w, ["q_norm", "k_norm"], c)?;
    Ok(Attention::read(w, QKVO, c, rope)?.qk_norm(norms))
}
