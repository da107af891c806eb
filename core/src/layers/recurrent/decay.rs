//! How much of a recurrent state each token leaves, in linear attention with decays that depend on
//! the token.

use crate::{
    checkpoint::scope::Scope,
    error::{Error, Result},
    layers::{feed_forward::activation::softplus, linear::Linear},
};
use mlx_rs::{Array, Dtype, ops};

/// Projections one after the other: one, or two around a low rank.
pub type Projections = Vec<Linear>;

/// Applies them.
pub(super) fn project(projections: &[Linear], x: &Array) -> Result<Array> {
    projections.iter().try_fold(x.clone(), |x, projection| projection.forward(&x))
}

/// How much of the state each token leaves.
pub struct Decay {
    projection: Projections,
    /// `exp(A_log)`, `[heads, 1]`.
    rate: Array,
    /// `[heads, 1 or key_dim]`.
    bias: Array,
    lower_bound: Option<f32>,
}

impl Decay {
    /// Reads `dt_bias` beside `logs`, the values of `A_log`, `[heads]`. The logarithm of the decay is
    /// `-rate · softplus(x + bias)`, or, where it has a lower bound, `bound · sigmoid(rate · (x + bias))`.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn read(
        w: &Scope,
        projection: Projections,
        logs: Array,
        channels: i32,
        lower_bound: Option<f32>,
    ) -> Result<Self> {
        let float = |a: Array| a.as_dtype(Dtype::Float32);
        let heads = logs.dim(0);
        let split = vec![heads, channels];
        let shape = w.shape("dt_bias").filter(|shape| *shape == split);
        let bias = w.take("dt_bias", &shape.unwrap_or_else(|| vec![heads * channels]))?;
        Ok(Decay {
            projection,
            rate: w.keep(float(logs)?.exp()?.reshape(&[heads, 1])?),
            bias: w.keep(float(bias)?.reshape(&[heads, channels])?),
            lower_bound,
        })
    }

    /// The logarithms of the decays, `[batch, length, heads, 1 or key_dim]`.
    pub(super) fn forward(&self, x: &Array) -> Result<Array> {
        let (heads, channels) = (self.bias.dim(0), self.bias.dim(1));
        let x = project(&self.projection, x)?.as_dtype(Dtype::Float32)?;
        let x = x.reshape(&[x.dim(0), x.dim(1), heads, channels])?.add(&self.bias)?;
        Ok(match self.lower_bound {
            None => softplus(&x)?.multiply(&self.rate)?.negative()?,
            Some(bound) => {
                ops::sigmoid(x.multiply(&self.rate)?)?.multiply(Array::from_f32(bound))?
            }
        })
    }
}

/// The lower bound of the logarithm of a decay, which `field` of the config says.
///
/// # Errors
/// [`Error::Config`] unless it is finite and negative.
pub fn lower_bound(field: &str, bound: f32) -> Result<f32> {
    if bound < 0.0 && bound.is_finite() {
        return Ok(bound);
    }
    Err(Error::config(field, format!("{bound} is no logarithm of a decay")))
}
