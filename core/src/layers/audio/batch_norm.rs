//! Batch norm with fixed statistics ([Ioffe and Szegedy 2015](https://arxiv.org/abs/1502.03167)).

use crate::{checkpoint::scope::Scope, error::Result, mlx};
use mlx_rs::Array;

impl Scope {
    /// Reads the batch norm here as the factors and the shifts `[width]` that it comes to.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn batch_norm(&self, width: i32) -> Result<[Array; 2]> {
        self.ignore("num_batches_tracked");
        let read = |name: &str| self.take(name, &[width]);
        let (weight, bias) = (read("weight")?, read("bias")?);
        let (mean, variance) = (read("running_mean")?, read("running_var")?);
        let epsilon = mlx::scalar(1e-5, variance.dtype())?;
        let factor = weight.multiply(variance.add(epsilon)?.rsqrt()?)?;
        let shift = bias.subtract(mean.multiply(&factor)?)?;
        Ok([self.keep(factor), self.keep(shift)])
    }
}
