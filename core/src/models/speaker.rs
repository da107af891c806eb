//! Text to speech.

use crate::{
    error::{Error, Result},
    layers::audio::noise::Noise,
    models::{codec::Codec, language::LanguageModel},
};
use mlx_rs::Array;
use std::{collections::HashMap, rc::Rc};

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
    /// tokens. `codec` is the one that the application has given it.
    ///
    /// # Errors
    /// [`Error::Option`] for a script that it cannot read, and for options that it
    /// does not have.
    fn pieces(
        &self,
        script: &Script,
        options: &SpeakOptions,
        codec: Option<&Rc<dyn Codec>>,
    ) -> Result<Vec<Vec<u32>>>;

    /// What makes samples of a piece.
    fn output(&self) -> SpeakerOutput<'_>;
}

/// The ways in which samples come from the tokens of a piece.
pub enum SpeakerOutput<'a> {
    /// All samples in one pass.
    Pieces(&'a dyn PieceSpeaker),
    /// A language model continues the tokens, and a decoder makes samples of what it writes.
    Tokens(&'a dyn TokenSpeaker),
}

/// A model that speaks a piece in one pass.
pub trait PieceSpeaker {
    /// Speaks one piece.
    ///
    /// # Errors
    /// [`Error::Option`] for an unknown voice and for a speed that is none.
    fn speak(&self, piece: &[u32], options: &SpeakOptions) -> Result<Speech>;
}

/// A language model that speaks.
pub trait TokenSpeaker {
    /// The language model. What its logits have after those of the vocabulary is the hidden state that
    /// they come from, for decoders that need it.
    fn decoder(&self) -> &Rc<dyn LanguageModel>;

    /// How tokens are sampled unless the options say otherwise.
    fn sampling(&self) -> SpeechSampling;

    /// The tokens that end a piece.
    fn ends(&self) -> &[u32];

    /// The decoder of one piece.
    ///
    /// # Errors
    /// [`Error::Option`] without the codec that it needs.
    fn samples(&self, noise: Noise, codec: Option<&Rc<dyn Codec>>) -> Result<Box<dyn ToSamples>>;
}

/// Makes samples `[1, samples, 1]` of what a language model writes, as soon as nothing that follows
/// changes them.
pub trait ToSamples {
    /// Takes the next token, with the hidden state `[1, 1, width]` after it. The end of the prompt comes
    /// first and has no token.
    ///
    /// # Errors
    /// Those of the decoder.
    fn push(&mut self, token: Option<u32>, hidden: Option<&Array>) -> Result<Option<Array>>;

    /// The samples that are left, if there are any.
    ///
    /// # Errors
    /// Those of the decoder.
    fn finish(&mut self) -> Result<Option<Array>>;

    /// Takes the codes of each codebook since the last call; none without a codec.
    fn take_codes(&mut self) -> Vec<Vec<u32>> {
        Vec::new()
    }
}

/// How a language model that speaks is sampled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SpeechSampling {
    /// Divides the logits; 0 is greedy decoding.
    pub temperature: f32,
    /// Only the most probable tokens that make up this probability are sampled.
    pub top_p: f32,
    /// How many of the most probable tokens can be sampled (top-k); 0 is no limit.
    pub top_k: usize,
    /// Divides the positive logits of recent tokens and multiplies the negative ones.
    pub repetition_penalty: f32,
    /// How many tokens are recent.
    pub penalty_context: usize,
    /// The most tokens of a piece.
    pub max_tokens: usize,
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
    /// Names of voices; several are averaged. When empty, the model's first one, or its usual voice where
    /// a text does without a name.
    pub voices: Vec<String>,
    /// Divides the durations.
    pub speed: f32,
    /// The seed of random numbers. Without one, those of decoders are zero, and tokens are sampled with
    /// the seed 0.
    pub seed: Option<u64>,
    /// Words of a text with their phonemes, in the alphabet of the model.
    pub pronunciations: HashMap<String, String>,
    /// A voice to be cloned, for models that do.
    pub reference: Option<VoiceReference>,
    /// Of models that sample tokens: divides the logits, 0 is greedy decoding. The model's own when none.
    pub temperature: Option<f32>,
    /// Likewise: samples only the most probable tokens that make up this probability.
    pub top_p: Option<f32>,
    /// Likewise: how many of the most probable tokens can be sampled (top-k); 0 is no limit.
    pub top_k: Option<usize>,
    /// Likewise: divides the positive logits of recent tokens; 1 changes nothing.
    pub repetition_penalty: Option<f32>,
    /// Likewise: the most tokens of a piece.
    pub max_tokens: Option<usize>,
}

/// A recording of a voice to be cloned.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VoiceReference {
    /// Samples of one channel at the rate of the model.
    pub samples: Vec<f32>,
    /// What is said in it.
    pub text: String,
}

impl Default for SpeakOptions {
    fn default() -> Self {
        SpeakOptions {
            voices: Vec::new(),
            speed: 1.0,
            seed: Some(0),
            pronunciations: HashMap::new(),
            reference: None,
            temperature: None,
            top_p: None,
            top_k: None,
            repetition_penalty: None,
            max_tokens: None,
        }
    }
}

impl SpeakOptions {
    /// The text of a script, for a model that reads text and knows no phonemes.
    ///
    /// # Errors
    /// [`Error::Option`] for phonemes, for a text without words, and for options of phonemes and
    /// durations.
    pub fn only_text<'s>(&self, script: &'s Script) -> Result<&'s str> {
        let Script::Text(text) = script else {
            return Err(Error::option("phonemes", "this model reads text; pass the text"));
        };
        if !self.pronunciations.is_empty() {
            return Err(Error::option("pronunciations", "this model reads no phonemes"));
        }
        if self.speed != 1.0 {
            let reason = format!("{}, but this model has only its own; pass 1", self.speed);
            return Err(Error::option("speed", reason));
        }
        if text.trim().is_empty() {
            return Err(Error::option("text", "it has no words"));
        }
        Ok(text)
    }

    /// Where random numbers come from.
    pub fn noise(&self) -> Noise {
        self.seed.map_or(Noise::Zero, Noise::Seed)
    }
}

/// A part of speech, and what the model predicted on the way to it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Speech {
    /// Samples of one channel between -1 and 1.
    pub samples: Vec<f32>,
    /// The ids of the tokens of a piece that begins here.
    pub tokens: Vec<u32>,
    /// The tokens that a language model has written since the part before, without those that end a
    /// piece.
    pub generated: Vec<u32>,
    /// Their codes for each codebook of the codec, where there is one.
    pub codes: Vec<Vec<u32>>,
    /// Frames of each token, where the model predicts them.
    pub durations: Vec<u32>,
    /// The pitch of each half of a frame in Hz, where the model predicts it.
    pub f0: Vec<f32>,
    /// The loudness of each half of a frame, where the model predicts it.
    pub energy: Vec<f32>,
}
