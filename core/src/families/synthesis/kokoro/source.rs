//! The source of the generator: sines of the pitch and of its harmonics
//! ([Wang et al. 2019](https://arxiv.org/abs/1810.11946)), as spectra of magnitudes and phases.

use super::style::repeat;
use crate::{
    families::prelude::*,
    layers::audio::{
        noise::Noise,
        stft::{Stft, reflect},
    },
};
use std::f32::consts::PI;

const HARMONICS: i32 = 9;
const SAMPLE_RATE: f32 = 24_000.0;
const AMPLITUDE: f32 = 0.1;
const VOICED_NOISE: f32 = 0.003;
/// Below this pitch, in Hz, a frame has no voice.
const LEAST_PITCH: f32 = 10.0;

pub(super) struct Source {
    merge: Linear,
    /// Samples for each number of the pitch.
    scale: i32,
}

impl Source {
    pub(super) fn read(w: &Scope, scale: i32) -> Result<Self> {
        Ok(Source { merge: w.linear_with_bias("l_linear", HARMONICS, 1)?, scale })
    }

    /// Pitch `[1, length, 1]` in Hz to magnitudes and phases `[1, frames, n_fft + 2]`.
    pub(super) fn forward(
        &self,
        f0: &Array,
        stft: &Stft,
        n_fft: i32,
        noise: Noise,
    ) -> Result<Array> {
        let number = Array::from_f32;
        let f0 = f0.as_dtype(Dtype::Float32)?;
        let harmonics = ops::arange::<_, f32>(1, HARMONICS + 1, None)?;
        // Cycles for each sample, then the phase after each number of the pitch.
        let cycles = f0.multiply(harmonics)?.divide(number(SAMPLE_RATE))?.remainder(number(1.0))?;
        let phase = cycles.cumsum(1, false, true)?.multiply(number(2.0))?.multiply(number(PI))?;
        let phase = self.interpolate(&phase.multiply(number(self.scale as f32))?)?;
        let voiced = repeat(&f0.gt(number(LEAST_PITCH))?.as_dtype(Dtype::Float32)?, self.scale)?;
        let mut sines = phase.sin()?.multiply(number(AMPLITUDE))?.multiply(&voiced)?;
        if noise != Noise::Zero {
            let unvoiced = number(1.0).subtract(&voiced)?.multiply(number(AMPLITUDE / 3.0))?;
            let strength = voiced.multiply(number(VOICED_NOISE))?.add(unvoiced)?;
            sines =
                sines.add(noise.normal(sines.shape(), 0, Dtype::Float32)?.multiply(strength)?)?;
        }
        let source: Vec<f32> = mlx::to_vec(&ops::tanh(&self.merge.forward(&sines)?)?)?;
        let spectra = stft.forward(&reflect(&source, n_fft as usize / 2))?;
        let phase = ops::atan2(&spectra.imag()?, &spectra.real()?)?;
        Ok(ops::concatenate(&[spectra.abs()?, phase], -1)?.expand_dims(0)?)
    }

    /// `scale` samples for each step of `[1, length, width]`, on straight lines between their middles.
    fn interpolate(&self, x: &Array) -> Result<Array> {
        let (length, scale) = (x.dim(1), self.scale);
        let places = ops::arange::<_, f32>(0, length * scale, None)?;
        let places = places.multiply(Array::from_f32(1.0 / scale as f32))?;
        let offset = Array::from_f32(0.5 / scale as f32 - 0.5);
        let places = ops::maximum(&places.add(offset)?, Array::from_f32(0.0))?;
        let low = places.floor()?;
        let share = places.subtract(&low)?.expand_dims(-1)?;
        let low = low.as_dtype(Dtype::Int32)?;
        let high = ops::minimum(&low.add(Array::from_int(1))?, Array::from_int(length - 1))?;
        let (before, after) = (x.take_axis(low, 1)?, x.take_axis(high, 1)?);
        let rest = Array::from_f32(1.0).subtract(&share)?;
        Ok(before.multiply(rest)?.add(after.multiply(share)?)?)
    }
}
