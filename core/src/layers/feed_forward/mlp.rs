//! Gated feed-forward networks ([Shazeer 2020](https://arxiv.org/abs/2002.05202)).

use crate::layers::{
    feed_forward::activation::{self, Activation, gelu, silu},
    linear::Linear,
};
use crate::{
    checkpoint::{config::Text, scope::Scope},
    error::Result,
    layers::{algebra::Layer, cache_plan::CachePlan, step::Step},
};
use mlx_rs::Array;

/// A feed-forward network of any kind, which has no state.
pub type Ffn = Box<dyn Layer<State = ()>>;

/// `a(x) + b(x)` as one network, such as routed experts and a shared expert.
pub fn sum(a: impl Layer<State = ()> + 'static, b: impl Layer<State = ()> + 'static) -> Ffn {
    Box::new(Sum(a, b))
}

/// The MLP of a dense layer: with the usual names, and the widths and the activation of the config.
///
/// # Errors
/// As [`Scope::linear`].
pub fn dense(w: &Scope, c: &Text) -> Result<Ffn> {
    Ok(Box::new(Mlp::of(w, GATE_UP_DOWN, c)?))
}

struct Sum<A, B>(A, B);

impl<A: Layer<State = ()>, B: Layer<State = ()>> Layer for Sum<A, B> {
    type State = ();

    fn state(&self, _: &CachePlan) {}

    fn forward(&self, x: &Array, (): &mut (), step: &Step) -> Result<Array> {
        Ok(self.0.forward(x, &mut (), step)?.add(self.1.forward(x, &mut (), step)?)?)
    }
}

/// The names of the projections of a gated network.
#[derive(Clone, Copy)]
pub struct MlpNames<'n> {
    /// To the gates.
    pub gate: &'n str,
    /// To the values.
    pub up: &'n str,
    /// Back to the stream.
    pub down: &'n str,
}

/// The names of the projections of a network without a gate.
#[derive(Clone, Copy)]
pub struct PlainNames<'n> {
    /// To the inner width.
    pub up: &'n str,
    /// Back to the stream.
    pub down: &'n str,
}

/// The names of the projections in most checkpoints.
pub const GATE_UP_DOWN: MlpNames = MlpNames { gate: "gate_proj", up: "up_proj", down: "down_proj" };

/// The names of the projections in checkpoints that number them.
pub const W1_W3_W2: MlpNames = MlpNames { gate: "w1", up: "w3", down: "w2" };

/// The gate function: `(gate, up)` to their product.
pub trait Gate: Fn(&Array, &Array) -> Result<Array> + 'static {}

impl<G: Fn(&Array, &Array) -> Result<Array> + 'static> Gate for G {}

/// SwiGLU: `silu(gate) · up`.
pub fn swiglu(gate: &Array, up: &Array) -> Result<Array> {
    Ok(silu(gate)?.multiply(up)?)
}

/// GeGLU: `gelu(gate) · up`.
pub fn geglu(gate: &Array, up: &Array) -> Result<Array> {
    Ok(gelu(gate)?.multiply(up)?)
}

/// A gate with any activation: `activation(gate) · up`.
pub fn gated(activation: Activation) -> impl Gate {
    move |gate: &Array, up: &Array| Ok(activation(gate)?.multiply(up)?)
}

/// The gate function with the activation of the config.
///
/// # Errors
/// As [`activation::of`].
pub fn gate_of(c: &Text) -> Result<impl Gate + use<>> {
    Ok(gated(activation::of(c)?))
}

/// An MLP without a gate: `down(activation(up(x)))`.
pub struct PlainMlp {
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl PlainMlp {
    /// Reads the two projections with the widths of the config.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn read(w: &Scope, names: PlainNames, c: &Text, activation: Activation) -> Result<Self> {
        let read = if *c.mlp_bias { Scope::linear_with_bias } else { Scope::linear };
        let up = read(w, names.up, c.hidden_size, c.intermediate_size)?;
        let down = read(w, names.down, c.intermediate_size, c.hidden_size)?;
        Ok(Self::new(up, down, activation))
    }

    /// As [`PlainMlp::read`], with the activation of the config.
    ///
    /// # Errors
    /// As [`Scope::linear`], and [`crate::error::Error`] for an unknown activation.
    pub fn of(w: &Scope, names: PlainNames, c: &Text) -> Result<Self> {
        Self::read(w, names, c, activation::of(c)?)
    }

    /// Composes up and down, for checkpoints that store them in another way.
    pub fn new(up: Linear, down: Linear, activation: Activation) -> Self {
        PlainMlp { up, down, activation }
    }
}

impl Layer for PlainMlp {
    type State = ();

    fn state(&self, _: &CachePlan) {}

    fn forward(&self, x: &Array, (): &mut (), _: &Step) -> Result<Array> {
        self.down.forward(&(self.activation)(&self.up.forward(x)?)?)
    }
}

/// A gated MLP: `down(gate(x) · up(x))`.
pub struct Mlp {
    gate: Linear,
    up: Linear,
    down: Linear,
    activation: Box<dyn Gate>,
}

impl Mlp {
    /// Reads the three projections with the widths of the config.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn read(w: &Scope, names: MlpNames, c: &Text, activation: impl Gate) -> Result<Self> {
        let read = if *c.mlp_bias { Scope::linear_with_bias } else { Scope::linear };
        let (width, inner) = (c.hidden_size, c.intermediate_size);
        let gate = read(w, names.gate, width, inner)?;
        let up = read(w, names.up, width, inner)?;
        let down = read(w, names.down, inner, width)?;
        Ok(Self::new(gate, up, down, activation))
    }

    /// As [`Mlp::read`], with the activation of the config.
    ///
    /// # Errors
    /// As [`Scope::linear`], and [`crate::error::Error`] for an unknown activation.
    pub fn of(w: &Scope, names: MlpNames, c: &Text) -> Result<Self> {
        Self::read(w, names, c, gate_of(c)?)
    }

    /// As [`Mlp::of`], with the usual names and the given inner width.
    ///
    /// # Errors
    /// As [`Mlp::of`].
    pub fn sized(w: &Scope, c: &Text, inner: i32) -> Result<Self> {
        Self::sized_with(w, c, inner, gate_of(c)?)
    }

    /// As [`Mlp::sized`], with a gate function of the family's own.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn sized_with(w: &Scope, c: &Text, inner: i32, activation: impl Gate) -> Result<Self> {
        let mut sizes = c.clone();
        sizes.intermediate_size = inner;
        Self::read(w, GATE_UP_DOWN, &sizes, activation)
    }

    /// Composes gate, up and down, for checkpoints that store them in another way.
    pub fn new(gate: Linear, up: Linear, down: Linear, activation: impl Gate) -> Self {
        Mlp { gate, up, down, activation: Box::new(activation) }
    }

    /// Maps `[…, width]` to `[…, width]`.
    pub fn apply(&self, x: &Array) -> Result<Array> {
        self.down.forward(&(self.activation)(&self.gate.forward(x)?, &self.up.forward(x)?)?)
    }
}

impl Layer for Mlp {
    type State = ();

    fn state(&self, _: &CachePlan) {}

    fn forward(&self, x: &Array, (): &mut (), _: &Step) -> Result<Array> {
        self.apply(x)
    }
}
