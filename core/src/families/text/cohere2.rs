//! Command R7B and Command A: Command R with three sliding-window layers for each full layer; full
//! layers have no rotary embedding. Follows `cohere2` of mlx-lm.

use crate::families::prelude::*;
use crate::families::text::cohere;

pub const FAMILY: Family =
    Family { model_types: &["cohere2"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let (c, shared) = cohere::read(
        config,
        json!({
            "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336,
            "num_attention_heads": 32, "vocab_size": 256_000, "sliding_window": 4096,
            "rope_theta": 50_000.0,
        }),
    )?;
    let pattern: Option<Size> = config::field(config, "sliding_window_pattern")?;
    let pattern = pattern.map_or(4, i32::from);
    let rope = Rope::of(&c)?;
    cohere::stack(w, &c, &shared, |i, w| {
        let window = c.window_where(i, |i| (i + 1) % pattern != 0)?;
        let rope = if window.is_some() { rope.clone() } else { Rope::None };
        let attention = Attention::read(w, QKVO, &c, rope)?.window(window);
        Ok(attention.precision(|own| if own == Dtype::Float16 { Dtype::Float32 } else { own }))
    })
}
