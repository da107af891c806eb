//! EXAONE 4: norms after each branch as in OLMo 2, normalised queries and keys as in Qwen 3; in
//! models with sliding-window layers, full layers have no rotary embedding. Follows `exaone4` of
//! mlx-lm.

use crate::families::prelude::*;
use crate::families::text::{olmo2, qwen3};

pub const FAMILY: Family =
    Family { model_types: &["exaone4"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    sliding_window_pattern: Option<Pattern>,
}

/// Which layers are sliding-window layers, if the config has no list.
#[derive(Deserialize)]
#[serde(untagged)]
enum Pattern {
    /// `LLLG`: three local layers, then a global one, repeated.
    Letters(String),
    /// All layers except every `n`th; no layer for 0.
    Every(u16),
}

impl Pattern {
    fn slides(&self, layer: i32) -> bool {
        match self {
            Pattern::Letters(kinds) => kinds.bytes().cycle().nth(layer as usize) == Some(b'L'),
            Pattern::Every(0) => false,
            Pattern::Every(n) => (layer + 1) % i32::from(*n) != 0,
        }
    }
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let (c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    // transformers writes this field beside the list that it derived from it.
    let pattern = e.sliding_window_pattern.filter(|_| c.layer_types.is_none());
    let window = |i: i32| match &pattern {
        None => c.window(i),
        Some(pattern) if !pattern.slides(i) => Ok(None),
        Some(_) => match *c.sliding_window {
            Some(window) => Ok(Some(window)),
            None => Err(Error::config("sliding_window", "missing for the sliding layers")),
        },
    };
    let windows: Vec<_> = (0..c.num_hidden_layers).map(window).collect::<Result<_>>()?;
    let slides = windows.iter().any(Option::is_some);
    let rope = Rope::of(&c)?;
    Ok(Box::new(Decoder::stack(w, &c, |i, w| {
        let window = windows[i as usize];
        let rope = if slides && window.is_none() { Rope::None } else { rope.clone() };
        let attention = qwen3::attention(&w.at("self_attn"), &c, rope)?;
        olmo2::post_norm(w, &c, attention.window(window))
    })?))
}
