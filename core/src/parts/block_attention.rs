//! Attention to a limited number of blocks of keys, which an indexer, a small attention with keys of
//! its own, chooses.

use super::{
    attention::{Attention, join_heads, split_heads},
    indexer::{best_of_blocks, keys_of_best},
    kv::Kv,
    linear::Linear,
    norm::Norm,
    rope::Rope,
};
use crate::{
    error::Result,
    layer::{CachePlan, Layer, Step},
};
use mlx_rs::{Array, Dtype, ops};

/// Attention whose heads see what its indexer chooses, as many heads together as it has choices.
pub struct BlockAttention {
    /// Over everything before.
    pub attention: Attention,
    /// Each of its heads, which must divide those of the attention, chooses for a group of these.
    pub indexer: BlockIndexer,
}

impl Layer for BlockAttention {
    /// Keys and values, and the keys of the indexer.
    type State = (Kv, Kv);

    fn state(&self, plan: &CachePlan) -> (Kv, Kv) {
        (self.attention.state(plan), Kv::of_indexer(plan))
    }

    fn forward(&self, x: &Array, (kv, index): &mut (Kv, Kv), step: &Step) -> Result<Array> {
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

/// Scores blocks of keys by the best key in them.
pub struct BlockIndexer {
    /// From the stream to queries.
    pub q: Linear,
    /// From the stream to the key that all heads share.
    pub k: Linear,
    /// Those of queries and of keys.
    pub norms: [Norm; 2],
    /// Positions of both.
    pub rope: Rope,
    /// How many heads there are.
    pub heads: i32,
    /// How many keys make a block.
    pub size: i32,
    /// To how many blocks a token attends.
    pub blocks: i32,
    /// How many of these are its own and those just before it.
    pub local: i32,
}

impl BlockIndexer {
    /// Remembers keys of its own, and says which ones each query sees, beside those after it:
    /// `[batch, heads, length, keys]`; nothing when there are no more blocks than it may choose.
    fn choose(&self, x: &Array, kv: &mut Kv, step: &Step) -> Result<Option<Array>> {
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
