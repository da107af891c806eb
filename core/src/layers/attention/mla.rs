//! Multi-head latent attention ([Liu et al. 2024](https://arxiv.org/abs/2405.04434)): the keys and
//! values of all heads are made of one short vector a token, the latent, beside which stands one
//! rotated key that all heads share.

use crate::{
    checkpoint::{config::Text, scope::Scope},
    error::{Error, Result},
    layers::{algebra::Layer, cache_plan::CachePlan, step::Step},
    mlx::{
        self,
        product::{Weighting, attend, matmul},
        quantized::Quantized,
    },
};
use crate::{
    layers::{
        attention::{
            grouped::{join_heads, split_heads},
            kv_cache::KvCache,
            latent::{LatentSizes, Projected, Projections, Rotated},
            scores::Scores,
        },
        linear::Linear,
        position::rope::Rope,
    },
    mlx::matrix::Matrix,
};
use mlx_rs::{Array, ops};

/// Latent attention whose KV cache holds the keys and values of every head.
pub struct ExpandedMla {
    projections: Projections,
    kv: Linear,
    scores: Scores,
}

impl ExpandedMla {
    /// Reads the projections; `eps` is that of the norms of low ranks.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn read(w: &Scope, c: &Text, sizes: &LatentSizes, eps: f32, rope: Rope) -> Result<Self> {
        let both = c.num_attention_heads * (sizes.qk_nope_head_dim + sizes.v_head_dim);
        Ok(ExpandedMla {
            projections: Projections::read(w, c, sizes, eps, rope)?,
            kv: w.linear("kv_b_proj", sizes.kv_lora_rank, both)?,
            scores: Scores { scale: sizes.scale(c), sinks: None },
        })
    }
}

impl Layer for ExpandedMla {
    type State = KvCache;

    fn state(&self, plan: &CachePlan) -> KvCache {
        KvCache::new(None, plan)
    }

    fn forward(&self, x: &Array, kv: &mut KvCache, step: &Step) -> Result<Array> {
        let projected = self.projections.project(x)?;
        let Rotated { q_nope, q_rope, k_rope } = self.projections.rotate(&projected, step)?;
        let (heads, sizes) = (self.projections.heads, &self.projections.sizes);
        let both = split_heads(&self.kv.forward(&projected.latent)?, heads)?;
        let nope = sizes.qk_nope_head_dim;
        let k_nope = mlx::slice(&both, 3, 0, nope)?;
        let values = mlx::slice(&both, 3, nope, nope + sizes.v_head_dim)?;
        let shared = [x.dim(0), heads, x.dim(1), sizes.qk_rope_head_dim];
        let keys = ops::concatenate(&[k_nope, ops::broadcast_to(&k_rope, &shared)?], -1)?;
        let q = ops::concatenate(&[q_nope, q_rope], -1)?;
        let gathered = kv.attend(&q, keys, values, &self.scores, step)?;
        self.projections.output.forward(&join_heads(&gathered)?)
    }
}

/// Latent attention whose KV cache holds latents. One token attends to the latents themselves, with
/// queries that have taken up the projection of the keys; a longer pass expands them.
pub struct Mla {
    projections: Projections,
    keys: PerHead,
    values: PerHead,
    scale: f32,
}

impl Mla {
    /// Reads the projections; `eps` is that of the norms of low ranks. Those from the latent stand
    /// in one matrix, `kv_b_proj`, or a head at a time as `embed_q` and `unembed_out`.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn read(w: &Scope, c: &Text, sizes: &LatentSizes, eps: f32, rope: Rope) -> Result<Self> {
        let [keys, values] = PerHead::read(w, c.num_attention_heads, sizes)?;
        let projections = Projections::read(w, c, sizes, eps, rope)?;
        Ok(Mla { projections, keys, values, scale: sizes.scale(c) })
    }

    /// `[batch, length, width]` to queries, latents and the shared key.
    pub fn project(&self, x: &Array) -> Result<Projected> {
        self.projections.project(x)
    }

    /// Applies rotary embedding to queries and the shared key.
    pub fn rotate(&self, projected: &Projected, step: &Step) -> Result<Rotated> {
        self.projections.rotate(projected, step)
    }

    /// Appends the latents and attends over all visible ones, to `[batch, length, width]`.
    pub fn attend(
        &self,
        projected: &Projected,
        rotated: &Rotated,
        kv: &mut KvCache,
        step: &Step,
    ) -> Result<Array> {
        self.output(&self.gather(projected, rotated, kv, step)?)
    }

    /// As [`Mla::attend`], up to the concatenated outputs of all heads, for families that change them
    /// before [`Mla::output`].
    pub fn gather(
        &self,
        projected: &Projected,
        rotated: &Rotated,
        kv: &mut KvCache,
        step: &Step,
    ) -> Result<Array> {
        let (latent, shared) = (projected.latent.expand_dims(1)?, rotated.k_rope.clone());
        let seen = kv.update(latent, shared, step)?;
        let (latents, shared, mask) = seen.parts(step)?;
        self.gather_from(rotated, [&latents, &shared], &mask)
    }

    /// The projection of the output.
    pub fn output(&self, gathered: &Array) -> Result<Array> {
        self.projections.output.forward(gathered)
    }

    /// Attends over latents `[batch, 1, keys, kv_lora_rank]` and shared keys
    /// `[batch, 1, keys, qk_rope_head_dim]` that the mask, which broadcasts to
    /// `[batch, heads, length, keys]`, lets each query see; the concatenated
    /// outputs of all heads.
    pub fn gather_from(
        &self,
        rotated: &Rotated,
        [latents, shared]: [&Array; 2],
        mask: &Array,
    ) -> Result<Array> {
        let Rotated { q_nope, q_rope, .. } = rotated;
        let dtype = q_rope.dtype();
        let scores = q_rope.multiply(mlx::scalar(self.scale, dtype)?)?;
        let scores = matmul(&scores, &shared.swap_axes(-1, -2)?)?;
        let lowest = mlx::scalar(dtype.finfo_min().unwrap_or(f64::MIN) as f32, dtype)?;
        let scores = ops::select(mask, scores, lowest)?;
        let gather = |q: &Array, k: &Array, v: &Array| {
            attend(q, k, v, Weighting::masked(self.scale, &scores))
        };
        let gathered = if q_nope.dim(2) == 1 {
            let seen = gather(&self.keys.forward(q_nope)?, latents, latents)?;
            self.values.forward(&seen)?
        } else {
            gather(q_nope, &self.keys.backward(latents)?, &self.values.forward(latents)?)?
        };
        join_heads(&gathered)
    }
}

