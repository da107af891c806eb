//! The short-time Fourier transform and its inverse.

use crate::error::{Error, Result};
use mlx_rs::{
    Array,
    fft::{irfft, rfft},
    ops,
};
use std::f64::consts::TAU;

/// A window, and the number of samples from one frame to the next.
pub struct Stft {
    /// `[n_fft]`; a shorter window has zeros on both sides.
    window: Array,
    n_fft: i32,
    hop: i32,
}

/// The windows that front ends use. A symmetric window of `n` samples is a periodic one of `n - 1`.
#[derive(Clone, Copy, Debug)]
pub enum Window {
    /// `sin²`, of period `n`.
    PeriodicHann,
    /// `sin²`, of period `n - 1`.
    SymmetricHann,
    /// A Hann window over a pedestal of 0.08, symmetric.
    Hamming,
    /// A symmetric Hann window to the power of 0.85, as Kaldi has it.
    Povey,
}

impl Window {
    /// Its values at `length` samples.
    pub fn values(self, length: usize) -> Vec<f32> {
        let period = if matches!(self, Window::PeriodicHann) { length } else { length - 1 };
        let value = |i: usize| {
            let cosine = (TAU * i as f64 / period as f64).cos();
            match self {
                Window::PeriodicHann | Window::SymmetricHann => 0.5 - 0.5 * cosine,
                Window::Hamming => 0.54 - 0.46 * cosine,
                Window::Povey => (0.5 - 0.5 * cosine).powf(0.85),
            }
        };
        (0..length).map(|i| value(i) as f32).collect()
    }
}

impl Stft {
    /// Transforms frames of `n_fft` samples under a window of at most as many, `hop` samples apart.
    pub fn new(window: &[f32], n_fft: usize, hop: usize) -> Self {
        let mut centred = vec![0.0; n_fft];
        let left = (n_fft - window.len()) / 2;
        centred[left..left + window.len()].copy_from_slice(window);
        let window = Array::from_slice(&centred, &[n_fft as i32]);
        Stft { window, n_fft: n_fft as i32, hop: hop as i32 }
    }

    /// Samples to the complex spectra of all whole frames, `[frames, n_fft / 2 + 1]`.
    ///
    /// # Errors
    /// [`Error::Internal`] for less than one frame; [`Error::Mlx`].
    pub fn forward(&self, samples: &[f32]) -> Result<Array> {
        let frames = frames(samples, self.n_fft, self.hop)?;
        Ok(rfft(frames.multiply(&self.window)?, None, None)?)
    }

    /// The squares of the magnitudes, likewise.
    ///
    /// # Errors
    /// As [`Stft::forward`].
    pub fn power(&self, samples: &[f32]) -> Result<Array> {
        Ok(self.forward(samples)?.abs()?.square()?)
    }

    /// Complex spectra `[batch, frames, n_fft / 2 + 1]` to samples `[batch, samples]`: the frames under
    /// the window, added where they overlap, divided by the sum of the squared windows. The first and
    /// the last half frame, which a transform with padded ends has added, are cut off.
    ///
    /// # Errors
    /// [`Error::Mlx`].
    pub fn inverse(&self, spectra: &Array) -> Result<Array> {
        self.inverse_without(spectra, self.n_fft / 2)
    }

    /// As [`Stft::inverse`], with another number of samples cut off at both ends.
    ///
    /// # Errors
    /// [`Error::Mlx`].
    pub fn inverse_without(&self, spectra: &Array, ends: i32) -> Result<Array> {
        let (batch, frames) = (spectra.dim(0), spectra.dim(1));
        let frame = irfft(spectra, self.n_fft, None)?.multiply(&self.window)?;
        let squares = self.window.square()?;
        let weights = ops::broadcast_to(&squares, &[1, frames, self.n_fft])?;
        let length = self.n_fft + (frames - 1) * self.hop;
        let added = self.overlap_add(&frame, length)?;
        // Where no window reaches, there is nothing to divide.
        let weights = ops::maximum(self.overlap_add(&weights, length)?, Array::from_f32(1e-11))?;
        let samples = crate::mlx::slice(&added.divide(weights)?, 1, ends, length - ends)?;
        Ok(samples.reshape(&[batch, -1])?)
    }

