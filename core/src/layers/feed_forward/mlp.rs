//! Gated feed-forward networks ([Shazeer 2020](https://arxiv.org/abs/2002.05202)).

use crate::layers::{
    feed_forward::activation::{self, Activation, gelu, gelu_tanh, silu},
    linear::Linear,
};
use crate::{
    checkpoint::{config::Text, scope::Scope},
    error::Result,
    layers::{algebra::Layer, cache_plan::CachePlan, step::Step},
};
use mlx_rs::Array;

/// A feed-forward network of any kind: it remembers nothing.
pub type Ffn = Box<dyn Layer<State = ()>>;

/// `a(x) + b(x)`, as one network: a mixture of experts, say, and one that all tokens share.
pub fn sum(a: impl Layer<State = ()> + 'static, b: impl Layer<State = ()> + 'static) -> Ffn {
    Box::new(Sum(a, b))
}

/// The network of a layer without experts: SwiGLU with the usual names and the widths of the config.
///
/// # Errors
/// As [`Scope::linear`].
pub fn dense(w: &Scope, c: &Text) -> Result<Ffn> {
    Ok(Box::new(Mlp::read(w, GATE_UP_DOWN, c, swiglu)?))
}

struct Sum<A, B>(A, B);

impl<A: Layer<State = ()>, B: Layer<State = ()>> Layer for Sum<A, B> {
    type State = ();

    fn state(&self, _: &CachePlan) {}

    fn forward(&self, x: &Array, (): &mut (), step: &Step) -> Result<Array> {
        Ok(self.0.forward(x, &mut (), step)?.add(self.1.forward(x, &mut (), step)?)?)
    }
}

/// The names of the projections in most checkpoints.
pub const GATE_UP_DOWN: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// What a gate does to the values: `(gate, up)` to their product.
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

/// GeGLU with the tanh approximation: `gelu(gate) · up`.
pub fn geglu_tanh(gate: &Array, up: &Array) -> Result<Array> {
    Ok(gelu_tanh(gate)?.multiply(up)?)
}

/// A gate of any activation: `activation(gate) · up`.
pub fn gated(activation: Activation) -> impl Gate {
    move |gate: &Array, up: &Array| Ok(activation(gate)?.multiply(up)?)
}

/// `down(activation(up(x)))`: a network without a gate.
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
    pub fn read(w: &Scope, names: [&str; 2], c: &Text, activation: Activation) -> Result<Self> {
        let read = if *c.mlp_bias { Scope::linear_with_bias } else { Scope::linear };
        let [up, down] = names;
        let projections = [
            read(w, up, c.hidden_size, c.intermediate_size)?,
            read(w, down, c.intermediate_size, c.hidden_size)?,
        ];
        Ok(Self::new(projections, activation))
    }

    /// Composes up and down, for checkpoints that store them in another way.
    pub fn new([up, down]: [Linear; 2], activation: Activation) -> Self {
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

/// `down(gate(x) · up(x))`.
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
    pub fn read(w: &Scope, names: [&str; 3], c: &Text, activation: impl Gate) -> Result<Self> {
        let read = if *c.mlp_bias { Scope::linear_with_bias } else { Scope::linear };
        let (width, inner) = (c.hidden_size, c.intermediate_size);
        let [gate, up, down] = names;
        let projections = [
            read(w, gate, width, inner)?,
            read(w, up, width, inner)?,
            read(w, down, inner, width)?,
        ];
        Ok(Self::new(projections, activation))
    }

    /// As [`Mlp::read`], with the activation that the config names.
    ///
    /// # Errors
    /// As [`Scope::linear`], and [`crate::error::Error`] for an unknown activation.
    pub fn of(w: &Scope, names: [&str; 3], c: &Text) -> Result<Self> {
        let name = c.hidden_act.as_deref().unwrap_or("silu");
        Self::read(w, names, c, gated(activation::named("hidden_act", name)?))
    }

    /// As [`Mlp::read`], with the usual names and another inner width than that of the config.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn sized(w: &Scope, c: &Text, inner: i32, activation: impl Gate) -> Result<Self> {
        let mut sizes = c.clone();
        sizes.intermediate_size = inner;
        Self::read(w, GATE_UP_DOWN, &sizes, activation)
    }

    /// Composes gate, up and down, for checkpoints that store them in another way.
    pub fn new([gate, up, down]: [Linear; 3], activation: impl Gate) -> Self {
        Mlp { gate, up, down, activation: Box::new(activation) }
    }

    /// `[…, width]` to the same.
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
