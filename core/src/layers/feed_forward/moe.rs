//! Mixtures of gated experts ([Shazeer et al. 2017](https://arxiv.org/abs/1701.06538)).

use crate::{
    checkpoint::scope::Scope,
    error::Result,
    layers::{algebra::Layer, cache_plan::CachePlan, step::Step},
};
use crate::{
    layers::{
        feed_forward::{
            mlp::{GATE_UP_DOWN, Gate},
            router::Router,
        },
        linear::Experts,
    },
    mlx::matrix::{Matrix, StackSizes},
};
use mlx_rs::{Array, ops};

/// From this many choices on, tokens are sorted by expert, so that each expert is read once.
const SORT_FROM: usize = 64;

/// `down(gate(x) · up(x))`, once for each expert.
pub struct GatedExperts {
    gate: Experts,
    up: Experts,
    down: Experts,
    activation: Box<dyn Gate>,
}

impl GatedExperts {
    /// Composes gate, up and down, for checkpoints that store them in another way.
    pub fn new([gate, up, down]: [Experts; 3], activation: impl Gate) -> Self {
        GatedExperts { gate, up, down, activation: Box::new(activation) }
    }

    /// Reads `count` experts that map `width` to `inner` and back: `{stacked}.gate_proj` and so on
    /// in one tensor each, or one tensor for each expert, `experts.{i}.gate_proj`, or with gates and
    /// values in one tensor, `experts.gate_up_proj`.
    ///
    /// # Errors
    /// As [`Scope::experts`].
    pub fn read(w: &Scope, stacked: &str, sizes: [i32; 3], activation: impl Gate) -> Result<Self> {
        if w.has("experts.gate_up_proj") {
            let names = ["gate_up_proj", "down_proj"];
            return Self::read_fused(&w.at("experts"), names, sizes, activation);
        }
        Self::read_named(w, stacked, GATE_UP_DOWN, sizes, activation)
    }

    /// As [`GatedExperts::read`], with other names where each expert is a tensor.
    ///
    /// # Errors
    /// As [`Scope::experts`].
    pub fn read_named(
        w: &Scope,
        stacked: &str,
        split: [&str; 3],
        [count, width, inner]: [i32; 3],
        activation: impl Gate,
    ) -> Result<Self> {
        let names = if w.has_below(stacked) { GATE_UP_DOWN } else { split };
        let read = |i: usize, input, output| {
            let sizes = StackSizes { experts: count, input, output };
            let experts = w.experts(stacked, names[i], sizes)?;
            w.with_expert_lora(experts, GATE_UP_DOWN[i], sizes)
        };
        let experts = [read(0, width, inner)?, read(1, width, inner)?, read(2, inner, width)?];
        Ok(Self::new(experts, activation))
    }

    /// Reads experts whose gates and values are one tensor `[count, 2 · inner, width]`, beside one
    /// `[count, width, inner]` for the way back.
    ///
    /// # Errors
    /// As [`Scope::matrix`].
    pub fn read_fused(
        w: &Scope,
        [gate_up, down]: [&str; 2],
        [count, width, inner]: [i32; 3],
        activation: impl Gate,
    ) -> Result<Self> {
        let [gate, up] = w.parameter(gate_up).halves(&[count, 2 * inner, width])?;
        let down = w.parameter(down).matrix(&[count, width, inner])?;
        Self::of(w, [gate, up, down], activation)
    }

    /// Composes the stacked matrices `[count, output, input]` of gate, up and down, without biases.
    ///
    /// # Errors
    /// [`crate::error::Error`].
    pub fn of(w: &Scope, [gate, up, down]: [Matrix; 3], activation: impl Gate) -> Result<Self> {
        let stack = |i: usize, matrix: Matrix| {
            let sizes = matrix.stack_sizes();
            let experts = Experts::new(w.keep_matrix(matrix.for_experts()?), None);
            w.with_expert_lora(experts, GATE_UP_DOWN[i], sizes)
        };
        Ok(Self::new([stack(0, gate)?, stack(1, up)?, stack(2, down)?], activation))
    }

    /// Tokens `[batch, length, width]` through the experts `ids` `[batch, length, k]`, to
    /// `[batch, length, k, width]`.
    pub fn forward(&self, x: &Array, ids: &Array) -> Result<Array> {
        dispatch(x, ids, |x, ids, sorted| {
            let (gate, up) = (self.gate.forward(x, ids, sorted)?, self.up.forward(x, ids, sorted)?);
            self.down.forward(&(self.activation)(&gate, &up)?, ids, sorted)
        })
    }
}

/// Sends tokens `[batch, length, width]` to the experts `ids` `[batch, length, k]`, and gives
/// `[batch, length, k, width]`. `experts` gets tokens `[…, 1, width]`, ids `[…]`, and whether these
/// never decrease.
pub fn dispatch(
    x: &Array,
    ids: &Array,
    experts: impl Fn(&Array, &Array, bool) -> Result<Array>,
) -> Result<Array> {
    if ids.size() < SORT_FROM {
        return Ok(experts(&x.expand_dims_axes(&[-2, -3])?, ids, false)?.squeeze_axes(&[-2])?);
    }
    let k = ids.dim(-1);
    let flat = ids.flatten(None, None)?;
    let order = ops::argsort(&flat)?;
    let token = order.floor_divide(Array::from_int(k))?;
    let tokens = x.reshape(&[-1, 1, x.dim(-1)])?.take_axis(&token, 0)?;
    let sorted = experts(&tokens, &flat.take_axis(&order, 0)?, true)?;
    let unsorted = sorted.take_axis(ops::argsort(&order)?, 0)?;
    Ok(unsorted.reshape(&[x.dim(0), x.dim(1), k, -1])?)
}

/// The sum of what experts give, `[…, k, width]`, by weights `[…, k]`, in the precision of the
/// experts.
pub fn mix(y: &Array, weights: &Array) -> Result<Array> {
    let sum = y.multiply(weights.expand_dims(-1)?)?.sum_axis(-2, false)?;
    Ok(sum.as_dtype(y.dtype())?)
}

/// A router and its experts.
pub struct Moe {
    router: Box<dyn Router>,
    experts: GatedExperts,
}

impl Moe {
    /// Composes the two.
    pub fn new(router: impl Router + 'static, experts: GatedExperts) -> Self {
        Moe { router: Box::new(router), experts }
    }

    /// `[batch, length, width]` to the same.
    pub fn apply(&self, x: &Array) -> Result<Array> {
        let (ids, weights) = self.router.route(x)?;
        mix(&self.experts.forward(x, &ids)?, &weights)
    }
}

impl Layer for Moe {
    type State = ();

    fn state(&self, _: &CachePlan) {}

    fn forward(&self, x: &Array, (): &mut (), _: &Step) -> Result<Array> {
        self.apply(x)
    }
}
