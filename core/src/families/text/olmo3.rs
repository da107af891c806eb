//! OLMo 3: OLMo 2 with three sliding layers for each full one; only full layers stretch their
//! positions. Follows `olmo3` of mlx-lm.

use super::olmo2;
use crate::prelude::*;

pub const FAMILY: Family = Family { model_types: &["olmo3"], build };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let c = Text::read(config)?;
    let full = Rope::of(&c)?;
    let sliding = Rope::base(c.head_dim(), c.rope_theta())?;
    Ok(Box::new(Decoder::stack(w, &c, |i, w| {
        let window = c.window_where(i, |i| (i + 1) % 4 != 0)?;
        let rope = if window.is_some() { &sliding } else { &full };
        let attention = olmo2::attention(&w.at("self_attn"), &c, rope.clone())?;
        olmo2::post_norm(w, &c, attention.window(window))
    })?))
}
