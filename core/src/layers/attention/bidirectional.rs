//! Attention without a causal mask: every token sees all tokens of the pass, those that a mask shows
//! it, or those of its span where spans divide the pass, so there is no state. The mixer of encoders (of
//! pictures, texts and speech).

use crate::{
    error::Result,
    layers::{
        algebra::Layer,
        attention::grouped::{QkNorm, join_heads, split_heads},
        cache_plan::CachePlan,
        linear::Linear,
        norm::Norm,
        position::rope::Rope,
        step::Step,
    },
    mlx::{
        self,
        product::{Weighting, attend},
    },
};
use mlx_rs::{Array, ops};
use std::ops::Range;

/// How projections are split into heads, and how scores are scaled.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Heads of queries.
    pub heads: i32,
    /// Heads of keys and values.
    pub kv_heads: i32,
    /// Factor of the products of queries and keys.
    pub scale: f32,
}

impl Heads {
    /// As many heads of keys and values as of queries, scaled by `head_dim^(-1/2)`.
    pub fn equal(heads: i32, head_dim: i32) -> Self {
        Heads { heads, kv_heads: heads, scale: (head_dim as f32).powf(-0.5) }
    }
}

/// Attention of all tokens of a pass to each other.
pub struct BidirectionalAttention {
    /// Of queries, keys, values and the output.
    projections: [Linear; 4],
    heads: Heads,
    qk_norm: QkNorm,
    rope: Rope,
}

impl BidirectionalAttention {
    /// Composes the projections of queries, keys, values and the output.
    pub fn new(projections: [Linear; 4], heads: Heads, rope: Rope) -> Self {
        BidirectionalAttention { projections, heads, qk_norm: QkNorm::None, rope }
    }

    /// Normalises queries and keys.
    pub fn qk_norm(self, qk_norm: QkNorm) -> Self {
        BidirectionalAttention { qk_norm, ..self }
    }

    /// Projected queries or keys `[batch, length, heads · head_dim]` to heads at their positions.
    fn placed(&self, x: Array, heads: i32, norm: Option<&Norm>, step: &Step) -> Result<Array> {
        let is_whole = matches!(self.qk_norm, QkNorm::Whole(..));
        let normed = |x: Array, is_here: bool| match norm {
            Some(norm) if is_here => norm.forward(&x),
            _ => Ok(x),
        };
        let x = split_heads(&normed(x, is_whole)?, heads)?;
        let is_after = matches!(self.qk_norm, QkNorm::AfterRope(..));
        let x = normed(x, !is_whole && !is_after)?;
        normed(self.rope.forward(&x, step)?, is_after)
    }
}

impl Layer for BidirectionalAttention {
    type State = ();

    fn state(&self, _: &CachePlan) {}

    fn forward(&self, x: &Array, (): &mut (), step: &Step) -> Result<Array> {
        let [queries, keys, values, output] = &self.projections;
        let Heads { heads, kv_heads, scale } = self.heads;
        let [of_queries, of_keys] = self.qk_norm.parts();
        let q = self.placed(queries.forward(x)?, heads, of_queries, step)?;
        let k = self.placed(keys.forward(x)?, kv_heads, of_keys, step)?;
        let v = split_heads(&values.forward(x)?, kv_heads)?;
        let y = match &step.visible {
            Some(mask) => attend(&q, &k, &v, Weighting::masked(scale, mask))?,
            None => within_spans(&q, &k, &v, &step.spans, scale)?,
        };
        output.forward(&join_heads(&y)?)
    }
}

