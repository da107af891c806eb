//! Phi 3, 3.5 and 4 mini: Llama with fused projections and a partial rotary embedding. Follows
//! `phi3` of mlx-lm, and Microsoft's own code, as in transformers, for the sliding window and for
//! LongRoPE, whose short factors mlx-lm never uses.

use crate::families::prelude::*;

pub const FAMILY: Family = Family { model_types: &["phi3"], build, recommended: RECOMMENDED };

const RECOMMENDED: Recommended = Recommended { end_tokens: &["<|end|>"], ..Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let c = Text::read(&config::with_defaults(
        config,
        json!({
            "tie_word_embeddings": false, "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
        }),
    ))?;
    let rope = Rope::share(&c, 1.0)?;
    Ok(Box::new(Decoder::stack(w, &c, |_, w| {
        let attention =
            Attention::fused(&w.at("self_attn"), ["qkv_proj", "o_proj"], &c, rope.clone())?;
        pre_norm(w, &c, attention.window(*c.sliding_window), mlp(&w.at("mlp"), &c)?)
    })?))
}

/// A gated MLP with one matrix for gate and up projections.
pub fn mlp(w: &Scope, c: &Text) -> Result<Mlp> {
    let (width, inner) = (c.hidden_size, c.intermediate_size);
    let [gate, up] = w.fused("gate_up_proj", width, [inner, inner])?;
    Ok(Mlp::new(gate, up, w.linear("down_proj", inner, width)?, gate_of(c)?))
}
