//! OLMo 3: OLMo 2 with three sliding-window layers for each full layer; `rope_scaling` applies to
//! full layers only. Follows `olmo3` of mlx-lm.

use crate::families::prelude::*;
use crate::families::text::olmo2;

pub const FAMILY: Family =
    Family { model_types: &["olmo3"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let c = Text::read(config)?;
    Ok(Box::new(Decoder::stack(w, &c, |i, w| {
        let window = c.window_where(i, |i| (i + 1) % 4 != 0)?;
        let scaling = c.rope_scaling().filter(|_| window.is_none());
        // transformers 5 nests them by kind of layer.
        let own = c.rope_of(window).ok();
        let base = own.and_then(|own| own.rope_theta).unwrap_or(c.rope_theta());
        let (dims, context) = (c.head_dim(), c.max_position_embeddings);
        let rope = Rope::scaled(dims, base, false, own.or(scaling), context)?;
        let attention = olmo2::attention(&w.at("self_attn"), &c, rope)?;
        olmo2::post_norm(w, &c, attention.window(window))
    })?))
}
