//! Causal depthwise convolution over the sequence, for recurrent and hybrid models.

use crate::{
    checkpoint::scope::Scope,
    error::Result,
    layers::{state::Recurrent, step::Step},
    mlx::convolution::{Moves, convolve},
};
use mlx_rs::Array;

/// One kernel of `taps` steps a channel.
pub struct CausalConv {
    kernel: Array,
    bias: Option<Array>,
    channels: i32,
    taps: i32,
}

impl CausalConv {
    /// Reads the kernel and, where it must be there, the bias.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn read(w: &Scope, name: &str, channels: i32, taps: i32, bias: bool) -> Result<Self> {
        let kernel = w.depthwise(name, channels, taps)?;
        let bias = bias.then(|| w.at(name).tensor("bias", &[channels])).transpose()?;
        Ok(Self::new(kernel, bias))
    }

    /// Composes a kernel `[channels, taps, 1]` that the checkpoint stores in another way.
    pub fn new(kernel: Array, bias: Option<Array>) -> Self {
        let (channels, taps) = (kernel.dim(0), kernel.dim(1));
        CausalConv { kernel, bias, channels, taps }
    }

    /// Convolves `[batch, length, channels]` after the last `taps - 1` inputs of the tokens before,
    /// which are the conv state `[batch, taps - 1, channels]`.
    pub(crate) fn forward(&self, x: &Array, last: &mut Recurrent, step: &Step) -> Result<Array> {
        let padded = last.after_last(x, self.taps - 1, step)?;
        let y = convolve(&padded, &self.kernel, Moves::by_channel(self.channels))?;
        Ok(match &self.bias {
            Some(bias) => y.add(bias)?,
            None => y,
        })
    }
}

impl Scope {
    /// Reads the kernel of a causal depthwise convolution as `[channels, taps, 1]`; Hugging Face
    /// files hold `[channels, 1, taps]`.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn depthwise(&self, name: &str, channels: i32, taps: i32) -> Result<Array> {
        let w = self.at(name);
        let torch = [channels, 1, taps];
        if w.shape("weight").is_some_and(|shape| shape == torch) {
            return Ok(self.keep(w.take("weight", &torch)?.reshape(&[channels, taps, 1])?));
        }
        w.tensor("weight", &[channels, taps, 1])
    }
}
