//! Log-mel features of recordings of any length, a few seconds at a time.

use crate::{
    error::Result,
    layers::audio::{
        log_mel::{HOP, LogMel, N_FFT},
        stft::reflect,
    },
    media::audio::ReadSamples,
    mlx,
};
use mlx_rs::{Array, ops, transforms::eval};

/// The features of a recording, frame by frame, without those that begin after its end.
pub(super) struct Frames {
    read: ReadSamples,
    /// Samples from half a frame before the next frame on; mirrored before the beginning, silent after
    /// the end.
    samples: Vec<f32>,
    has_begun: bool,
    /// Frames that are left, once the end is known.
    left: Option<usize>,
    given: usize,
    /// The samples of the recording so far.
    taken: usize,
}

impl Frames {
    pub fn new(read: ReadSamples) -> Self {
        Frames { read, samples: Vec::new(), has_begun: false, left: None, given: 0, taken: 0 }
    }

    /// The logarithms of the energies of the next frames `[frames, bins]`, at most `most`; `None` at
    /// the end.
    pub fn next(&mut self, front_end: &LogMel, most: usize) -> Result<Option<Array>> {
        let needed = (most - 1) * HOP + N_FFT;
        while self.left.is_none() && (self.samples.len() < needed || !self.has_begun) {
            let before = self.samples.len();
            let more = (self.read)(&mut self.samples)?;
            self.taken += self.samples.len() - before;
            if !self.has_begun && (!more || self.samples.len() > N_FFT / 2) {
                self.has_begun = true;
                let mut start = self.samples.clone();
                start.resize(N_FFT / 2 + 1, 0.0);
                let mirrored = reflect(&start, N_FFT / 2);
                self.samples.splice(..0, mirrored[..N_FFT / 2].iter().copied());
            }
            if !more {
                self.left = Some(self.taken / HOP - self.given);
                self.samples.resize(self.samples.len() + N_FFT, 0.0);
            }
        }
        let whole = (self.samples.len().saturating_sub(N_FFT)) / HOP + 1;
        let count = most.min(self.left.unwrap_or(whole)).min(whole);
        if count == 0 {
            return Ok(None);
        }
        let energies = front_end.energies(&self.samples[..(count - 1) * HOP + N_FFT])?;
        self.samples.drain(..count * HOP);
        self.given += count;
        self.left = self.left.map(|left| left - count);
        eval([&energies])?;
        Ok(Some(energies))
    }
}

/// A range of the features of a recording that moves forward.
pub(super) struct FrameWindow {
    frames: Frames,
    /// Energies `[frames, bins]` from frame `first` on.
    energies: Option<Array>,
    first: usize,
}

impl FrameWindow {
    pub fn new(frames: Frames) -> Self {
        FrameWindow { frames, energies: None, first: 0 }
    }

    /// The energies of at most `most` frames from frame `from` on, which never decreases.
    pub fn at(&mut self, front_end: &LogMel, from: usize, most: usize) -> Result<Option<Array>> {
        let mut held = self.held();
        while self.first + held < from + most {
            let Some(next) = self.frames.next(front_end, most)? else { break };
            self.energies = Some(match self.energies.take() {
                Some(energies) => ops::concatenate(&[energies, next], 0)?,
                None => next,
            });
            held = self.held();
            let unneeded = from.saturating_sub(self.first).min(held);
            if unneeded == held {
                self.energies = None;
            } else if let Some(energies) = &mut self.energies {
                *energies = mlx::slice(energies, 0, unneeded as i32, held as i32)?.contiguous()?;
                eval([&*energies])?;
            }
            self.first += unneeded;
            held -= unneeded;
        }
        let Some(energies) = &self.energies else { return Ok(None) };
        let start = from - self.first;
        if start >= held {
            return Ok(None);
        }
        Ok(Some(mlx::slice(energies, 0, start as i32, held.min(start + most) as i32)?))
    }

    fn held(&self) -> usize {
        self.energies.as_ref().map_or(0, |energies| energies.dim(0) as usize)
    }
}
