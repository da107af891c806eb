//! Normalisation over the last axis.

use crate::{
    checkpoint::scope::Scope,
    error::Result,
    layers::{algebra::Layer, cache_plan::CachePlan, step::Step},
    mlx,
};
use mlx_rs::{Array, fast};

/// A norm with its weights.
pub enum Norm {
    /// Division by the root mean square ([Zhang and Sennrich 2019](https://arxiv.org/abs/1910.07467)).
    Rms {
        /// Factors, one for each element of the last axis; none are all ones.
        weight: Option<Array>,
        /// Added to the mean square.
        eps: f32,
    },
    /// Subtraction of the mean, division by the deviation
    /// ([Ba et al. 2016](https://arxiv.org/abs/1607.06450)).
    Layer {
        /// Factors, one for each element of the last axis; none are all ones.
        weight: Option<Array>,
        /// What is added at the end.
        bias: Option<Array>,
        /// Added to the variance.
        eps: f32,
    },
    /// An RMS norm of each head `[batch, heads, length, head_dim]`.
    RmsOfHeads {
        /// Factors `[heads, 1, head_dim]`.
        weight: Array,
        /// Added to the mean square.
        eps: f32,
    },
    /// A layer norm of each head `[batch, heads, length, head_dim]`.
    Heads {
        /// Factors `[heads, 1, head_dim]`.
        weight: Array,
        /// Added to the variance.
        eps: f32,
    },
}

impl Norm {
    /// For files that store `w` and mean `1 + w`: adds the one, once, at load.
    ///
    /// # Errors
    /// [`crate::error::Error`].
    pub fn plus_one(self) -> Result<Self> {
        self.plus(1.0)
    }

    /// As [`Norm::plus_one`], for another offset.
    ///
    /// # Errors
    /// [`crate::error::Error`].
    pub fn plus(self, offset: f32) -> Result<Self> {
        let add = |w: Array| -> Result<Array> { Ok(w.add(mlx::scalar(offset, w.dtype())?)?) };
        Ok(match self {
            Norm::RmsOfHeads { weight, eps } => Norm::RmsOfHeads { weight: add(weight)?, eps },
            Norm::Heads { weight, eps } => Norm::Heads { weight: add(weight)?, eps },
            Norm::Rms { weight, eps } => Norm::Rms { weight: weight.map(add).transpose()?, eps },
            Norm::Layer { weight, bias, eps } => {
                Norm::Layer { weight: weight.map(add).transpose()?, bias, eps }
            }
        })
    }

    /// Normalises the last axis of `x`.
    pub(crate) fn forward(&self, x: &Array) -> Result<Array> {
        Ok(match self {
            Norm::Rms { weight, eps } => fast::rms_norm(x, weight.as_ref(), *eps)?,
            Norm::Layer { weight, bias, eps } => {
                fast::layer_norm(x, weight.as_ref(), bias.as_ref(), *eps)?
            }
            Norm::RmsOfHeads { weight, eps } => weight.multiply(fast::rms_norm(x, None, *eps)?)?,
            Norm::Heads { weight, eps } => {
                weight.multiply(fast::layer_norm(x, None, None, *eps)?)?
            }
        })
    }
}

impl Layer for Norm {
    type State = ();
    fn state(&self, _: &CachePlan) {}
    fn forward(&self, x: &Array, (): &mut (), _: &Step) -> Result<Array> {
        self.forward(x)
    }
}

impl Scope {
    /// Reads an RMS norm.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn rms_norm(&self, name: &str, width: i32, eps: f32) -> Result<Norm> {
        Ok(Norm::Rms { weight: Some(self.at(name).tensor("weight", &[width])?), eps })
    }

    /// Reads a layer norm, with its bias if there is one.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn layer_norm(&self, name: &str, width: i32, eps: f32) -> Result<Norm> {
        let w = self.at(name);
        let weight = Some(w.tensor("weight", &[width])?);
        Ok(Norm::Layer { weight, bias: w.optional("bias", &[width])?, eps })
    }

    /// As [`Scope::layer_norm`], for a norm that cannot do without its bias.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn layer_norm_with_bias(&self, name: &str, width: i32, eps: f32) -> Result<Norm> {
        self.at(name).require("bias")?;
        self.layer_norm(name, width, eps)
    }
}
