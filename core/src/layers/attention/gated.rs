//! Attention with a gate on what heads gather, on each head or on each of its elements.

use crate::layers::{
    attention::{
        grouped::{Attention, Mixer},
        kv_cache::KvCache,
        mla::Mla,
    },
    feed_forward::activation::softplus,
    linear::Linear,
};
use crate::{
    error::Result,
    layers::{algebra::Layer, step::Step},
};
use mlx_rs::{Array, Dtype, ops};

/// Gates on what all heads gather, each on an equal part of it: on a head, or on an element.
pub struct OutputGate {
    /// From the residual stream to the logits of the gates.
    pub projection: Linear,
    /// How many gates there are, which must divide what all heads gather.
    pub gates: i32,
    /// From logits to factors.
    pub squash: fn(&Array) -> Result<Array>,
}

impl OutputGate {
    /// Multiplies what heads gather for the residual stream `x`, both `[batch, length, …]`.
    fn apply(&self, gathered: &Array, x: &Array) -> Result<Array> {
        let parts = gathered.reshape(&[x.dim(0), x.dim(1), self.gates, -1])?;
        let factors = (self.squash)(&self.projection.forward(x)?)?.expand_dims(-1)?;
        Ok(parts.multiply(factors)?.reshape(gathered.shape())?)
    }
}

/// Attention whose heads, or elements of heads, are multiplied before the output's projection: by
/// what `squash` makes of so many gates, a projection of the residual stream, which must divide what
/// all heads gather.
pub fn gated_attention(
    attention: Attention,
    (projection, gates): (Linear, i32),
    squash: fn(&Array) -> Result<Array>,
) -> impl Layer<State = KvCache> {
    let gate = OutputGate { projection, gates, squash };
    attention.run_by(move |attention, x, kv, step| {
        let gathered = attention.gather(x, kv, step)?;
        attention.project(&gate.apply(&gathered, x)?)
    })
}

/// As [`gated_attention`], for latent attention; without a gate, as it is.
pub fn gated_mla(mla: Mla, gate: Option<OutputGate>) -> impl Layer<State = KvCache> {
    let run = move |x: &Array, kv: &mut KvCache, step: &Step| {
        let projected = mla.project(x)?;
        let gathered = mla.gather(&projected, &mla.rotate(&projected, step)?, kv, step)?;
        match &gate {
            Some(gate) => mla.output(&gate.apply(&gathered, x)?),
            None => mla.output(&gathered),
        }
    };
    Mixer { window: None, run }
}

/// A gate between 0 and 1.
pub fn sigmoid(logits: &Array) -> Result<Array> {
    Ok(ops::sigmoid(logits)?)
}

/// As [`sigmoid`], computed in single precision.
pub fn single_sigmoid(logits: &Array) -> Result<Array> {
    Ok(ops::sigmoid(logits.as_dtype(Dtype::Float32)?)?.as_dtype(logits.dtype())?)
}

/// A gate above 0, computed in single precision.
pub fn single_softplus(logits: &Array) -> Result<Array> {
    Ok(softplus(&logits.as_dtype(Dtype::Float32)?)?.as_dtype(logits.dtype())?)
}
