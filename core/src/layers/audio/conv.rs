//! Convolutions over time, for the stems of encoders and for codecs.

use crate::{checkpoint::scope::Scope, error::Result};
use mlx_rs::{Array, ops};

/// A kernel `[output, taps, input / groups]` and a bias.
pub struct Conv1d {
    /// The kernel.
    pub kernel: Array,
    /// The bias, `[output]`.
    pub bias: Option<Array>,
    /// Positions from one output to the next.
    pub stride: i32,
    /// Zeros on each side.
    pub padding: i32,
    /// Groups of channels that see only each other.
    pub groups: i32,
}

/// The widths of a convolution.
#[derive(Clone, Copy, Debug)]
pub struct ConvSizes {
    /// Channels of the input.
    pub input: i32,
    /// Channels of the output.
    pub output: i32,
    /// Positions that one output depends on.
    pub taps: i32,
}

impl Conv1d {
    /// Convolves `[batch, length, input]` to `[batch, (length + 2 padding - taps) / stride + 1, output]`.
    ///
    /// # Errors
    /// [`Error::Mlx`](crate::Error::Mlx).
    pub fn forward(&self, x: &Array) -> Result<Array> {
        let x = x.as_dtype(self.kernel.dtype())?;
        let y = ops::conv1d(x, &self.kernel, self.stride, self.padding, 1, self.groups)?;
        Ok(match &self.bias {
            Some(bias) => y.add(bias)?,
            None => y,
        })
    }
}

/// A square kernel `[output, taps, taps, input / groups]` over time and frequency, and a bias; zeros
/// around the input keep its size at stride 1.
pub struct Conv2d {
    /// The kernel.
    pub kernel: Array,
    /// The bias, `[output]`.
    pub bias: Array,
    /// Positions from one output to the next, on both axes.
    pub stride: i32,
    /// Groups of channels that see only each other.
    pub groups: i32,
}

impl Conv2d {
    /// Convolves `[batch, rows, columns, input]`.
    ///
    /// # Errors
    /// [`Error::Mlx`](crate::Error::Mlx).
    pub fn forward(&self, x: &Array) -> Result<Array> {
        let (stride, padding) = (self.stride, (self.kernel.dim(1) - 1) / 2);
        let x = x.as_dtype(self.kernel.dtype())?;
        let [stride, padding] = [(stride, stride), (padding, padding)];
        let y = ops::conv2d(x, &self.kernel, stride, padding, None, self.groups)?;
        Ok(y.add(&self.bias)?)
    }
}

/// The length of an axis after a [`Conv2d`] of three taps and stride 2.
pub fn halved(length: i32) -> i32 {
    (length - 1) / 2 + 1
}

impl Scope {
    /// Reads a convolution over two axes, of stride 1. PyTorch stores the kernel as
    /// `[output, input, taps, taps]`, MLX as `[output, taps, taps, input]`. Of grouped channels,
    /// `sizes.input` is those of a group.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn conv2d(&self, name: &str, sizes: ConvSizes) -> Result<Conv2d> {
        let (w, ConvSizes { input, output, taps }) = (self.at(name), sizes);
        let (torch, own) = ([output, input, taps, taps], [output, taps, taps, input]);
        let is_torch = torch != own && w.shape("weight").is_some_and(|shape| shape == torch);
        let kernel = if is_torch {
            self.keep(w.take("weight", &torch)?.transpose_axes(&[0, 2, 3, 1])?.contiguous()?)
        } else {
            w.tensor("weight", &own)?
        };
        Ok(Conv2d { kernel, bias: w.tensor("bias", &[output])?, stride: 1, groups: 1 })
    }

    /// Reads a convolution of stride 1 without padding, with its bias if there is one. PyTorch stores
    /// the kernel as `[output, input, taps]`, MLX as `[output, taps, input]`.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn conv1d(&self, name: &str, sizes: ConvSizes) -> Result<Conv1d> {
        let (w, ConvSizes { input, output, taps }) = (self.at(name), sizes);
        let torch = [output, input, taps];
        let is_torch = input != taps && w.shape("weight").is_some_and(|shape| shape == torch);
        let kernel = if is_torch {
            self.keep(w.take("weight", &torch)?.transpose_axes(&[0, 2, 1])?.contiguous()?)
        } else {
            w.tensor("weight", &[output, taps, input])?
        };
        let bias = w.optional("bias", &[output])?;
        Ok(Conv1d { kernel, bias, stride: 1, padding: 0, groups: 1 })
    }

    /// As [`Scope::conv1d`], with one kernel a channel and as many positions after as before.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn depthwise_conv1d(&self, name: &str, channels: i32, taps: i32) -> Result<Conv1d> {
        let kernel = self.depthwise(name, channels, taps)?;
        let bias = self.at(name).optional("bias", &[channels])?;
        Ok(Conv1d { kernel, bias, stride: 1, padding: (taps - 1) / 2, groups: channels })
    }
}
