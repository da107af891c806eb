//! Attention with a gate on what heads gather, on each head or on each of its elements.

use crate::layers::{
    attention::{grouped::Attention, kv_cache::KvCache},
    feed_forward::activation::softplus,
    linear::Linear,
};
use crate::{error::Result, layers::algebra::Layer};
use mlx_rs::{Array, Dtype, ops};

/// Attention whose heads, or elements of heads, are multiplied before the output's projection: by
/// what `squash` makes of so many gates, a projection of the residual stream, which must divide what
/// all heads gather.
pub fn gated_attention(
    attention: Attention,
    (gate, gates): (Linear, i32),
    squash: fn(&Array) -> Result<Array>,
) -> impl Layer<State = KvCache> {
    attention.run_by(move |attention, x, kv, step| {
        let gathered = attention.gather(x, kv, step)?;
        let parts = gathered.reshape(&[x.dim(0), x.dim(1), gates, -1])?;
        let factors = squash(&gate.forward(x)?)?.expand_dims(-1)?;
        attention.project(&parts.multiply(factors)?.reshape(gathered.shape())?)
    })
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
