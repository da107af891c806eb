//! EXAONE 4: norms after each branch as in OLMo 2, queries and keys normalised as in Qwen 3. Where
//! some layers slide, the others have no positions. Follows `exaone4` of mlx-lm.

use super::{olmo2, qwen3};
use crate::prelude::*;

pub const FAMILY: Family = Family { model_types: &["exaone4"], build };

#[derive(Deserialize)]
struct Config {
    /// `LLLG`: three local layers, then a global one, and so on.
    sliding_window_pattern: Option<String>,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let (c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    let pattern = e.sliding_window_pattern.unwrap_or_default();
    if !pattern.is_empty() && c.sliding_window.is_none() {
        return Err(Error::config("sliding_window", "missing for the sliding layers"));
    }
    let window = |i: i32| match pattern.as_bytes() {
        [] => c.window(i),
        kinds => Ok(c.sliding_window.filter(|_| kinds[i as usize % kinds.len()] == b'L')),
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
