//! MiniCPM 3: MiniCPM with latent attention whose KV cache holds expanded keys and values, and
//! LongRoPE scaling. Follows `minicpm3` of mlx-lm, and OpenBMB's own code for the default of
//! `rope_theta`, for `v_head_dim`, for the epsilon of the low-rank norms and for tied embeddings.

use crate::families::prelude::*;
use crate::families::text::minicpm;

pub const FAMILY: Family =
    Family { model_types: &["minicpm3"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let c = Text::read(config)?;
    let head_dim = c.hidden_size / c.num_attention_heads;
    let defaults = json!({"v_head_dim": head_dim, "rope_interleave": false});
    let config = &config::with_defaults(config, defaults);
    let sizes = LatentSizes::read(config, c.num_attention_heads)?;
    let rope = sizes.rope(&c)?;
    // The norms of the low-rank projections have an epsilon of their own.
    minicpm::stack(config, w, &c, |w| ExpandedMla::read(w, &c, &sizes, 1e-6, rope.clone()))
}