impl Layer for Mla {
    type State = KvCache;

    fn state(&self, plan: &CachePlan) -> KvCache {
        KvCache::new(None, plan)
    }

    fn forward(&self, x: &Array, kv: &mut KvCache, step: &Step) -> Result<Array> {
        let projected = self.project(x)?;
        self.attend(&projected, &self.rotate(&projected, step)?, kv, step)
    }
}

/// A projection of each head by its own matrix `[heads, output, input]`.
enum PerHead {
    Dense { weight: Array, turned: Array },
    Quantized(Quantized),
}

impl PerHead {
    /// From the unrotated part of queries to latents, and from latents to values.
    fn read(w: &Scope, heads: i32, sizes: &LatentSizes) -> Result<[Self; 2]> {
        let (rank, nope, v) = (sizes.kv_lora_rank, sizes.qk_nope_head_dim, sizes.v_head_dim);
        if w.has_below("embed_q") || w.has_below("unembed_out") {
            return Ok([
                Self::new(w, w.at("embed_q").matrix(&[heads, rank, nope])?)?,
                Self::new(w, w.at("unembed_out").matrix(&[heads, v, rank])?)?,
            ]);
        }
        let both = w.at("kv_b_proj").matrix(&[heads * (nope + v), rank])?;
        let (dense, format) = match both {
            Matrix::Dense(weight) => (weight, None),
            // Without the factor of the whole, its format could not hold the same numbers again.
            Matrix::Quantized(m) => {
                (m.dequantize(None)?, Some(m.format).filter(|_| m.global_scale.is_none()))
            }
        };
        let dense = dense.reshape(&[heads, nope + v, rank])?;
        let part = |part: Array| {
            let Some(format) = format else { return Self::new(w, Matrix::Dense(part)) };
            if part.dim(-1) % format.group != 0 {
                let reason = format!("{} in groups of {}", part.dim(-1), format.group);
                return Err(Error::config("qk_nope_head_dim", reason));
            }
            Self::new(w, Matrix::Quantized(Quantized::of(&part, format)?))
        };
        let keys = mlx::slice(&dense, 1, 0, nope)?.swap_axes(-1, -2)?;
        Ok([part(keys.contiguous()?)?, part(mlx::slice(&dense, 1, nope, nope + v)?.contiguous()?)?])
    }

    fn new(w: &Scope, matrix: Matrix) -> Result<Self> {
        Ok(match w.keep_matrix(matrix) {
            Matrix::Dense(weight) => PerHead::Dense { turned: weight.swap_axes(-1, -2)?, weight },
            Matrix::Quantized(weight) => PerHead::Quantized(weight),
        })
    }

    /// `[batch, heads or 1, length, input]` to `[batch, heads, length, output]`.
    fn forward(&self, x: &Array) -> Result<Array> {
        match self {
            PerHead::Dense { turned, .. } => matmul(x, turned),
            PerHead::Quantized(weight) => weight.matmul(x),
        }
    }

    /// `[batch, heads or 1, length, output]` to `[batch, heads, length, input]`.
    fn backward(&self, x: &Array) -> Result<Array> {
        match self {
            PerHead::Dense { weight, .. } => matmul(x, weight),
            PerHead::Quantized(weight) => weight.sum_rows(x),
        }
    }
}