/// Attention of queries, keys and values `[batch, heads, length, head_dim]` of each span to itself.
/// The spans follow each other from the first token to the last; without any, all is one.
fn within_spans(
    q: &Array,
    k: &Array,
    v: &Array,
    spans: &[Range<usize>],
    scale: f32,
) -> Result<Array> {
    if spans.is_empty() {
        return attend(q, k, v, Weighting::plain(scale));
    }
    // Neighbours of one length are computed together, as rows of a batch.
    let alike = spans.chunk_by(|a, b| a.len() == b.len()).map(|alike| {
        let (start, length) = (alike[0].start as i32, alike[0].len() as i32);
        let count = alike.len() as i32;
        let rows = |x: &Array| -> Result<Array> {
            let [batch, heads, _, dims] = [0, 1, 2, 3].map(|axis| x.dim(axis));
            let part = mlx::slice(x, 2, start, start + count * length)?;
            let part = part.reshape(&[batch, heads, count, length, dims])?.swap_axes(1, 2)?;
            Ok(part.reshape(&[batch * count, heads, length, dims])?)
        };
        let (batch, heads, dims) = (q.dim(0), q.dim(1), v.dim(3));
        let y = attend(&rows(q)?, &rows(k)?, &rows(v)?, Weighting::plain(scale))?;
        let y = y.reshape(&[batch, count, heads, length, dims])?.swap_axes(1, 2)?;
        Ok(y.reshape(&[batch, heads, count * length, dims])?)
    });
    Ok(ops::concatenate(&alike.collect::<Result<Vec<_>>>()?, 2)?)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::mlx::{self, matrix::Matrix};
    use mlx_rs::random;

    /// Attention by its definition, query by query, over keys of another sequence or of its own.
    pub struct Naive {
        pub heads: Heads,
        weights: [Vec<f32>; 4],
    }

    impl Naive {
        pub const WIDTH: i32 = 12;
        pub const HEAD_DIM: i32 = 5;

        pub fn new(heads: Heads) -> Self {
            let normal = |output: i32, input: i32| {
                let w = random::normal::<f32>(&[output, input], None, None, None).unwrap();
                mlx::to_vec(&w).unwrap()
            };
            let (queries, keys) = (heads.heads * Self::HEAD_DIM, heads.kv_heads * Self::HEAD_DIM);
            let weights = [
                normal(queries, Self::WIDTH),
                normal(keys, Self::WIDTH),
                normal(keys, Self::WIDTH),
                normal(Self::WIDTH, queries),
            ];
            Naive { heads, weights }
        }

        pub fn projections(&self) -> [Linear; 4] {
            let queries = self.heads.heads * Self::HEAD_DIM;
            let inputs = [Self::WIDTH, Self::WIDTH, Self::WIDTH, queries];
            std::array::from_fn(|i| {
                let (w, input) = (&self.weights[i], inputs[i]);
                let w = Array::from_slice(w, &[w.len() as i32 / input, input]);
                Linear::new(Matrix::Dense(w), None)
            })
        }

        fn project(&self, i: usize, x: &[f32]) -> Vec<f32> {
            let rows = self.weights[i].chunks(x.len());
            rows.map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
        }

        pub fn check(&self, found: &Array, x: &Array, seen: &Array) {
            let rows = |x: &Array| {
                let values: Vec<f32> = mlx::to_vec(x).unwrap();
                values.chunks(Self::WIDTH as usize).map(<[f32]>::to_vec).collect::<Vec<_>>()
            };
            let (found, dims) = (rows(found), Self::HEAD_DIM as usize);
            let seen: Vec<_> =
                rows(seen).iter().map(|row| (self.project(1, row), self.project(2, row))).collect();
            let group = (self.heads.heads / self.heads.kv_heads) as usize;
            for (query, found) in rows(x).iter().zip(&found) {
                let q = self.project(0, query);
                let mut gathered = Vec::new();
                for (head, q) in q.chunks(dims).enumerate() {
                    let part = head / group * dims..(head / group + 1) * dims;
                    let weight = |(k, _): &(Vec<f32>, Vec<f32>)| {
                        let product: f32 = q.iter().zip(&k[part.clone()]).map(|(q, k)| q * k).sum();
                        (product * self.heads.scale).exp()
                    };
                    let weights: Vec<f32> = seen.iter().map(weight).collect();
                    let total: f32 = weights.iter().sum();
                    gathered.extend(part.clone().map(|i| {
                        let mixed = seen.iter().zip(&weights).map(|((_, v), w)| w / total * v[i]);
                        mixed.sum::<f32>()
                    }));
                }
                for (found, expected) in found.iter().zip(self.project(3, &gathered)) {
                    assert!((found - expected).abs() < 1e-3, "{found} instead of {expected}");
                }
            }
        }
    }

    #[test]
    fn spans_divide_a_pass() {
        random::seed(4).unwrap();
        let naive = Naive::new(Heads { heads: 4, kv_heads: 2, scale: 0.4 });
        let attention = BidirectionalAttention::new(naive.projections(), naive.heads, Rope::None);
        let x = random::normal::<f32>(&[1, 7, Naive::WIDTH], None, None, None).unwrap();
        let mut step = Step::prefill(0, 7);
        step.spans = vec![0..2, 2..4, 4..7];
        let y = attention.forward(&x, &mut (), &step).unwrap();
        for span in &step.spans {
            let part = |x: &Array| mlx::slice(x, 1, span.start as i32, span.end as i32).unwrap();
            naive.check(&part(&y), &part(&x), &part(&x));
        }
    }
}
