//! Snake ([Ziyin et al. 2020](https://arxiv.org/abs/2006.08195)): `x + sin²(αx) / β` for each channel,
//! where β is α unless the checkpoint has its own.

use crate::{
    checkpoint::scope::Scope,
    error::Result,
    layers::{algebra::Layer, cache_plan::CachePlan, step::Step},
    mlx,
};
use mlx_rs::Array;

/// The activation with its frequencies and magnitudes, `[channels]` each.
pub struct Snake {
    alpha: Array,
    /// One over the magnitudes.
    reciprocal: Array,
}

impl Snake {
    pub(crate) fn forward(&self, x: &Array) -> Result<Array> {
        let sine = x.multiply(&self.alpha)?.sin()?;
        Ok(x.add(sine.square()?.multiply(&self.reciprocal)?)?)
    }
}

impl Layer for Snake {
    type State = ();
    fn state(&self, _: &CachePlan) {}
    fn forward(&self, x: &Array, (): &mut (), _: &Step) -> Result<Array> {
        self.forward(x)
    }
}

impl Scope {
    /// Reads `alpha`, and `beta` if there is one; some checkpoints store their logarithms.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn snake(&self, channels: i32, are_logarithms: bool) -> Result<Snake> {
        let read = |name: &str| -> Result<Array> {
            // `[1, channels, 1]` in torch.
            let shape = self.shape(name).filter(|shape| shape.iter().product::<i32>() == channels);
            let values = self.take(name, &shape.unwrap_or(vec![channels]))?.reshape(&[channels])?;
            Ok(if are_logarithms { values.exp()? } else { values })
        };
        let alpha = read("alpha")?;
        let beta = if self.has("beta") { read("beta")? } else { alpha.clone() };
        self.compose(alpha, &beta)
    }

    /// Reads the activation whose frequencies are the tensor `name`.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn snake_of(&self, name: &str, channels: i32) -> Result<Snake> {
        let alpha = self.take(name, &[1, channels, 1])?.reshape(&[channels])?;
        let beta = alpha.clone();
        self.compose(alpha, &beta)
    }

    fn compose(&self, alpha: Array, beta: &Array) -> Result<Snake> {
        let reciprocal = beta.add(mlx::scalar(1e-9, beta.dtype())?)?.reciprocal()?;
        Ok(Snake { alpha: self.keep(alpha), reciprocal: self.keep(reciprocal) })
    }
}
