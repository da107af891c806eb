//! MiniCPM 3: MiniCPM with latent attention that remembers keys and values, and positions stretched
//! by LongRoPE. Follows `minicpm3` of mlx-lm, and OpenBMB's own code for the default of `rope_theta`,
//! for `v_head_dim` and for tied heads.

use super::granite::scaled_pre_norm;
use crate::prelude::*;

pub const FAMILY: Family = Family { model_types: &["minicpm3"], build };

#[derive(Deserialize)]
struct Config {
    scale_emb: Positive,
    scale_depth: Positive,
    dim_model_base: Size,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let (c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    let head_dim = c.hidden_size / c.num_attention_heads;
    let defaults = json!({"v_head_dim": head_dim, "rope_interleave": false});
    let config = &config::with_defaults(config, defaults);
    let sizes = LatentSizes::read(config, c.num_attention_heads)?;
    let rope = sizes.rope(&c)?;
    let branch = *e.scale_depth / (c.num_hidden_layers as f32).sqrt();
    let decoder = Decoder::stack(w, &c, |_, w| {
        // The norms of low ranks have an epsilon of their own.
        let attention = ExpandedMla::read(&w.at("self_attn"), &c, &sizes, 1e-5, rope.clone())?;
        let mlp = Mlp::read(&w.at("mlp"), GATE_UP_DOWN, &c, swiglu)?;
        scaled_pre_norm(w, &c, branch, attention, mlp)
    })?;
    Ok(Box::new(Decoder {
        embedding_scale: Some(*e.scale_emb),
        head: decoder.head.divided(c.hidden_size as f32 / *e.dim_model_base as f32),
        ..decoder
    }))
}
