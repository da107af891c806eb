//! Mixtures of gated experts ([Shazeer et al. 2017](https://arxiv.org/abs/1701.06538)).

use super::{
    ffn::Gate,
    linear::{Experts, Linear},
};
use crate::{
    error::{Error, Result},
    layer::{CachePlan, Layer, Step},
    mlx,
};
use mlx_rs::{Array, ops, ops::indexing::take_along_axis};

/// From this many choices on, tokens are sorted by expert, so that each expert is read once.
const SORT_FROM: usize = 64;

/// Chooses experts: router logits `[…, experts]` and how many to take, to ids `[…, k]` and
/// weights `[…, k]`. A plain function, so that a family can bring its own.
pub type Route = fn(&Array, i32) -> Result<(Array, Array)>;

/// A router and its experts.
pub struct Moe {
    router: Linear,
    route: Route,
    top_k: i32,
    gate: Experts,
    up: Experts,
    down: Experts,
    activation: Gate,
}

impl Moe {
    /// Composes a router over `count` experts, of which each token takes `top_k`.
    ///
    /// # Errors
    /// [`Error::Config`] when there are fewer experts than a token takes.
    pub fn new(
        router: Linear,
        route: Route,
        (count, top_k): (i32, i32),
        [gate, up, down]: [Experts; 3],
        activation: Gate,
    ) -> Result<Self> {
        if top_k > count {
            let reason = format!("{top_k} of {count} experts cannot be chosen");
            return Err(Error::config("num_experts_per_tok", reason));
        }
        Ok(Moe { router, route, top_k, gate, up, down, activation })
    }

    fn experts(&self, x: &Array, ids: &Array, sorted: bool) -> Result<Array> {
        let (gate, up) = (self.gate.forward(x, ids, sorted)?, self.up.forward(x, ids, sorted)?);
        self.down.forward(&(self.activation)(&gate, &up)?, ids, sorted)
    }
}

impl Layer for Moe {
    type State = ();

    fn state(&self, _: &CachePlan) {}

    fn forward(&self, x: &Array, (): &mut (), _: &Step) -> Result<Array> {
        let (ids, weights) = (self.route)(&self.router.forward(x)?, self.top_k)?;
        let y = if ids.size() < SORT_FROM {
            self.experts(&x.expand_dims_axes(&[-2, -3])?, &ids, false)?.squeeze_axes(&[-2])?
        } else {
            let flat = ids.flatten(None, None)?;
            let order = ops::argsort(&flat)?;
            let token = order.floor_divide(Array::from_int(self.top_k))?;
            let tokens = x.reshape(&[-1, 1, x.dim(-1)])?.take_axis(&token, 0)?;
            let sorted = self.experts(&tokens, &flat.take_axis(&order, 0)?, true)?;
            let unsorted = sorted.take_axis(ops::argsort(&order)?, 0)?;
            unsorted.reshape(&[x.dim(0), x.dim(1), self.top_k, -1])?
        };
        Ok(y.multiply(weights.expand_dims(-1)?)?.sum_axis(-2, false)?.as_dtype(x.dtype())?)
    }
}

/// The ids `[…, k]` of the largest elements of the last axis, in no order.
pub fn top_k(scores: &Array, k: i32) -> Result<Array> {
    let (count, axis) = (scores.dim(-1), scores.ndim() - 1);
    mlx::slice(&ops::argpartition_axis(scores, count - k, -1)?, axis, count - k, count)
}

/// Softmax over all experts, then the `k` largest.
pub fn softmax_then_top_k(logits: &Array, k: i32) -> Result<(Array, Array)> {
    let probabilities = ops::softmax_axis(logits, -1, true)?;
    let ids = top_k(&probabilities, k)?;
    let weights = take_along_axis(&probabilities, &ids, -1)?;
    Ok((ids, weights))
}

/// As [`softmax_then_top_k`], with weights that sum to one.
pub fn softmax_then_top_k_normalized(logits: &Array, k: i32) -> Result<(Array, Array)> {
    let (ids, weights) = softmax_then_top_k(logits, k)?;
    let weights = weights.divide(weights.sum_axis(-1, true)?)?;
    Ok((ids, weights))
}

/// The `k` largest, then softmax over those.
pub fn top_k_then_softmax(logits: &Array, k: i32) -> Result<(Array, Array)> {
    let ids = top_k(logits, k)?;
    let weights = ops::softmax_axis(take_along_axis(logits, &ids, -1)?, -1, true)?;
    Ok((ids, weights))
}
