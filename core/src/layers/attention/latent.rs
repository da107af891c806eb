//! What latent attention makes of the residual stream: queries, a latent, and one rotated key that
//! all heads share.

use crate::layers::{
    attention::grouped::split_heads, linear::Linear, norm::Norm, position::rope::Rope,
};
use crate::{
    checkpoint::{
        config::{self, Json, Text, optional_size, product, size},
        scope::Scope,
    },
    error::{Error, Result},
    layers::step::Step,
    mlx,
};
use mlx_rs::Array;
use serde::Deserialize;

/// The widths of latent attention, as the configs of its families spell them.
#[derive(Clone, Deserialize)]
pub struct LatentSizes {
    /// Width of what queries are made of; they are made of the residual stream when absent.
    #[serde(default, deserialize_with = "optional_size")]
    pub q_lora_rank: Option<i32>,
    /// Width of the latent.
    #[serde(deserialize_with = "size")]
    pub kv_lora_rank: i32,
    /// Width of the part of a head that is not rotated.
    #[serde(deserialize_with = "size")]
    pub qk_nope_head_dim: i32,
    /// Width of the part that is.
    #[serde(deserialize_with = "size")]
    pub qk_rope_head_dim: i32,
    /// Width of the values of a head.
    #[serde(deserialize_with = "size")]
    pub v_head_dim: i32,
    /// Whether rotary pairs are neighbours, which they are when absent, or halves.
    rope_interleave: Option<bool>,
}

impl LatentSizes {
    /// Reads the fields and checks that the heads together have a size.
    ///
    /// # Errors
    /// [`Error::Config`] with the field at fault.
    pub fn read(config: &Json, heads: i32) -> Result<Self> {
        let sizes: LatentSizes = config::read(config)?;
        product("qk_nope_head_dim", [heads, sizes.qk_nope_head_dim])?;
        product("qk_rope_head_dim", [heads, sizes.qk_rope_head_dim])?;
        product("v_head_dim", [heads, sizes.v_head_dim])?;
        if sizes.qk_rope_head_dim % 2 != 0 {
            let reason = format!("{} elements are not pairs", sizes.qk_rope_head_dim);
            return Err(Error::config("qk_rope_head_dim", reason));
        }
        Ok(sizes)
    }

    /// Width of the queries and keys of a head.
    pub fn head_dim(&self) -> i32 {
        self.qk_nope_head_dim + self.qk_rope_head_dim
    }

    /// How the rotated part of a head is.
    ///
    /// # Errors
    /// As [`Rope::of`].
    pub fn rope(&self, c: &Text) -> Result<Rope> {
        let interleave = self.rope_interleave.unwrap_or(true);
        // The widths of a head say which share of it is rotated.
        c.partial_rotary_factor();
        let (dims, context) = (self.qk_rope_head_dim, c.max_position_embeddings);
        Rope::scaled(dims, c.rope_theta(), interleave, c.rope_scaling(), context)
    }

    /// Factor of the products of queries and keys. YaRN's correction of the magnitude, which others
    /// apply to what they rotate, stands here where the config says `mscale_all_dim`.
    pub(super) fn scale(&self, c: &Text) -> f32 {
        let plain = f64::from(self.head_dim()).powf(-0.5);
        let scaling = c.rope_scaling().filter(|scaling| scaling.kind() != "default");
        let magnitude = scaling.map_or(1.0, |scaling| {
            let magnitude = scaling.factor.unwrap_or(1.0).max(1.0).ln();
            0.1 * scaling.mscale_all_dim.unwrap_or(0.0) * magnitude + 1.0
        });
        (plain * magnitude * magnitude) as f32
    }
}

/// What one pass makes of the residual stream, before positions enter.
pub struct Projected {
    /// Queries `[batch, heads, length, head_dim]`.
    pub q: Array,
    /// What they were made of, `[batch, length, q_lora_rank]`; without that rank, the stream.
    pub q_source: Array,
    /// The latent `[batch, length, kv_lora_rank]`.
    pub latent: Array,
    /// The key that all heads share `[batch, 1, length, qk_rope_head_dim]`.
    pub k_rope: Array,
}

/// Queries and the shared key where they stand in the sequence.
pub struct Rotated {
    /// The part of the queries that is not rotated, `[batch, heads, length, qk_nope_head_dim]`.
    pub q_nope: Array,
    /// The part that is, `[batch, heads, length, qk_rope_head_dim]`.
    pub q_rope: Array,
    /// The key that all heads share `[batch, 1, length, qk_rope_head_dim]`.
    pub k_rope: Array,
}

/// The projections around attention.
pub(super) struct Projections {
    /// Down to a lower rank, and the norm there.
    q_low: Option<(Linear, Norm)>,
    q: Linear,
    kv_low: Linear,
    kv_norm: Norm,
    pub(super) output: Linear,
    rope: Rope,
    pub(super) sizes: LatentSizes,
    pub(super) heads: i32,
}

impl Projections {
    pub(super) fn read(
        w: &Scope,
        c: &Text,
        sizes: &LatentSizes,
        eps: f32,
        rope: Rope,
    ) -> Result<Self> {
        let read = if *c.attention_bias { Scope::linear_with_bias } else { Scope::linear };
        let (width, heads) = (c.hidden_size, c.num_attention_heads);
        let queries = heads * sizes.head_dim();
        let (q_low, q) = match sizes.q_lora_rank {
            None => (None, w.linear("q_proj", width, queries)?),
            Some(rank) => {
                let norm = w.rms_norm("q_a_layernorm", rank, eps)?;
                let low = (read(w, "q_a_proj", width, rank)?, norm);
                (Some(low), w.linear("q_b_proj", rank, queries)?)
            }
        };
        let low = sizes.kv_lora_rank + sizes.qk_rope_head_dim;
        let output = if w.has_below("dense") { "dense" } else { "o_proj" };
        Ok(Projections {
            q_low,
            q,
            kv_low: read(w, "kv_a_proj_with_mqa", width, low)?,
            kv_norm: w.rms_norm("kv_a_layernorm", sizes.kv_lora_rank, eps)?,
            output: read(w, output, heads * sizes.v_head_dim, width)?,
            rope,
            sizes: sizes.clone(),
            heads,
        })
    }

    pub(super) fn project(&self, x: &Array) -> Result<Projected> {
        let q_source = match &self.q_low {
            Some((low, norm)) => norm.forward(&low.forward(x)?)?,
            None => x.clone(),
        };
        let rank = self.sizes.kv_lora_rank;
        let low = self.kv_low.forward(x)?;
        let k_rope = mlx::slice(&low, 2, rank, rank + self.sizes.qk_rope_head_dim)?;
        Ok(Projected {
            q: split_heads(&self.q.forward(&q_source)?, self.heads)?,
            q_source,
            latent: self.kv_norm.forward(&mlx::slice(&low, 2, 0, rank)?)?,
            k_rope: k_rope.expand_dims(1)?,
        })
    }

    pub(super) fn rotate(&self, p: &Projected, step: &Step) -> Result<Rotated> {
        let nope = self.sizes.qk_nope_head_dim;
        let q_rope = mlx::slice(&p.q, 3, nope, self.sizes.head_dim())?;
        Ok(Rotated {
            q_nope: mlx::slice(&p.q, 3, 0, nope)?,
            q_rope: self.rope.forward(&q_rope, step)?,
            k_rope: self.rope.forward(&p.k_rope, step)?,
        })
    }
}
