//! Options of a transcription.

use crate::{
    error::{Error, Result},
    models::speech::SpeechRequest,
};

/// Options of a transcription. The defaults are those of the code of OpenAI; a model that has no use for
/// an option ignores it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TranscribeOptions {
    /// The language that is spoken, such as `en`; detected when absent.
    pub language: Option<String>,
    /// What is written.
    pub task: Task,
    /// Which times the segments have.
    pub timestamps: Timestamps,
    /// Text that comes before the recording: names and spellings that the model then prefers.
    pub prompt: Option<String>,
    /// Sampling temperatures, one after the other until a window passes the thresholds. One entry is
    /// no fallback; 0 is greedy decoding.
    pub temperatures: Vec<f32>,
    /// A window is too repetitive when its text is this much longer than its zlib compression.
    pub compression_ratio_threshold: Option<f32>,
    /// A window is a failure when the mean log-probability of its tokens is below this.
    pub logprob_threshold: Option<f32>,
    /// A window is silence when the probability of no speech is above this and the window is a failure
    /// by its log-probability.
    pub no_speech_threshold: Option<f32>,
    /// Whether the text of a window is the prompt of the next one.
    pub condition_on_previous_text: bool,
    /// With times of words: text that follows this many seconds of silence and looks invented is
    /// dropped.
    pub hallucination_silence_threshold: Option<f32>,
    /// Whether numbers are written as digits, with punctuation, where the model has the choice.
    pub inverse_text_normalization: bool,
    /// The most tokens of a recording or of a window; the model's limit when absent.
    pub max_tokens: Option<usize>,
    /// The seed of sampling at a temperature above 0.
    pub seed: u64,
}

/// What a transcription writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Task {
    /// What is said, in its language.
    #[default]
    Transcribe,
    /// What is said, in English.
    Translate,
}

/// Which times a transcription has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Timestamps {
    /// None: one segment for each window of the model.
    None,
    /// The beginning and the end of each segment.
    #[default]
    Segments,
    /// Those of each word, too.
    Words,
}

impl Default for TranscribeOptions {
    fn default() -> Self {
        TranscribeOptions {
            language: None,
            task: Task::default(),
            timestamps: Timestamps::default(),
            prompt: None,
            temperatures: vec![0.0, 0.2, 0.4, 0.6, 0.8, 1.0],
            compression_ratio_threshold: Some(2.4),
            logprob_threshold: Some(-1.0),
            no_speech_threshold: Some(0.6),
            condition_on_previous_text: true,
            hallucination_silence_threshold: None,
            inverse_text_normalization: false,
            max_tokens: None,
            seed: 0,
        }
    }
}

setters! {
    TranscribeOptions:
    task: Task,
    timestamps: Timestamps,
    temperatures: Vec<f32>,
    condition_on_previous_text: bool,
    inverse_text_normalization: bool,
    seed: u64;
    optional
    language: String,
    prompt: String,
    compression_ratio_threshold: f32,
    logprob_threshold: f32,
    no_speech_threshold: f32,
    hallucination_silence_threshold: f32,
    max_tokens: usize,
}

impl TranscribeOptions {
    /// What a model of pieces is asked.
    pub(super) fn request(&self) -> SpeechRequest {
        SpeechRequest {
            language: self.language.clone(),
            translate: self.task == Task::Translate,
            inverse_text_normalization: self.inverse_text_normalization,
            prompt: self.prompt.clone(),
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        let is_valid = |temperature: &f32| temperature.is_finite() && *temperature >= 0.0;
        if self.temperatures.is_empty() || !self.temperatures.iter().all(is_valid) {
            let reason = "must be at least one number, each 0 or more";
            return Err(Error::option("temperatures", reason));
        }
        if self.max_tokens == Some(0) {
            return Err(Error::option("max_tokens", "must be at least 1"));
        }
        Ok(())
    }
}
