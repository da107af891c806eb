//! The log-mel features of [Radford et al. 2022](https://arxiv.org/abs/2212.04356): 16 kHz, frames of
//! 25 ms every 10 ms under a Hann window, Slaney filters, decibels clamped to a range of 80 below the
//! loudest.

use crate::{
    error::Result,
    layers::audio::{
        filter_bank::{FilterBank, MelScale},
        stft::{Stft, Window, reflect},
    },
};
use mlx_rs::{Array, ops};

/// Samples a second.
pub const SAMPLE_RATE: u32 = 16_000;
/// Samples from one frame to the next.
pub const HOP: usize = 160;
/// Samples of a frame.
pub const N_FFT: usize = 400;

/// Samples to log-mel features.
pub struct LogMel {
    stft: Stft,
    filters: Array,
}

impl LogMel {
    /// Features of `bins` mel bins.
    pub fn new(bins: i32) -> Self {
        let filters = FilterBank::whole(f64::from(SAMPLE_RATE), N_FFT, bins as usize);
        LogMel {
            stft: Stft::new(&Window::PeriodicHann.values(N_FFT), N_FFT, HOP),
            filters: filters.weights(MelScale::Slaney),
        }
    }

    /// The number of mel bins.
    pub fn bins(&self) -> i32 {
        self.filters.dim(1)
    }

    /// The logarithms (base 10) of the mel energies of all whole frames, `[frames, bins]`; samples are
    /// not padded.
    ///
    /// # Errors
    /// As [`Stft::forward`].
    pub fn energies(&self, samples: &[f32]) -> Result<Array> {
        let energies = self.stft.power(samples)?.matmul(&self.filters)?;
        Ok(ops::maximum(energies, Array::from_f32(1e-10))?.log10()?)
    }

    /// Energies to features: at least `loudest - 8`, then shifted and scaled to about -1 to 1.
    ///
    /// # Errors
    /// [`Error::Mlx`](crate::Error::Mlx).
    pub fn scaled(energies: &Array, loudest: &Array) -> Result<Array> {
        let floor = loudest.subtract(Array::from_f32(8.0))?;
        let clamped = ops::maximum(energies, floor)?;
        Ok(clamped.add(Array::from_f32(4.0))?.divide(Array::from_f32(4.0))?)
    }

    /// The features of a whole recording, mirrored at both ends, without its last frame:
    /// `[samples / 160, bins]`.
    ///
    /// # Errors
    /// As [`Stft::forward`].
    pub fn forward(&self, samples: &[f32]) -> Result<Array> {
        let energies = self.energies(&reflect(samples, N_FFT / 2))?;
        let energies = crate::mlx::slice(&energies, 0, 0, energies.dim(0) - 1)?;
        Self::scaled(&energies, &energies.max(None)?)
    }
}
