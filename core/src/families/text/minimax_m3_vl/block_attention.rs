//! Block-sparse attention: an indexer, a small attention with keys of its own, selects the blocks
//! of keys that each query attends to. Follows `minimax_m3_vl` of mlx-lm.

use crate::layers::{
    attention::{
        grouped::{Attention, join_heads, split_heads},
        indexer::{best_of_blocks, keys_of_best},
        kv_cache::KvCache,
    },
    linear::Linear,
    norm::Norm,
    position::rope::Rope,
};
use crate::{
    checkpoint::{
        config::{self, Count, Size, Text},
        scope::Scope,
    },
    error::{Error, Result},
    layers::{algebra::Layer, cache_plan::CachePlan, step::Step},
};
use mlx_rs::{Array, Dtype, ops};
use serde::Deserialize;

/// Attention whose heads read the blocks that its indexer selects; several heads share one
/// selection.
pub struct BlockAttention {
    attention: Attention,
    indexer: BlockIndexer,
}

impl BlockAttention {
    /// Restricts full attention to selected blocks.
    pub fn new(attention: Attention, indexer: BlockIndexer) -> Self {
        BlockAttention { attention, indexer }
    }
}

impl Layer for BlockAttention {
    /// The KV cache, and the key cache of the indexer.
    type State = (KvCache, KvCache);

    fn state(&self, plan: &CachePlan) -> (KvCache, KvCache) {
        (self.attention.state(plan), KvCache::of_indexer(plan))
    }

    fn forward(
        &self,
        x: &Array,
        (kv, index): &mut (KvCache, KvCache),
        step: &Step,
    ) -> Result<Array> {
        let [q, k, v] = self.attention.heads(x, step)?;
        let seen = kv.update(k, v, step)?;
        let scores = &self.attention.scores;
        let gathered = match self.indexer.choose(x, index, step)? {
            None => seen.attend(&q, scores, step)?,
            Some(chosen) => {
                let group = q.dim(1) / chosen.dim(1);
                let chosen = ops::repeat_axis::<bool>(chosen, group, 1)?;
                seen.attend_where(&q, scores, step, |_, _| Ok(chosen))?
            }
        };
        self.attention.project(&join_heads(&gathered)?)
    }
}

/// The config fields of the indexer.
#[derive(Clone, Copy, Deserialize)]
pub struct BlockIndexerSizes {
    index_n_heads: Size,
    /// The head size.
    pub index_head_dim: Size,
    index_block_size: Size,
    index_topk_blocks: Size,
    index_local_blocks: Count,
}

/// Scores blocks of keys by the best key in them.
pub struct BlockIndexer {
    q: Linear,
    k: Linear,
    norms: [Norm; 2],
    rope: Rope,
    heads: i32,
    size: i32,
    blocks: i32,
    local: i32,
}

impl BlockIndexer {
    /// Reads the projections, and the norms of the heads through `norm`, which gets their name and
    /// width.
    ///
    /// # Errors
    /// As [`Scope::linear`], and those of `norm`; [`Error::Config`] when the heads cannot share the
    /// selections evenly.
    pub fn read(
        w: &Scope,
        c: &Text,
        sizes: &BlockIndexerSizes,
        rope: Rope,
        norm: impl Fn(&str, i32) -> Result<Norm>,
    ) -> Result<Self> {
        let (heads, head_dim) = (*sizes.index_n_heads, *sizes.index_head_dim);
        let queries = config::product("index_head_dim", [heads, head_dim])?;
        if c.num_attention_heads % heads != 0 {
            let reason = format!("does not divide the {} query heads", c.num_attention_heads);
            return Err(Error::config("index_n_heads", reason));
        }
        Ok(BlockIndexer {
            q: w.linear("index_q_proj", c.hidden_size, queries)?,
            k: w.linear("index_k_proj", c.hidden_size, head_dim)?,
            norms: [norm("index_q_norm", head_dim)?, norm("index_k_norm", head_dim)?],
            rope,
            heads,
            size: *sizes.index_block_size,
            blocks: *sizes.index_topk_blocks,
            local: *sizes.index_local_blocks,
        })
    }

    /// Caches the keys of the indexer and returns the mask of visible keys for each query, without
    /// causality: `[batch, heads, length, keys]`; `None` when there are no more blocks than it may
    /// select.
    fn choose(&self, x: &Array, kv: &mut KvCache, step: &Step) -> Result<Option<Array>> {
        let [q_norm, k_norm] = &self.norms;
        let place = |x: Array, heads, norm: &Norm| -> Result<Array> {
            self.rope.forward(&norm.forward(&split_heads(&x, heads)?)?, step)
        };
        let seen = kv.update_keys(place(self.k.forward(x)?, 1, k_norm)?, step)?;
        let ((keys, mask), single) = (seen.keys(step)?, |x: &Array| x.as_dtype(Dtype::Float32));
        let count = keys.dim(2);
        if (count - 1) / self.size < self.blocks {
            return Ok(None);
        }
        let queries = place(self.q.forward(x)?, self.heads, q_norm)?;
        let scores = single(&queries)?.matmul(single(&keys)?.swap_axes(-1, -2)?)?;
        let scores = ops::select(&mask, scores, Array::from_f32(f32::NEG_INFINITY))?;
        let scores = best_of_blocks(&scores, self.size)?;
        let own = seen.own(step)?.floor_divide(Array::from_int(self.size))?.expand_dims(-1)?;
        let before = own.subtract(ops::arange::<_, i32>(0, scores.dim(-1), None)?)?;
        let is_local = before.ge(Array::from_int(0))?;
        let is_local = is_local.logical_and(before.lt(Array::from_int(self.local))?)?;
        let scores = ops::select(&is_local, Array::from_f32(f32::INFINITY), scores)?;
        Ok(Some(keys_of_best(&scores, self.blocks, [self.size, count])?))
    }
}
