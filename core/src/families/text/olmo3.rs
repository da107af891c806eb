//! OLMo 3: OLMo 2 with three sliding layers for each full one; only full layers stretch their
//! positions. Follows `olmo3` of mlx-lm.

use super::olmo2;
use crate::prelude::*;

pub const FAMILY: Family = Family { model_types: &["olmo3"], build };

#[derive(Deserialize)]
struct Config {
    rope_parameters: Option<RopeParameters>,
}

/// Transformers 5 nests them by kind of layer.
#[derive(Default, Deserialize)]
struct RopeParameters {
    full_attention: Option<RopeScaling>,
    sliding_attention: Option<RopeScaling>,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let (c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    let nested = e.rope_parameters.unwrap_or_default();
    let rope = |nested: Option<&RopeScaling>, scaling| {
        let base = nested.and_then(|own| own.rope_theta).unwrap_or(c.rope_theta());
        Rope::scaled(c.head_dim(), base, false, nested.or(scaling), c.max_position_embeddings)
    };
    let full = rope(nested.full_attention.as_ref(), c.rope_scaling())?;
    let sliding = rope(nested.sliding_attention.as_ref(), None)?;
    Ok(Box::new(Decoder::stack(w, &c, |i, w| {
        let window = c.window_where(i, |i| (i + 1) % 4 != 0)?;
        let rope = if window.is_some() { &sliding } else { &full };
        let attention = olmo2::attention(&w.at("self_attn"), &c, rope.clone())?;
        olmo2::post_norm(w, &c, attention.window(window))
    })?))
}
