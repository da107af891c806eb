//! A recording that can be read more than once, from the beginning.

use super::file::{AudioFile, MonoReader};
use crate::error::Result;
use std::{path::PathBuf, sync::Arc};

/// The mean of the channels of a recording, at the rate of a model.
#[derive(Clone)]
pub(crate) enum Recording {
    /// Samples at that rate.
    Samples(Arc<[f32]>),
    /// A file at any rate.
    File(PathBuf),
}

/// Appends the next samples, at least one; `false` at the end.
pub(crate) type ReadSamples = Box<dyn FnMut(&mut Vec<f32>) -> Result<bool>>;

impl Recording {
    /// Reads it from the beginning, at `sample_rate` Hz.
    ///
    /// # Errors
    /// Those of [`AudioFile::open`] and [`MonoReader::new`].
    pub fn open(&self, sample_rate: u32) -> Result<ReadSamples> {
        Ok(match self {
            Recording::Samples(samples) => {
                let mut samples = Some(samples.clone());
                Box::new(move |out| {
                    let Some(samples) = samples.take() else { return Ok(false) };
                    out.extend_from_slice(&samples);
                    Ok(!samples.is_empty())
                })
            }
            Recording::File(path) => {
                let mut reader = MonoReader::new(AudioFile::open(path)?, sample_rate)?;
                Box::new(move |out| reader.read(out))
            }
        })
    }

    /// Its first samples, at most `most` of them.
    ///
    /// # Errors
    /// As [`Recording::open`], and those of reading.
    pub fn start(&self, sample_rate: u32, most: usize) -> Result<Vec<f32>> {
        let (mut read, mut samples) = (self.open(sample_rate)?, Vec::new());
        while samples.len() < most && read(&mut samples)? {}
        samples.truncate(most);
        Ok(samples)
    }
}
