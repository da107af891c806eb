//! Mixtures of gated experts (MoE, [Shazeer et al. 2017](https://arxiv.org/abs/1701.06538)).

use crate::{
    checkpoint::scope::Scope,
    error::Result,
    layers::{algebra::Layer, cache_plan::CachePlan, step::Step},
};
use crate::{
    layers::{
        feed_forward::{
            mlp::{GATE_UP_DOWN, Gate, MlpNames, W1_W3_W2},
            router::Router,
        },
        linear::Experts,
    },
    mlx::matrix::{Matrix, StackSizes},
};
use mlx_rs::{Array, ops};

/// From this number of (token, expert) pairs on, tokens are sorted by expert, so that the weights
/// of each expert are read once.
const SORT_FROM: usize = 64;

/// How many experts there are, and what each maps: `width` to `inner` and back.
#[derive(Clone, Copy)]
pub struct ExpertSizes {
    /// How many experts there are.
    pub count: i32,
    /// The width of the stream.
    pub width: i32,
    /// The inner width of each expert.
    pub inner: i32,
}

/// The names of the tensors of experts whose gates and values are one.
#[derive(Clone, Copy)]
pub struct FusedNames<'n> {
    /// `[count, 2 · inner, width]`.
    pub gate_up: &'n str,
    /// `[count, width, inner]`.
    pub down: &'n str,
}

/// `down(gate(x) · up(x))`, once for each expert.
pub struct GatedExperts {
    gate: Experts,
    up: Experts,
    down: Experts,
    activation: Box<dyn Gate>,
}

impl GatedExperts {
    /// Composes gate, up and down, for checkpoints that store them in another way.
    pub fn new(gate: Experts, up: Experts, down: Experts, activation: impl Gate) -> Self {
        GatedExperts { gate, up, down, activation: Box::new(activation) }
    }

    /// Reads experts: `{stacked}.gate_proj` and so on in one tensor each, or one tensor for each
    /// expert, `experts.{i}.gate_proj` or `experts.{i}.w1`, or with gates and values in one tensor,
    /// `experts.gate_up_proj`.
    ///
    /// # Errors
    /// As [`Scope::experts`].
    pub fn read(
        w: &Scope,
        stacked: &str,
        sizes: ExpertSizes,
        activation: impl Gate,
    ) -> Result<Self> {
        if w.has("experts.gate_up_proj") {
            let names = FusedNames { gate_up: "gate_up_proj", down: "down_proj" };
            return Self::read_fused(&w.at("experts"), names, sizes, activation);
        }
        if w.has_below("experts.0.w1") {
            return Self::read_named(w, "switch_mlp", W1_W3_W2, sizes, activation);
        }
        Self::read_named(w, stacked, GATE_UP_DOWN, sizes, activation)
    }

    /// As [`GatedExperts::read`], with other names for the layout of one tensor for each expert.
    ///
    /// # Errors
    /// As [`Scope::experts`].
    pub fn read_named(
        w: &Scope,
        stacked: &str,
        split: MlpNames,
        sizes: ExpertSizes,
        activation: impl Gate,
    ) -> Result<Self> {
        let names = if w.has_below(stacked) { GATE_UP_DOWN } else { split };
        let ExpertSizes { count, width, inner } = sizes;
        let read = |name, usual, input, output| {
            let sizes = StackSizes { experts: count, input, output };
            let experts = w.experts(stacked, name, sizes)?;
            w.with_expert_lora(experts, usual, sizes)
        };
        let gate = read(names.gate, GATE_UP_DOWN.gate, width, inner)?;
        let up = read(names.up, GATE_UP_DOWN.up, width, inner)?;
        let down = read(names.down, GATE_UP_DOWN.down, inner, width)?;
        Ok(Self::new(gate, up, down, activation))
    }

    /// Reads experts whose gates and values are one tensor, beside one for the way back.
    ///
    /// # Errors
    /// As [`Scope::matrix`].
    pub fn read_fused(
        w: &Scope,
        names: FusedNames,
        sizes: ExpertSizes,
        activation: impl Gate,
    ) -> Result<Self> {
        let ExpertSizes { count, width, inner } = sizes;
        let [gate, up] = w.parameter(names.gate_up).halves(&[count, 2 * inner, width])?;
        let down = w.parameter(names.down).matrix(&[count, width, inner])?;
        Self::of(w, gate, up, down, activation)
    }

    /// Composes the stacked matrices `[count, output, input]` of gate, up and down, without biases.
    ///
    /// # Errors
    /// [`crate::error::Error`].
    pub fn of(
        w: &Scope,
        gate: Matrix,
        up: Matrix,
        down: Matrix,
        activation: impl Gate,
    ) -> Result<Self> {
        let stack = |name, matrix: Matrix| {
            let sizes = matrix.stack_sizes();
            let experts = Experts::new(w.keep_matrix(matrix.for_experts()?), None);
            w.with_expert_lora(experts, name, sizes)
        };
        let gate = stack(GATE_UP_DOWN.gate, gate)?;
        let up = stack(GATE_UP_DOWN.up, up)?;
        let down = stack(GATE_UP_DOWN.down, down)?;
        Ok(Self::new(gate, up, down, activation))
    }

    /// Runs tokens `[batch, length, width]` through the experts `ids` `[batch, length, k]`. Returns
    /// `[batch, length, k, width]`.
    pub fn forward(&self, x: &Array, ids: &Array) -> Result<Array> {
        dispatch(x, ids, |x, ids, sorted| {
            let (gate, up) = (self.gate.forward(x, ids, sorted)?, self.up.forward(x, ids, sorted)?);
            self.down.forward(&(self.activation)(&gate, &up)?, ids, sorted)
        })
    }
}

/// Dispatches tokens `[batch, length, width]` to the experts `ids` `[batch, length, k]` and returns
/// `[batch, length, k, width]`. `experts` gets tokens `[…, 1, width]`, ids `[…]`, and whether the
/// ids are sorted.
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

/// The weighted sum of the outputs of the experts `[…, k, width]` with weights `[…, k]`, in the
/// precision of the outputs.
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
    /// Composes a router and its experts.
    pub fn new(router: impl Router + 'static, experts: GatedExperts) -> Self {
        Moe { router: Box::new(router), experts }
    }

    /// Maps `[batch, length, width]` to `[batch, length, width]`.
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
