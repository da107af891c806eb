//! Gated feed-forward networks ([Shazeer 2020](https://arxiv.org/abs/2002.05202)).

use super::linear::Linear;
use crate::{
    config::Text,
    error::Result,
    layer::{CachePlan, Layer, Step},
    mlx,
    weights::Scope,
};
use mlx_rs::{Array, ops};

/// A feed-forward network of any kind: it remembers nothing.
pub type Ffn = Box<dyn Layer<State = ()>>;

/// The names of the projections in most checkpoints.
pub const GATE_UP_DOWN: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// What a gate does to the values: `(gate, up)` to their product.
pub type Gate = fn(&Array, &Array) -> Result<Array>;

/// SwiGLU: `silu(gate) · up`.
pub fn swiglu(gate: &Array, up: &Array) -> Result<Array> {
    Ok(gate.multiply(ops::sigmoid(gate)?)?.multiply(up)?)
}

/// GeGLU with the tanh approximation: `gelu(gate) · up`.
pub fn geglu_tanh(gate: &Array, up: &Array) -> Result<Array> {
    let constant = |value| mlx::scalar(value, gate.dtype());
    let cube = gate.power(constant(3.0)?)?;
    let inner = gate.add(cube.multiply(constant(0.044_715)?)?)?;
    let tanh = ops::tanh(&inner.multiply(constant((2.0 / std::f32::consts::PI).sqrt())?)?)?;
    let half = gate.multiply(constant(0.5)?)?;
    Ok(half.multiply(tanh.add(constant(1.0)?)?)?.multiply(up)?)
}

/// `down(gate(x) · up(x))`.
pub struct Mlp {
    gate: Linear,
    up: Linear,
    down: Linear,
    activation: Gate,
}

impl Mlp {
    /// Reads the three projections with the widths of the config.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn read(w: &Scope, names: [&str; 3], c: &Text, activation: Gate) -> Result<Self> {
        let read = if c.mlp_bias { Scope::linear_with_bias } else { Scope::linear };
        let (width, inner) = (c.hidden_size, c.intermediate_size);
        let [gate, up, down] = names;
        Ok(Mlp {
            gate: read(w, gate, width, inner)?,
            up: read(w, up, width, inner)?,
            down: read(w, down, inner, width)?,
            activation,
        })
    }
}

impl Layer for Mlp {
    type State = ();

    fn state(&self, _: &CachePlan) {}

    fn forward(&self, x: &Array, (): &mut (), _: &Step) -> Result<Array> {
        self.down.forward(&(self.activation)(&self.gate.forward(x)?, &self.up.forward(x)?)?)
    }
}