    /// Frames `[batch, frames, n_fft]` to their sum `[batch, length]`.
    fn overlap_add(&self, frames: &Array, length: i32) -> Result<Array> {
        let (batch, count) = (frames.dim(0), frames.dim(1));
        // Each frame is so many pieces of one hop; piece `i` of all frames is a sequence of its own.
        let pieces = (self.n_fft + self.hop - 1) / self.hop;
        let whole =
            ops::pad(frames, &[(0, 0), (0, 0), (0, pieces * self.hop - self.n_fft)], None, None)?;
        let whole = whole.reshape(&[batch, count, pieces, self.hop])?;
        let mut sum: Option<Array> = None;
        for piece in 0..pieces {
            let part = crate::mlx::slice(&whole, 2, piece, piece + 1)?;
            let part = part.reshape(&[batch, count, self.hop])?;
            let part = ops::pad(&part, &[(0, 0), (piece, pieces - 1 - piece), (0, 0)], None, None)?;
            sum = Some(match sum {
                Some(sum) => sum.add(part)?,
                None => part,
            });
        }
        let sum = sum.ok_or_else(|| Error::Internal("a frame has no samples".into()))?;
        crate::mlx::slice(&sum.reshape(&[batch, -1])?, 1, 0, length)
    }
}

/// The whole frames of `length` samples, `hop` samples apart: `[frames, length]`.
///
/// # Errors
/// [`Error::Internal`] for less than one frame; [`Error::Mlx`].
pub fn frames(samples: &[f32], length: i32, hop: i32) -> Result<Array> {
    let count = samples.len() as i32;
    if count < length {
        return Err(Error::Internal(format!("a frame has {length} samples, not {count}")));
    }
    let samples = Array::from_slice(samples, &[count]);
    let shape = [(count - length) / hop + 1, length];
    Ok(ops::as_strided(&samples, &shape[..], &[i64::from(hop), 1][..], 0)?)
}

/// Samples with `pad` more on each side, mirrored at the first and the last one.
pub fn reflect(samples: &[f32], pad: usize) -> Vec<f32> {
    let (length, pad) = (samples.len() as isize, pad as isize);
    if length < 2 {
        let value = samples.first().copied().unwrap_or(0.0);
        return vec![value; (length + 2 * pad) as usize];
    }
    let period = 2 * (length - 1);
    let place = |i: isize| {
        let i = i.rem_euclid(period);
        i.min(period - i) as usize
    };
    (-pad..length + pad).map(|i| samples[place(i)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mlx;

    #[test]
    fn padding_mirrors_as_often_as_it_must() {
        assert_eq!(reflect(&[1.0, 2.0, 3.0], 2), [3.0, 2.0, 1.0, 2.0, 3.0, 2.0, 1.0]);
        assert_eq!(reflect(&[1.0, 2.0], 3), [2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0]);
        assert_eq!(reflect(&[5.0], 2), [5.0; 5]);
        assert_eq!(reflect(&[], 1), [0.0; 2]);
    }

    #[test]
    fn the_inverse_gives_back_the_samples() {
        for (n_fft, hop) in [(16, 4), (20, 5), (16, 6)] {
            let stft = Stft::new(&Window::PeriodicHann.values(n_fft), n_fft, hop);
            let samples: Vec<f32> = (0..hop * 12).map(|i| (i as f32 * 0.7).sin()).collect();
            let spectra = stft.forward(&reflect(&samples, n_fft / 2)).unwrap();
            let again = stft.inverse(&spectra.expand_dims(0).unwrap()).unwrap();
            let again: Vec<f32> = mlx::to_vec(&again).unwrap();
            assert!(again.len() > hop * 10 && again.len() <= samples.len());
            let close = again.iter().zip(&samples).all(|(a, b)| (a - b).abs() < 1e-4);
            assert!(close, "{n_fft} {hop}");
        }
    }
}
