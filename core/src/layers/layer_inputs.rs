//! An input of its own for each layer, beside the residual stream.

use crate::layers::{
    feed_forward::activation::{self, Activation},
    linear::{Embedding, Linear},
    norm::Norm,
};
use crate::{
    checkpoint::{
        config::{self, Text},
        scope::Scope,
    },
    error::Result,
    layers::embedded::Embedded,
    layers::step::Step,
    mlx,
};
use mlx_rs::Array;

/// The inputs of all layers, `[batch, length, layers, width]`.
#[derive(Clone)]
struct Inputs(Array);

/// What each layer gets beside the residual stream: a row of a second token table plus a
/// projection of the embedding.
pub struct LayerInputs {
    table: Embedding,
    projection: Linear,
    norm: Norm,
    layers: i32,
    width: i32,
}

impl LayerInputs {
    /// Reads the table, with rows for `vocabulary` tokens, the projection and its norm.
    ///
    /// # Errors
    /// As [`Scope::linear`]; [`crate::error::Error`] when all inputs together are too wide.
    pub fn read(w: &Scope, c: &Text, vocabulary: i32, width: i32) -> Result<Self> {
        let layers = c.num_hidden_layers;
        let all = config::product("hidden_size_per_layer_input", [layers, width])?;
        Ok(LayerInputs {
            table: w.embedding("embed_tokens_per_layer", vocabulary, all)?,
            projection: w.linear("per_layer_model_projection", c.hidden_size, all)?,
            norm: w.rms_norm("per_layer_projection_norm", width, c.rms_norm_eps)?,
            layers,
            width,
        })
    }

    /// Leaves those of all layers in the step.
    pub fn leave(&self, x: &Embedded, step: &Step) -> Result<()> {
        let constant = |value: f32| mlx::scalar(value, x.hidden.dtype());
        let shape = [x.ids.dim(0), x.ids.dim(1), self.layers, self.width];
        let token = self.table.lookup(&x.ids)?.multiply(constant((self.width as f32).sqrt())?)?;
        let context = self.projection.forward(&x.hidden)?;
        let context = context.multiply(constant((x.hidden.dim(-1) as f32).powf(-0.5))?)?;
        let context = self.norm.forward(&context.reshape(&shape)?)?;
        let sum = context.add(token.reshape(&shape)?)?;
        let inputs = sum.multiply(constant(std::f32::consts::FRAC_1_SQRT_2)?)?;
        step.put(Inputs(inputs));
        Ok(())
    }
}

/// `norm(projection(activation(gate(h)) · input))`: what a layer takes of an input of its own.
pub struct InputGate {
    gate: Linear,
    activation: Activation,
    projection: Linear,
    norm: Norm,
    layer: i32,
}

impl InputGate {
    /// Reads the two projections and the norm of this layer; `width` is that of the input.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn read(w: &Scope, c: &Text, width: i32, layer: i32) -> Result<Self> {
        Ok(InputGate {
            gate: w.linear("per_layer_input_gate", c.hidden_size, width)?,
            activation: activation::of(c)?,
            projection: w.linear("per_layer_projection", width, c.hidden_size)?,
            norm: w.rms_norm("post_per_layer_input_norm", c.hidden_size, c.rms_norm_eps)?,
            layer,
        })
    }

    /// The residual stream `[batch, length, hidden]` to what joins it of the inputs of the step.
    ///
    /// # Errors
    /// [`Error::Internal`](crate::Error::Internal) without [`LayerInputs::leave`] before.
    pub fn forward(&self, h: &Array, step: &Step) -> Result<Array> {
        let Inputs(inputs) = step.lent(0)?;
        let input = mlx::slice(&inputs, 2, self.layer, self.layer + 1)?.squeeze_axes(&[2])?;
        let gated = (self.activation)(&self.gate.forward(h)?)?.multiply(&input)?;
        self.norm.forward(&self.projection.forward(&gated)?)
    }
}
