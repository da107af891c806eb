//! Models of voice activity, of the ends of turns, and of speakers.

use crate::{
    error::MynahError,
    pulled::{CallCanceller, aside},
    samples::AudioInput,
};
use std::sync::Arc;

/// A detector in memory. The last handle that is dropped frees it.
#[derive(uniffi::Object)]
pub struct VadModel(pub(crate) mynah::VadModel);

/// A stretch of speech, in seconds.
#[derive(Clone, Copy, Debug, uniffi::Record)]
pub struct SpeechSegment {
    /// Its beginning.
    pub start: f64,
    /// Its end.
    pub end: f64,
}

/// What a detector has heard.
#[derive(Clone, Debug, uniffi::Enum)]
pub enum Detection {
    /// Whether there is speech.
    Speech {
        /// The probability of speech in each frame.
        probabilities: Vec<f32>,
        /// Samples from one frame to the next.
        frame_stride: u32,
        /// Samples a second, in Hz.
        sample_rate: u32,
        /// The stretches of speech.
        segments: Vec<SpeechSegment>,
    },
    /// Whether the speaker has finished.
    Turn {
        /// The probability of that.
        probability: f32,
        /// Whether it is more than the threshold of the model.
        has_ended: bool,
    },
    /// Who speaks when.
    Speakers {
        /// The probability of each speaker in each frame, `[frames][speakers]`.
        probabilities: Vec<Vec<f32>>,
        /// Samples from one frame to the next.
        frame_stride: u32,
        /// Samples a second, in Hz.
        sample_rate: u32,
        /// The stretches of speech of each speaker.
        segments: Vec<Vec<SpeechSegment>>,
    },
}

fn segments(segments: Vec<mynah::SpeechSegment>) -> Vec<SpeechSegment> {
    segments
        .into_iter()
        .map(|segment| SpeechSegment { start: segment.start, end: segment.end })
        .collect()
}

impl From<mynah::Detection> for Detection {
    fn from(detection: mynah::Detection) -> Self {
        match detection {
            mynah::Detection::Speech {
                probabilities,
                frame_stride,
                sample_rate,
                segments: speech,
            } => Detection::Speech {
                probabilities,
                frame_stride: frame_stride as u32,
                sample_rate,
                segments: segments(speech),
            },
            mynah::Detection::Turn { probability, has_ended } => {
                Detection::Turn { probability, has_ended }
            }
            mynah::Detection::Speakers {
                probabilities,
                frame_stride,
                sample_rate,
                segments: speech,
            } => Detection::Speakers {
                probabilities,
                frame_stride: frame_stride as u32,
                sample_rate,
                segments: speech.into_iter().map(segments).collect(),
            },
        }
    }
}

#[uniffi::export]
impl VadModel {
    /// The `model_type` of the config, or the name of the family where it has none.
    pub fn model_type(&self) -> String {
        self.0.model_type().into()
    }

    /// Hears audio of any rate and number of channels.
    ///
    /// # Errors
    /// When a sample is not a number, and when the computation fails or is cancelled.
    pub async fn detect(
        &self,
        audio: AudioInput,
        canceller: Arc<CallCanceller>,
    ) -> Result<Detection, MynahError> {
        let model = self.0.clone();
        Ok(aside(canceller, async move { model.detect(&audio.read()?).await }).await?.into())
    }

    /// Frees the memory of the model.
    ///
    /// # Errors
    /// When the device fails.
    pub async fn unload(&self) -> Result<(), MynahError> {
        Ok(self.0.unload().await?)
    }
}
