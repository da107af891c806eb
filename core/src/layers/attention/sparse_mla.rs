//! Latent attention to a limited number of tokens, which an indexer, a small attention with keys of
//! its own, chooses ([Liu et al. 2025](https://arxiv.org/abs/2512.02556)).

use crate::layers::{
    attention::{
        grouped::split_heads,
        indexer::sum_over_heads,
        kv_cache::KvCache,
        latent::{LatentSizes, Projected},
        mla::Mla,
    },
    feed_forward::router::top_k,
    linear::Linear,
    norm::Norm,
    position::rope::Rope,
};
use crate::{
    checkpoint::{
        config::{self, Size, Text},
        scope::Scope,
    },
    error::{Error, Result},
    layers::{algebra::Layer, cache_plan::CachePlan, step::Step},
    mlx,
};
use mlx_rs::{Array, ops, ops::indexing::take_along_axis};
use serde::Deserialize;

/// Latent attention to the keys that its own indexer chooses or, without one, to those that the
/// indexer of an earlier layer has chosen.
pub struct SparseMla {
    mla: Mla,
    indexer: Option<TokenIndexer>,
}

impl SparseMla {
    /// Composes the two.
    pub fn new(mla: Mla, indexer: Option<TokenIndexer>) -> Self {
        SparseMla { mla, indexer }
    }
}

/// The ids of the keys that an indexer chose, for its layer and for those that have no indexer;
/// `None` where all keys are visible.
#[derive(Clone)]
struct ChosenKeys(Option<Array>);

impl Layer for SparseMla {
    /// Latents, and the keys of the indexer.
    type State = (KvCache, KvCache);

    fn state(&self, plan: &CachePlan) -> (KvCache, KvCache) {
        (self.mla.state(plan), KvCache::of_indexer(plan))
    }

    fn forward(
        &self,
        x: &Array,
        (kv, index): &mut (KvCache, KvCache),
        step: &Step,
    ) -> Result<Array> {
        let projected = self.mla.project(x)?;
        let rotated = self.mla.rotate(&projected, step)?;
        let latent = projected.latent.expand_dims(1)?;
        let seen = kv.update(latent, rotated.k_rope.clone(), step)?;
        let (mut latents, mut k_rope, mut mask) = seen.parts(step)?;
        if let Some(indexer) = &self.indexer {
            step.put(ChosenKeys(indexer.choose(x, &projected, index, step)?));
        }
        let Some(ChosenKeys(Some(choice))) = step.get() else {
            let gathered = self.mla.gather_from(&rotated, [&latents, &k_rope], &mask)?;
            return self.mla.output(&gathered);
        };
        let (batch, keys) = (x.dim(0), latents.dim(2));
        let all = ops::broadcast_to(&mask, &[batch, 1, step.length, keys])?;
        if step.length == 1 {
            let ids = choice.swap_axes(-1, -2)?;
            let gather = |x: &Array| -> Result<Array> {
                let ids = ops::broadcast_to(&ids, &[batch, 1, ids.dim(2), x.dim(3)])?;
                Ok(take_along_axis(x, &ids, 2)?)
            };
            (latents, k_rope) = (gather(&latents)?, gather(&k_rope)?);
            mask = take_along_axis(&all, &choice, -1)?;
        } else {
            let none = ops::zeros_like(&all)?;
            mask = none.put_along_axis(&choice, Array::from_bool(true), -1)?.logical_and(all)?;
        }
        self.mla.output(&self.mla.gather_from(&rotated, [&latents, &k_rope], &mask)?)
    }
}

/// The fields of an indexer of tokens, as configs spell them.
#[derive(Clone, Copy, Deserialize)]
pub struct TokenIndexerSizes {
    index_head_dim: Size,
    index_n_heads: Size,
    index_topk: Size,
    indexer_rope_interleave: bool,
}

/// Scores keys by a weighted sum over heads of the ReLU of their products with queries.
pub struct TokenIndexer {
    q: Linear,
    k: Linear,
    k_norm: Norm,
    weights: Linear,
    rope: Rope,
    heads: i32,
    scale: f32,
    top_k: i32,
}

impl TokenIndexer {
    /// Reads the projections; queries are made of what those of latent attention are made of.
    ///
    /// # Errors
    /// As [`Scope::linear`]; [`Error::Config`] for sizes that do not fit those of the attention.
    pub fn read(
        w: &Scope,
        c: &Text,
        latent: &LatentSizes,
        sizes: &TokenIndexerSizes,
    ) -> Result<Self> {
        let (heads, head_dim, width) = (*sizes.index_n_heads, *sizes.index_head_dim, c.hidden_size);
        let missing = || Error::config("q_lora_rank", "missing for the indexer");
        let (rank, rotated) = (latent.q_lora_rank.ok_or_else(missing)?, latent.qk_rope_head_dim);
        if head_dim < rotated {
            let reason = format!("{head_dim} elements, of which {rotated} are rotated");
            return Err(Error::config("index_head_dim", reason));
        }
        let (interleave, context) = (sizes.indexer_rope_interleave, c.max_position_embeddings);
        let queries = config::product("index_head_dim", [heads, head_dim])?;
        Ok(TokenIndexer {
            q: w.linear("wq_b", rank, queries)?,
            k: w.linear("wk", width, head_dim)?,
            k_norm: w.layer_norm_with_bias("k_norm", head_dim, 1e-6)?,
            weights: w.linear("weights_proj", width, heads)?,
            rope: Rope::scaled(rotated, c.rope_theta(), interleave, c.rope_scaling(), context)?,
            heads,
            scale: ((heads as f32) * (head_dim as f32)).powf(-0.5),
            top_k: *sizes.index_topk,
        })
    }

    /// Appends its own keys, and returns the ids of the keys that each token attends to,
    /// `[batch, 1, length, index_topk]`; `None` when there are no more keys than that.
    fn choose(
        &self,
        x: &Array,
        projected: &Projected,
        kv: &mut KvCache,
        step: &Step,
    ) -> Result<Option<Array>> {
        let k = self.k_norm.forward(&self.k.forward(x)?)?.expand_dims(1)?;
        let seen = kv.update_keys(self.rope.forward(&k, step)?, step)?;
        let (keys, mask) = seen.keys(step)?;
        if keys.dim(2) <= self.top_k {
            return Ok(None);
        }
        let q = split_heads(&self.q.forward(&projected.q_source)?, self.heads)?;
        let q = self.rope.forward(&q, step)?;
        let weights = self.weights.forward(x)?;
        let weights = weights.multiply(mlx::scalar(self.scale, weights.dtype())?)?;
        let keys = keys.swap_axes(-1, -2)?;
        let scores = sum_over_heads(&q, &weights, |q, weights| {
            let scores = q.matmul(&keys)?;
            let positive = ops::maximum(&scores, mlx::scalar(0.0, scores.dtype())?)?;
            Ok(positive.multiply(weights)?)
        })?;
        let never = mlx::scalar(f32::NEG_INFINITY, scores.dtype())?;
        Ok(Some(top_k(&ops::select(&mask, scores, never)?, self.top_k)?))
    }
}
