//! Attention with a gate on what heads gather, on each head or on each of its elements.

use super::{attention::Attention, kv::Kv, linear::Linear};
use crate::{
    error::Result,
    layer::{CachePlan, Layer, Step},
};
use mlx_rs::{Array, Dtype, ops};

/// Attention whose heads, or elements of heads, are multiplied before the output's projection.
pub struct GatedAttention {
    attention: Attention,
    gate: Linear,
    gates: i32,
    squash: fn(&Array) -> Result<Array>,
}

impl GatedAttention {
    /// Composes attention and a projection of the residual stream to so many gates, which must
    /// divide what all heads gather; `squash` makes factors of them.
    pub fn new(
        attention: Attention,
        (gate, gates): (Linear, i32),
        squash: fn(&Array) -> Result<Array>,
    ) -> Self {
        GatedAttention { attention, gate, gates, squash }
    }
}

impl Layer for GatedAttention {
    type State = Kv;

    fn state(&self, plan: &CachePlan) -> Kv {
        self.attention.state(plan)
    }

    fn forward(&self, x: &Array, kv: &mut Kv, step: &Step) -> Result<Array> {
        let gathered = self.attention.gather(x, kv, step)?;
        let parts = gathered.reshape(&[x.dim(0), x.dim(1), self.gates, -1])?;
        let factors = (self.squash)(&self.gate.forward(x)?)?.expand_dims(-1)?;
        self.attention.project(&parts.multiply(factors)?.reshape(gathered.shape())?)
    }
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

/// `ln(1 + e^x)`.
pub fn softplus(x: &Array) -> Result<Array> {
    Ok(ops::logaddexp(x, Array::from_int(0).as_dtype(x.dtype())?)?)
}
