//! MiniCPM 1 and 2: Llama with factors for embeddings and logits, and for each branch one that
//! falls with the depth of the stack. Follows `minicpm` of mlx-lm, and OpenBMB's own code for the
//! default of `rope_theta` and for tied embeddings.

use crate::families::prelude::*;
use crate::families::text::granite::scaled_pre_norm;

pub const FAMILY: Family =
    Family { model_types: &["minicpm"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    scale_emb: Positive,
    scale_depth: Positive,
    dim_model_base: Size,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let c = Text::read(config)?;
    let rope = Rope::of(&c)?;
    stack(config, w, &c, |w| Attention::read(w, QKVO, &c, rope.clone()))
}

/// The decoder with its factors, and `attention` in each block.
pub fn stack<A: Layer + 'static>(
    config: &Json,
    w: &Scope,
    c: &Text,
    attention: impl Fn(&Scope) -> Result<A>,
) -> Result<Box<dyn LanguageModel>> {
    let e: Config = config::read(config)?;
    let branch = *e.scale_depth / (c.num_hidden_layers as f32).sqrt();
    let decoder = Decoder::stack(w, c, |_, w| {
        let mlp = Mlp::of(&w.at("mlp"), GATE_UP_DOWN, c)?;
        scaled_pre_norm(w, c, branch, attention(&w.at("self_attn"))?, mlp)
    })?;
    Ok(Box::new(Decoder {
        embedding_scale: Some(*e.scale_emb),
        head: decoder.head.divided(c.hidden_size as f32 / *e.dim_model_base as f32),
        ..decoder
    }))
}
