//! Audio that is in memory as a whole.

use super::{
    file::{AudioFile, mean_of_channels},
    resampler::Resampler,
    wav::WavWriter,
};
use crate::error::Result;
use std::path::Path;

/// Samples of one or more channels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Audio {
    /// The samples, channel after channel within each frame: `left, right, left, right, …`.
    pub samples: Vec<f32>,
    /// The number of channels.
    pub channels: usize,
    /// Frames a second, in Hz.
    pub sample_rate: u32,
}

impl Audio {
    /// Samples of one channel.
    pub fn mono(samples: Vec<f32>, sample_rate: u32) -> Self {
        Audio { samples, channels: 1, sample_rate }
    }

    /// Decodes a whole file: WAV, AIFF, FLAC, MP3, AAC or ALAC in M4A, Vorbis in Ogg.
    ///
    /// # Errors
    /// Those of [`AudioFile::open`] and [`AudioFile::next_block`].
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let mut file = AudioFile::open(path)?;
        let mut samples = Vec::new();
        while let Some(block) = file.next_block()? {
            samples.extend_from_slice(block);
        }
        Ok(Audio { samples, channels: file.channels(), sample_rate: file.sample_rate() })
    }

    /// One channel, the mean of all, at another rate.
    ///
    /// # Errors
    /// Those of [`Resampler::new`]; [`Error::Audio`](crate::Error::Audio) for a sample that is not a
    /// number.
    pub fn to_mono(&self, sample_rate: u32) -> Result<Vec<f32>> {
        let mut resampler = Resampler::new(self.sample_rate, sample_rate)?;
        let mut mono = Vec::new();
        resampler.push(&self.mean_of_channels()?, &mut mono);
        resampler.finish(&mut mono);
        Ok(mono)
    }

    /// One channel, the mean of all, at the same rate.
    ///
    /// # Errors
    /// [`Error::Audio`](crate::Error::Audio) for a sample that is not a number.
    pub(crate) fn mean_of_channels(&self) -> Result<Vec<f32>> {
        mean_of_channels("the audio", &self.samples, self.channels)
    }

    /// Writes a WAV file of 32-bit floats.
    ///
    /// # Errors
    /// Those of [`WavWriter`].
    pub fn write_wav(&self, path: impl AsRef<Path>) -> Result<()> {
        let mut writer = WavWriter::create(path, self.sample_rate, self.channels)?;
        writer.write(&self.samples)?;
        writer.finish()
    }
}
