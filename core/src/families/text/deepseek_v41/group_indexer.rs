//! The indexer of compressed attention: a small attention that selects the groups of tokens that
//! the main attention reads, and the blocks of groups that later indexers may select from. Follows
//! `deepseek_v41` of mlx-lm.

use crate::{error::Result, layers::step::Step};
use crate::{
    families::text::deepseek_v41::{
        compressed::Groups,
        compression::{Blocks, Reads},
        rounding::mxfp4,
        tail_rope::TailRope,
    },
    layers::{
        attention::{
            grouped::split_heads,
            indexer::{best_of_blocks, keys_of_best, sum_over_heads},
        },
        feed_forward::router::first_top_k,
        linear::Linear,
    },
};
use mlx_rs::{Array, Dtype, ops};

/// Scores groups by a weighted sum over heads of the positive part of query-key products.
pub struct GroupIndexer {
    /// The projection from the latent `[batch, length, rank]` to the queries of all heads.
    pub q: Linear,
    /// The projection from the residual stream to the weights of the heads.
    pub weights: Linear,
    /// The number of heads.
    pub heads: i32,
    /// The number of groups that a token attends to.
    pub top_k: i32,
    /// To which blocks it restricts later indexers.
    pub candidates: Option<Blocks>,
    /// What it scores.
    pub reads: Reads,
}

impl GroupIndexer {
    /// Selects the groups that each token attends to, `[batch, length, top_k]`; `None` when there
    /// are no more groups than `top_k`. Some of them may still be open.
    pub(crate) fn choose(
        &self,
        x: &Array,
        source: &Array,
        rope: &TailRope,
        step: &Step,
    ) -> Result<Option<Array>> {
        let groups = Groups::lent(self.reads.scored, self.reads.size, step)?;
        let keys = groups.index_keys();
        if keys.dim(2) <= self.top_k {
            return Ok(None);
        }
        let single = |x: &Array| x.as_dtype(Dtype::Float32);
        let constant = Array::from_f32;
        let keys = single(keys)?.swap_axes(-1, -2)?;
        let q = split_heads(&self.q.forward(source)?, self.heads)?;
        let q = single(&mxfp4(&rope.forward(&q, &step.position, 1)?)?)?;
        let weights = single(&self.weights.forward(x)?)?;
        let weights = weights.multiply(constant((self.heads as f32).powf(-0.5)))?;
        let scale = constant((q.dim(3) as f32).powf(-0.5));
        let scores = sum_over_heads(&q, &weights, |q, weights| {
            let positive = ops::maximum(q.matmul(&keys)?, constant(0.0))?;
            Ok(positive.multiply(&scale)?.multiply(weights)?)
        })?;
        let scores = scores.squeeze_axes(&[1])?;
        let (never, (closed, last)) = (constant(f32::NEG_INFINITY), groups.closed(step)?);
        let mut scores = ops::select(closed, scores, &never)?;
        if let Some(blocks) = self.candidates {
            step.put(Candidates(candidates(&scores, &last, blocks)?));
        } else if let Some(Candidates(Some(candidates))) = step.get() {
            scores = ops::select(candidates, scores, never)?;
        }
        Ok(Some(first_top_k(&scores, self.top_k)?))
    }
}

/// The groups that later indexers select from; `None` when there is no restriction.
#[derive(Clone)]
struct Candidates(Option<Array>);

/// The groups in the `most` best blocks of scores `[batch, length, groups]`, true where they are;
/// nothing when there are no more blocks. A block is as good as its best group, and the block of the
/// last group the best, because it may not be full.
fn candidates(scores: &Array, last: &Array, blocks: Blocks) -> Result<Option<Array>> {
    let Blocks { most, size } = blocks;
    let count = scores.dim(2);
    if (count - 1) / size < most {
        return Ok(None);
    }
    let scores = ops::select(last, Array::from_f32(f32::INFINITY), scores)?;
    Ok(Some(keys_of_best(&best_of_blocks(&scores, size)?, most, [size, count])?))
}
