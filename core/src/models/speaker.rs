//! Text to speech.

use crate::{error::Result, layers::audio::noise::Noise};
use std::collections::HashMap;

/// Text to speech.
pub trait Speaker {
    /// Samples a second, in Hz.
    fn sample_rate(&self) -> u32;

    /// The names of its voices.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io).
    fn voices(&self) -> Result<Vec<String>>;

    /// The pieces in which it speaks a script, each short enough for one pass, with the ids of their
    /// tokens.
    ///
    /// # Errors
    /// [`Error::Option`](crate::Error::Option) for a script that it cannot read.
    fn pieces(&self, script: &Script, options: &SpeakOptions) -> Result<Vec<Vec<u32>>>;

    /// Speaks one piece.
    ///
    /// # Errors
    /// [`Error::Option`](crate::Error::Option) for an unknown voice and for a speed that is none.
    fn speak(&self, piece: &[u32], options: &SpeakOptions) -> Result<Speech>;
}

/// What is spoken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Script {
    /// A text in ordinary letters.
    Text(String),
    /// The phonemes of a text, in the alphabet of the model.
    Phonemes(String),
}

/// How it is spoken.
#[derive(Clone, Debug, PartialEq)]
pub struct SpeakOptions {
    /// Names of voices; several are averaged. The model's first one when empty.
    pub voices: Vec<String>,
    /// Divides the durations.
    pub speed: f32,
    /// The seed of random numbers; without one, they are zero.
    pub seed: Option<u64>,
    /// Words of a text with their phonemes, in the alphabet of the model.
    pub pronunciations: HashMap<String, String>,
}

impl Default for SpeakOptions {
    fn default() -> Self {
        SpeakOptions {
            voices: Vec::new(),
            speed: 1.0,
            seed: Some(0),
            pronunciations: HashMap::new(),
        }
    }
}

impl SpeakOptions {
    /// Where random numbers come from.
    pub fn noise(&self) -> Noise {
        self.seed.map_or(Noise::Zero, Noise::Seed)
    }
}

/// A piece of speech, and what the model predicted on the way to it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Speech {
    /// Samples of one channel between -1 and 1.
    pub samples: Vec<f32>,
    /// The ids of its tokens.
    pub tokens: Vec<u32>,
    /// Frames of each token, where the model predicts them.
    pub durations: Vec<u32>,
    /// The pitch of each half of a frame in Hz, where the model predicts it.
    pub f0: Vec<f32>,
    /// The loudness of each half of a frame, where the model predicts it.
    pub energy: Vec<f32>,
}
