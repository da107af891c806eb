//! Kaldi's filter bank features (`compute-fbank-feats`): 16 kHz, frames of 25 ms every 10 ms that lie in
//! the recording as a whole, no dither, each without its mean and with pre-emphasis, natural logarithms;
//! and the stacking of frames and the normalisation that FunASR adds.

use crate::{
    error::Result,
    layers::audio::{
        filter_bank::{FilterBank, MelScale},
        stft::{Window, frames},
    },
    mlx,
};
use mlx_rs::{Array, fft::rfft, ops};

const SAMPLE_RATE: f64 = 16_000.0;
const WINDOW: usize = 400;
const HOP: usize = 160;
const N_FFT: usize = 512;
const PRE_EMPHASIS: f32 = 0.97;
/// The least energy before the logarithm, as in mlx-audio.
const FLOOR: f32 = 1e-8;
/// Samples are 16-bit integers to Kaldi.
const FULL_SCALE: f32 = 32_768.0;

/// Samples to filter bank features.
pub struct Fbank {
    window: Array,
    filters: Array,
}

impl Fbank {
    /// Features of `bins` mel bins from 20 Hz on.
    pub fn new(window: Window, bins: usize) -> Self {
        let filters = FilterBank { low: 20.0, ..FilterBank::whole(SAMPLE_RATE, N_FFT, bins) };
        Fbank {
            window: Array::from_slice(&window.values(WINDOW), &[WINDOW as i32]),
            filters: filters.weights(MelScale::Kaldi),
        }
    }

    /// The features of all whole frames, `[frames, bins]`. A recording of less than one frame is
    /// followed by silence.
    ///
    /// # Errors
    /// [`Error::Mlx`](crate::Error::Mlx).
    pub fn forward(&self, samples: &[f32]) -> Result<Array> {
        let mut samples: Vec<f32> = samples.iter().map(|sample| sample * FULL_SCALE).collect();
        samples.resize(samples.len().max(WINDOW), 0.0);
        let x = frames(&samples, WINDOW as i32, HOP as i32)?;
        let x = x.subtract(x.mean_axes(&[1], true)?)?;
        // As in mlx-audio, the first sample of a frame keeps its value; Kaldi leaves 0.03 of it.
        let (first, last) = (mlx::slice(&x, 1, 0, 1)?, WINDOW as i32 - 1);
        let before = mlx::slice(&x, 1, 0, last)?.multiply(Array::from_f32(PRE_EMPHASIS))?;
        let rest = mlx::slice(&x, 1, 1, WINDOW as i32)?.subtract(before)?;
        let x = ops::concatenate(&[first, rest], 1)?;
        let spectra = rfft(x.multiply(&self.window)?, N_FFT as i32, None)?;
        let energies = spectra.abs()?.square()?.matmul(&self.filters)?;
        Ok(ops::maximum(energies, Array::from_f32(FLOOR))?.log()?)
    }
}

/// Stacks `count` frames from every `step`-th one on: `[frames, bins]` to
/// `[frames / step, count · bins]`, rounded up. The first frame is repeated in front and the last one
/// behind, so that every stack is whole.
///
/// # Errors
/// [`Error::Mlx`](crate::Error::Mlx).
pub fn stack_frames(x: &Array, count: i32, step: i32) -> Result<Array> {
    let length = x.dim(0);
    let stacks = (length + step - 1) / step;
    let places: Vec<i32> = (0..stacks)
        .flat_map(|stack| (0..count).map(move |i| stack * step + i - (count - 1) / 2))
        .map(|place| place.clamp(0, length - 1))
        .collect();
    let places = Array::from_slice(&places, &[stacks, count]);
    Ok(x.take_axis(places, 0)?.reshape(&[stacks, -1])?)
}
