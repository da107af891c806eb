//! A head that predicts the logarithm of the magnitude and the phase of each frequency of a spectrum, and
//! transforms it to samples ([Siuzdak 2023](https://arxiv.org/abs/2306.00814)).

use crate::{
    checkpoint::scope::Scope,
    error::Result,
    layers::{
        audio::stft::{Stft, Window},
        linear::Linear,
    },
    mlx,
};
use mlx_rs::{Array, Dtype, complex64, ops};

/// The head with its projection.
pub struct IstftHead {
    output: Linear,
    stft: Stft,
    /// Samples that are cut off at both ends.
    ends: i32,
    /// Whether the lowest and the highest frequency are silent.
    is_silent_at_edges: bool,
}

/// The sizes of an [`IstftHead`].
#[derive(Clone, Copy, Debug)]
pub struct IstftSizes {
    /// Width of the input.
    pub width: i32,
    /// Samples of a frame.
    pub n_fft: i32,
    /// Samples from one frame to the next.
    pub hop: i32,
    /// Samples that are cut off at both ends.
    pub ends: i32,
}

impl Scope {
    /// Reads `out`.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn istft_head(&self, sizes: IstftSizes) -> Result<IstftHead> {
        let IstftSizes { width, n_fft, hop, ends } = sizes;
        self.ignore("istft");
        let window = Window::PeriodicHann.values(n_fft as usize);
        let stft = Stft::new(&window, n_fft as usize, hop as usize);
        let output = self.linear("out", width, n_fft + 2)?;
        Ok(IstftHead { output, stft, ends, is_silent_at_edges: false })
    }
}

impl IstftHead {
    /// The head with the lowest and the highest frequency at zero.
    #[must_use]
    pub fn silent_at_edges(self) -> Self {
        IstftHead { is_silent_at_edges: true, ..self }
    }

    /// `[batch, frames, width]` to samples `[batch, samples]`.
    pub(crate) fn forward(&self, x: &Array) -> Result<Array> {
        let parts = self.output.forward(x)?.as_dtype(Dtype::Float32)?.split_equal(2, -1)?;
        let mut magnitude = ops::minimum(&parts[0].exp()?, mlx::scalar(1e2, Dtype::Float32)?)?;
        if self.is_silent_at_edges {
            let inner = mlx::slice(&magnitude, 2, 1, magnitude.dim(2) - 1)?;
            magnitude = ops::pad(&inner, &[(0, 0), (0, 0), (1, 1)], None, None)?;
        }
        let spectra = polar(&magnitude, &parts[1])?;
        self.stft.inverse_without(&spectra, self.ends)
    }
}

/// Complex numbers with these magnitudes and phases.
pub fn polar(magnitude: &Array, phase: &Array) -> Result<Array> {
    let imaginary = phase.sin()?.multiply(Array::from_complex(complex64::new(0.0, 1.0)))?;
    Ok(magnitude.multiply(phase.cos()?.add(imaginary)?)?)
}
