//! Convolutions over time and frequency, with the kernels of torch or MLX.

use crate::{
    checkpoint::scope::Scope,
    error::Result,
    layers::audio::convolution::{Kernel, Layout},
};
use mlx_rs::{Array, ops};

/// A convolution of `[batch, rows, columns, channels]` with a square kernel; zeros around the input keep
/// its size at stride 1.
pub struct Convolution2d {
    /// `[output, size, size, input / groups]`.
    weight: Array,
    bias: Option<Array>,
    kernel: Kernel,
}

impl Scope {
    /// Reads the convolution here with its bias, if it has one. Torch stores the kernel as
    /// `[output, input / groups, size, size]`, MLX as `[output, size, size, input / groups]`; a shape that
    /// fits both has the layout of `kernel`.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn convolution_2d(&self, kernel: Kernel) -> Result<Convolution2d> {
        let Kernel { input, output, size, groups, layout, .. } = kernel;
        let (torch, mlx) =
            ([output, input / groups, size, size], [output, size, size, input / groups]);
        let is_mlx = (torch != mlx || layout == Layout::Mlx)
            && self.shape("weight").is_some_and(|shape| shape == mlx);
        let weight = if is_mlx {
            self.tensor("weight", &mlx)?
        } else {
            let stored = self.take("weight", &torch)?;
            self.keep(stored.transpose_axes(&[0, 2, 3, 1])?.contiguous()?)
        };
        Ok(Convolution2d { weight, bias: self.optional("bias", &[output])?, kernel })
    }
}

impl Convolution2d {
    /// Convolves an input of any precision in that of the kernel.
    pub(crate) fn forward(&self, x: &Array) -> Result<Array> {
        let Kernel { stride, groups, .. } = self.kernel;
        let padding = self.kernel.same();
        let x = x.as_dtype(self.weight.dtype())?;
        let y = ops::conv2d(x, &self.weight, (stride, stride), (padding, padding), None, groups)?;
        Ok(match &self.bias {
            Some(bias) => y.add(bias)?,
            None => y,
        })
    }
}

/// The length of an axis after a convolution of three taps and stride 2.
pub fn halved(length: i32) -> i32 {
    (length - 1) / 2 + 1
}
