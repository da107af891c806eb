//! Normalisation over the last axis.

use crate::{error::Result, mlx};
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
}

impl Norm {
    /// Gemma stores `w` and means `1 + w`: adds the one, once, at load.
    ///
    /// # Errors
    /// [`crate::Error::Mlx`].
    pub fn plus_one(self) -> Result<Self> {
        let Norm::Rms { weight, eps } = self;
        let weight = weight.map(|w| Ok::<_, crate::Error>(w.add(mlx::scalar(1.0, w.dtype())?)?));
        Ok(Norm::Rms { weight: weight.transpose()?, eps })
    }

    /// Normalises the last axis of `x`.
    pub(crate) fn forward(&self, x: &Array) -> Result<Array> {
        let Norm::Rms { weight, eps } = self;
        Ok(fast::rms_norm(x, weight.as_ref(), *eps)?)
    }
}
