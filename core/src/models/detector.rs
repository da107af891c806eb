//! Models that listen for something: voice activity, the end of a turn, who speaks.

use crate::{error::Result, models::segments::SegmentRules};

/// Probabilities of speech, of the end of a turn, or of each speaker.
pub trait Detector {
    /// What it listens for.
    fn task(&self) -> Task;

    /// The rate, in Hz, at which it hears audio of rate `given`.
    fn sample_rate(&self, given: u32) -> u32;

    /// Samples from one frame of probabilities to the next.
    fn frame_stride(&self, sample_rate: u32) -> usize;

    /// Begins to hear a recording of one channel.
    ///
    /// # Errors
    /// [`Error::Option`](crate::Error::Option) for a rate that it does not hear.
    fn stream(&self, sample_rate: u32) -> Result<Box<dyn DetectorStream>>;
}

/// What a detector listens for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Task {
    /// Speech, in each frame.
    Speech(SegmentRules),
    /// Whether the speaker has finished, once at the end; more probable than this is yes.
    Turn {
        /// The least probability of a finished turn.
        threshold: f32,
    },
    /// Each speaker, in each frame.
    Speakers(SegmentRules),
}

/// A recording that a detector is hearing.
pub trait DetectorStream {
    /// Hears further samples between -1 and 1. Returns the probabilities of the frames that are
    /// complete, `[frames][classes]`.
    ///
    /// # Errors
    /// [`Error::Mlx`](crate::Error::Mlx).
    fn push(&mut self, samples: &[f32]) -> Result<Vec<Vec<f32>>>;

    /// How many samples come before the first frame, once the recording has ended.
    fn offset(&self) -> usize {
        0
    }

    /// Ends the recording. Returns the probabilities of the frames that are left.
    ///
    /// # Errors
    /// [`Error::Mlx`](crate::Error::Mlx).
    fn finish(&mut self) -> Result<Vec<Vec<f32>>>;
}
