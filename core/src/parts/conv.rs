//! Causal depthwise convolution over the sequence, for recurrent and hybrid models.

use crate::{
    error::Result,
    layer::{CachePlan, State},
    mlx,
    weights::Scope,
};
use mlx_rs::{Array, ops};

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

    /// Convolves `[batch, length, channels]`, after the tail of what came before.
    pub(crate) fn forward(&self, x: &Array, tail: &mut Tail) -> Result<Array> {
        let keep = self.taps - 1;
        let padded = match tail.0.take() {
            Some(tail) => ops::concatenate(&[&tail, x], 1)?,
            None => {
                let zeros = ops::zeros_dtype(&[x.dim(0), keep, self.channels], x.dtype())?;
                ops::concatenate(&[&zeros, x], 1)?
            }
        };
        let length = padded.dim(1);
        tail.0 = Some(mlx::slice(&padded, 1, length - keep, length)?);
        let y = ops::conv1d(&padded, &self.kernel, 1, 0, 1, self.channels)?;
        Ok(match &self.bias {
            Some(bias) => y.add(bias)?,
            None => y,
        })
    }
}

/// The last `taps - 1` inputs of a causal convolution, `[batch, taps - 1, channels]`.
#[derive(Clone, Default)]
pub struct Tail(Option<Array>);

impl State for Tail {
    fn arrays(&mut self) -> Vec<&mut Array> {
        self.0.iter_mut().collect()
    }
    fn reserve(&mut self, _: i32) -> Result<()> {
        Ok(())
    }
    fn rewinds(&self, from: i32, to: i32) -> bool {
        from == to
    }
    fn snapshot(&self) -> Box<dyn State> {
        Box::new(self.clone())
    }
}

impl Tail {
    /// Nothing came before: zeros.
    pub fn new(_: &CachePlan) -> Self {
        Tail(None)
    }
}
