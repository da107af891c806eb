//! Hyper-connections ([Zhu et al. 2024](https://arxiv.org/abs/2409.19606)): several residual
//! streams, of which every branch reads a mixture, and which are mixed by a nearly doubly
//! stochastic matrix ([Xie et al. 2025](https://arxiv.org/abs/2512.24880)). Follows `deepseek_v41`
//! of mlx-lm.

use crate::{
    checkpoint::{
        config::{self, Epsilon, Size},
        scope::Scope,
    },
    error::{Error, Result},
    layers::{algebra::Layer, cache_plan::CachePlan, step::Step},
    mlx,
};
use crate::{
    layers::{linear::Linear, norm::Norm},
    mlx::matrix::Matrix,
};
use mlx_rs::{Array, Dtype, ops};
use serde::Deserialize;

/// The config fields of hyper-connections.
#[derive(Clone, Copy, Deserialize)]
pub struct HyperSizes {
    /// The number of streams.
    pub hc_mult: Size,
    /// The number of Sinkhorn iterations that normalise the mixing matrix.
    pub hc_sinkhorn_iters: Size,
    /// The epsilon of the normalisation.
    pub hc_eps: Epsilon,
}

/// The first block: copies the embeddings `[batch, length, width]` into equal streams `[batch,
/// length, streams, width]`, and computes the input of the first branch.
pub struct Spread(pub i32);

impl Layer for Spread {
    type State = ();

    fn state(&self, _: &CachePlan) {}

    fn forward(&self, x: &Array, (): &mut (), step: &Step) -> Result<Array> {
        step.put(BranchInput(x.clone()));
        let shape = [x.dim(0), x.dim(1), self.0, x.dim(2)];
        Ok(ops::broadcast_to(x.expand_dims(2)?, &shape)?)
    }
}

/// The last block: the mixture `[batch, length, width]` that a branch after the last one would
/// read.
pub struct Gather;

impl Layer for Gather {
    type State = ();

    fn state(&self, _: &CachePlan) {}

    fn forward(&self, _: &Array, (): &mut (), step: &Step) -> Result<Array> {
        input(step)
    }
}

/// The input of the next branch, `[batch, length, width]`.
#[derive(Clone)]
struct BranchInput(Array);

fn input(step: &Step) -> Result<Array> {
    let BranchInput(input) = step.lent(0)?;
    Ok(input)
}

/// A branch over the streams, between [`Spread`] and [`Gather`].
pub struct Connected<L> {
    /// How the branch reads and writes the streams.
    pub connection: HyperConnection,
    /// The norm of its input.
    pub norm: Norm,
    /// The branch itself.
    pub inner: L,
}

impl<L: Layer> Layer for Connected<L> {
    type State = L::State;

    fn state(&self, plan: &CachePlan) -> L::State {
        self.inner.state(plan)
    }

    fn forward(&self, streams: &Array, state: &mut L::State, step: &Step) -> Result<Array> {
        let [next, write, moved] = self.connection.mixtures(streams)?;
        let y = self.inner.forward(&self.norm.forward(&input(step)?)?, state, step)?;
        let y = y.expand_dims(-2)?.multiply(write.expand_dims(-1)?)?;
        let kept = moved.expand_dims(-1)?.multiply(streams.expand_dims(-2)?)?.sum_axis(2, false)?;
        let streams = y.add(kept)?.as_dtype(streams.dtype())?;
        let next = streams.as_dtype(Dtype::Float32)?.multiply(next.expand_dims(-1)?)?;
        let next = next.sum_axis(2, false)?.as_dtype(streams.dtype())?;
        step.put(BranchInput(next));
        Ok(streams)
    }
}

/// How one branch reads and writes the streams.
pub struct HyperConnection {
    norm: Norm,
    /// The projection from all streams to three sets of coefficients: what is read of each stream,
    /// written to each, and moved between them.
    mixtures: Linear,
    factors: Array,
    base: Array,
    sizes: HyperSizes,
}

impl HyperConnection {
    /// Reads `{prefix}fn`, `{prefix}base` and `{prefix}scale` of streams of this width.
    ///
    /// # Errors
    /// As [`Scope::tensor`]; [`Error::Config`] for sizes that no model has.
    pub fn read(w: &Scope, prefix: &str, width: i32, sizes: HyperSizes, eps: f32) -> Result<Self> {
        // The iterations are unrolled in the graph; more of them change nothing, because they have
        // converged.
        const MOST_ITERATIONS: i32 = 256;
        let (streams, iterations) = (*sizes.hc_mult, *sizes.hc_sinkhorn_iters);
        if iterations > MOST_ITERATIONS {
            let reason = format!("{iterations} iterations, more than {MOST_ITERATIONS}");
            return Err(Error::config("hc_sinkhorn_iters", reason));
        }
        let count = config::product("hc_mult", [streams, streams + 2])?;
        let all = config::product("hc_mult", [streams, width])?;
        let take = |name: &str, shape: &[i32]| -> Result<Array> {
            Ok(w.take(&format!("{prefix}{name}"), shape)?.as_dtype(Dtype::Float32)?)
        };
        let mixtures = Matrix::Dense(take("fn", &[count, all])?);
        let ids = (0..count).map(|i| (i / streams).min(2)).collect::<Vec<_>>();
        let ids = Array::from_slice(&ids, &[count]);
        Ok(HyperConnection {
            norm: Norm::Rms { weight: None, eps },
            mixtures: Linear::new(w.keep_matrix(mixtures), None),
            factors: w.keep(take("scale", &[3])?.take_axis(ids, 0)?),
            base: w.keep(take("base", &[count])?),
            sizes,
        })
    }

    /// The coefficients with which the next branch reads each stream and this one writes to each,
    /// `[batch, length, streams]`, and the mixing matrix `[…, from, to]`; in float32.
    fn mixtures(&self, streams: &Array) -> Result<[Array; 3]> {
        let (count, eps) = (*self.sizes.hc_mult, Array::from_f32(*self.sizes.hc_eps));
        let flat = self.norm.forward(&streams.flatten(-2, -1)?.as_dtype(Dtype::Float32)?)?;
        let all = self.mixtures.forward(&flat)?.multiply(&self.factors)?.add(&self.base)?;
        let part = |from, to| mlx::slice(&all, 2, from, to);
        let read = ops::sigmoid(part(0, count)?)?.add(&eps)?;
        let write = ops::sigmoid(part(count, 2 * count)?)?.multiply(Array::from_f32(2.0))?;
        let moved = ops::unflatten(part(2 * count, all.dim(2))?, -1, &[count, count])?;
        let moved = ops::softmax_axis(moved, -1, None)?.add(&eps)?;
        let normalized = |x: &Array, axis| -> Result<Array> {
            Ok(x.divide(x.sum_axis(axis, true)?.add(&eps)?)?)
        };
        let mut moved = normalized(&moved, -2)?;
        for _ in 1..*self.sizes.hc_sinkhorn_iters {
            moved = normalized(&normalized(&moved, -1)?, -2)?;
        }
        Ok([read, write, moved])
    }
}
