//! The log-mel features of NVIDIA's NeMo: 16 kHz, pre-emphasis, frames of 25 ms every 10 ms, natural
//! logarithms, each bin normalised over the recording.

use crate::{
    error::Result,
    layers::audio::{
        filter_bank::{FilterBank, MelScale},
        stft::{Stft, Window},
    },
};
use mlx_rs::{Array, ops};

/// The shape of the front end, as checkpoints give it.
#[derive(Clone, Copy, Debug)]
pub struct NormalizedLogMelSizes {
    /// Samples a second, in Hz.
    pub sample_rate: u32,
    /// The length of the Fourier transform.
    pub n_fft: usize,
    /// Samples of a window.
    pub window: usize,
    /// Samples from one frame to the next.
    pub hop: usize,
    /// The number of mel bins.
    pub bins: usize,
    /// The share of the sample before that is subtracted from each sample.
    pub pre_emphasis: f32,
    /// Whether the last frame, which lies half behind the recording, is one of the features. It is
    /// nothing but zeros otherwise.
    pub is_last_frame_valid: bool,
}

/// Samples to features.
pub struct NormalizedLogMel {
    stft: Stft,
    filters: Array,
    /// Its sizes.
    pub sizes: NormalizedLogMelSizes,
}

/// Added to energies before the logarithm: `2^-24`.
const GUARD: f32 = 5.960_464_5e-8;

impl NormalizedLogMel {
    /// A front end of these sizes.
    pub fn new(sizes: NormalizedLogMelSizes) -> Self {
        let window = Window::SymmetricHann.values(sizes.window);
        let filters = FilterBank::whole(f64::from(sizes.sample_rate), sizes.n_fft, sizes.bins);
        NormalizedLogMel {
            stft: Stft::new(&window, sizes.n_fft, sizes.hop),
            filters: filters.weights(MelScale::Slaney),
            sizes,
        }
    }

    /// The features of a recording with silence around it, `[samples / hop + 1, bins]`.
    ///
    /// # Errors
    /// As [`Stft::forward`].
    pub fn forward(&self, samples: &[f32]) -> Result<Array> {
        let half = self.sizes.n_fft / 2;
        let mut padded = vec![0.0; half];
        padded.extend(pre_emphasized(samples, self.sizes.pre_emphasis));
        padded.resize(padded.len() + half, 0.0);
        let energies = self.stft.power(&padded)?.matmul(&self.filters)?;
        let log = energies.add(Array::from_f32(GUARD))?.log()?;
        let frames = self.valid(log.dim(0));
        let missing = log.dim(0) - frames;
        let log = crate::mlx::slice(&log, 0, 0, frames)?;
        let mean = log.mean_axes(&[0], true)?;
        // The unbiased variance of a single frame is not defined: nothing is divided.
        let free = i32::from(frames > 1);
        let deviation = ops::sqrt(log.var_axes(&[0], true, free)?)?;
        let normal = log.subtract(mean)?.divide(deviation.add(Array::from_f32(1e-5))?)?;
        Ok(ops::pad(&normal, &[(0, missing), (0, 0)], None, None)?)
    }

    /// How many of the first `frames` frames are features, at least one.
    pub fn valid(&self, frames: i32) -> i32 {
        (frames - i32::from(!self.sizes.is_last_frame_valid)).max(1)
    }
}

/// Each sample without `share` of the one before.
fn pre_emphasized(samples: &[f32], share: f32) -> impl Iterator<Item = f32> {
    let before = std::iter::once(0.0).chain(samples.iter().copied());
    samples.iter().zip(before).map(move |(sample, before)| sample - share * before)
}
