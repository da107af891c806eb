//! The handle of a model of voice activity, turns, or speakers.

use crate::{
    api::{location::Location, network},
    engine::{
        Turn,
        engine_model::{EngineModel, Place, find},
    },
    error::{Error, Result},
    media::audio::Audio,
    models::{detector::Task, network::Kind, segments::SpeechSegment},
};
use std::sync::Arc;

/// A model of voice activity, of the ends of turns, or of speakers, in memory. Handles are cheap to
/// clone and may be used from any thread. Dropping the last handle frees the memory.
#[derive(Clone)]
pub struct VadModel {
    place: Arc<Place>,
    task: Task,
}

/// What a model has heard.
#[derive(Clone, Debug, PartialEq)]
pub enum Detection {
    /// Whether there is speech.
    Speech {
        /// The probability of speech in each frame.
        probabilities: Vec<f32>,
        /// Samples from one frame to the next.
        frame_stride: usize,
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
        frame_stride: usize,
        /// Samples a second, in Hz.
        sample_rate: u32,
        /// The stretches of speech of each speaker.
        segments: Vec<Vec<SpeechSegment>>,
    },
}

/// The probabilities of a recording.
struct Heard {
    rows: Vec<Vec<f32>>,
    frame_stride: usize,
    /// Samples before the first frame.
    offset: usize,
    sample_rate: u32,
    seconds: f64,
}

impl VadModel {
    /// Loads a detector from a hub or a directory.
    ///
    /// # Errors
    /// As [`Model::load`](crate::Model::load).
    pub async fn load(location: impl Into<Location>) -> Result<Self> {
        let about = |model: &EngineModel| Ok(model.detector()?.task());
        let (place, task) = network::load(location.into(), Kind::Detector, about).await?;
        Ok(VadModel { place, task })
    }

    /// Hears audio of any rate and number of channels.
    ///
    /// # Errors
    /// [`Error::Audio`] for a sample that is not a number; [`Error::MemoryLimit`]; [`Error::Mlx`].
    pub async fn detect(&self, audio: &Audio) -> Result<Detection> {
        self.detect_parts(audio, usize::MAX, |_| {}).await
    }

    /// As [`VadModel::detect`], in parts of `frames` frames of the audio, as if they came one after the
    /// other; `out` gets the probabilities of each part on the engine thread.
    ///
    /// # Errors
    /// As [`VadModel::detect`]; [`Error::Option`] for parts of no frames.
    pub async fn detect_parts(
        &self,
        audio: &Audio,
        frames: usize,
        mut out: impl FnMut(&[Vec<f32>]) + Send + 'static,
    ) -> Result<Detection> {
        /// Most audio for one turn of the engine, in samples.
        const LONGEST: usize = 1 << 20;
        if frames == 0 {
            return Err(Error::option("frames", "a part must have at least one"));
        }
        let (id, given) = (self.place.id, audio.sample_rate);
        let rate = move || Ok(find(id)?.detector()?.sample_rate(given));
        let sample_rate = self.place.engine.run(rate).await?;
        let samples = audio.to_mono(sample_rate)?;
        let seconds = samples.len() as f64 / f64::from(sample_rate);
        let part = (frames as f64 * f64::from(sample_rate) / f64::from(given)).max(1.0);
        let part = (part as usize).min(LONGEST);
        let begin = move || {
            let detector = find(id)?.detector()?.clone();
            let frame_stride = detector.frame_stride(sample_rate);
            let mut stream = detector.stream(sample_rate)?;
            let (mut done, mut rows) = (0, Vec::new());
            Ok(move || {
                let end = samples.len().min(done + part);
                let found =
                    if done < end { stream.push(&samples[done..end])? } else { stream.finish()? };
                out(&found);
                rows.extend(found);
                let is_last = done == end;
                done = end;
                let offset = stream.offset();
                let rows = is_last.then(|| std::mem::take(&mut rows));
                Ok(rows.map(|rows| Heard { rows, frame_stride, offset, sample_rate, seconds }))
            })
        };
        Ok(self.detection(self.place.engine.run_in_turns(Turn::Ready, begin).await?))
    }

    fn detection(&self, heard: Heard) -> Detection {
        let Heard { rows, frame_stride, offset, sample_rate, seconds } = heard;
        let frame = frame_stride as f64 / f64::from(sample_rate);
        let offset = offset as f64 / f64::from(sample_rate);
        let class = |class: usize| -> Vec<f32> {
            rows.iter().filter_map(|row| row.get(class).copied()).collect()
        };
        match self.task {
            Task::Speech(rules) => {
                let probabilities = class(0);
                let segments = rules.segments(&probabilities, frame, seconds);
                Detection::Speech { probabilities, frame_stride, sample_rate, segments }
            }
            Task::Turn { threshold } => {
                let probability = class(0).last().copied().unwrap_or(0.0);
                Detection::Turn { probability, has_ended: probability > threshold }
            }
            Task::Speakers(rules) => {
                let speakers = rows.first().map_or(0, Vec::len);
                let later = |segment: SpeechSegment| SpeechSegment {
                    start: segment.start + offset,
                    end: segment.end + offset,
                };
                let of_speaker = |i: usize| {
                    let segments = rules.segments(&class(i), frame, seconds);
                    segments.into_iter().map(later).collect()
                };
                let segments = (0..speakers).map(of_speaker).collect();
                Detection::Speakers { probabilities: rows, frame_stride, sample_rate, segments }
            }
        }
    }
}
