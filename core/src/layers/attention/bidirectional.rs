//! Attention without a mask: every token sees all tokens of the pass, so there is no state. The mixer
//! of encoders (ViT, BERT, those of speech).

use crate::{
    error::Result,
    layers::{
        algebra::Layer,
        attention::grouped::{join_heads, split_heads},
        cache_plan::CachePlan,
        linear::Linear,
        position::rope::Rope,
        step::Step,
    },
};
use mlx_rs::{Array, fast::scaled_dot_product_attention};

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
    rope: Rope,
}

impl BidirectionalAttention {
    /// Composes the projections of queries, keys, values and the output.
    pub fn new(projections: [Linear; 4], heads: Heads, rope: Rope) -> Self {
        BidirectionalAttention { projections, heads, rope }
    }
}

impl Layer for BidirectionalAttention {
    type State = ();

    fn state(&self, _: &CachePlan) {}

    fn forward(&self, x: &Array, (): &mut (), step: &Step) -> Result<Array> {
        let [queries, keys, values, output] = &self.projections;
        let Heads { heads, kv_heads, scale } = self.heads;
        let q = self.rope.forward(&split_heads(&queries.forward(x)?, heads)?, step)?;
        let k = self.rope.forward(&split_heads(&keys.forward(x)?, kv_heads)?, step)?;
        let v = split_heads(&values.forward(x)?, kv_heads)?;
        let y = scaled_dot_product_attention(&q, &k, &v, scale, None, None)?;
        output.forward(&join_heads(&y)?)
    }
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
}
