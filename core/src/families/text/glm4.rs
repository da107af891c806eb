//! GLM 4 (0414) and Z1: Llama with norms before and after each branch, a rotary embedding of half
//! of each head, and one matrix for gate and up projections. Follows `glm4` of mlx-lm.

use crate::families::prelude::*;
use crate::families::text::{phi3, qwen2};

pub const FAMILY: Family =
    Family { model_types: &["glm4"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let (c, rope) = read(config)?;
    Ok(Box::new(Decoder::stack(w, &c, |_, w| {
        let norm = |name| w.rms_norm(name, c.hidden_size, c.rms_norm_eps);
        let TwoNorms { before_mixer, before_ffn } = TWO_NORMS;
        let (after_mixer, after_ffn) = ("post_self_attn_layernorm", "post_mlp_layernorm");
        let names = FourNorms { before_mixer, after_mixer, before_ffn, after_ffn };
        let attention = qwen2::attention(&w.at("self_attn"), &c, rope.clone())?;
        Ok(Block::new(sandwich(norm, names, attention, phi3::mlp(&w.at("mlp"), &c)?)?))
    })?))
}

/// The config fields, and the partial, interleaved rotary embedding.
pub fn read(config: &Json) -> Result<(Text, Rope)> {
    let c = Text::read(&config::with_defaults(config, json!({"rope_traditional": true})))?;
    let rope = Rope::share(&c, 0.5)?;
    Ok((c, rope))
}
