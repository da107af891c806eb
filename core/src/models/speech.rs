//! What models of speech and audio can do. Samples are single-precision, mono, between -1 and 1.

use crate::{
    error::Result,
    layers::{
        audio::{ctc::CtcToken, log_mel::LogMel},
        embedded::Embedded,
    },
    models::{cache::Cache, decode_step::prefill_embedded, language::LanguageModel},
};
use mlx_rs::Array;
use std::rc::Rc;

/// Speech to text: a front end, an encoder, and what makes tokens of its output.
pub trait Transcriber {
    /// Samples a second that it hears, in Hz.
    fn sample_rate(&self) -> u32 {
        16_000
    }
    /// Samples of one channel to features `[1, frames, bins]`; a model of windows takes the first one.
    fn features(&self, samples: &[f32]) -> Result<Array>;
    /// Features `[batch, frames, bins]` to the output of the encoder `[batch, positions, width]`.
    fn encode(&self, features: &Array) -> Result<Array>;
    /// What makes tokens of the output of the encoder.
    fn output(&self) -> Output<'_>;
}

/// The ways in which tokens come from the output of an encoder.
pub enum Output<'a> {
    /// A decoder writes the text of one window after the other, with times in it.
    Windows(&'a WindowedDecoder),
    /// A language model writes the text of a whole piece of a recording after a prompt.
    Prompted(&'a dyn PromptedDecoder),
    /// Every position has a token of its own or none.
    Labels(&'a dyn Labeller),
    /// The text is given, and the times of its words come out.
    Aligner(&'a dyn Aligner),
}

/// What an application asks of a transcription.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpeechRequest {
    /// The language that is spoken, such as `en`.
    pub language: Option<String>,
    /// Whether the text is to be English.
    pub translate: bool,
    /// Whether numbers are to be digits, with punctuation.
    pub inverse_text_normalization: bool,
    /// Text that comes before the recording.
    pub prompt: Option<String>,
}

/// A language model that hears.
pub trait PromptedDecoder {
    /// The language model.
    fn decoder(&self) -> &Rc<dyn LanguageModel>;
    /// The longest piece of a recording that it hears at once, in seconds.
    fn longest(&self) -> f64;
    /// The prompt of a piece, with the output of the encoder `[1, positions, width]` in its place.
    fn prompt(&self, encoded: &Array, request: &SpeechRequest) -> Result<Embedded>;
    /// The tokens that end the text.
    fn ends(&self) -> &[u32];
    /// The most tokens of the text of a piece of this length, where the application names no limit.
    fn limit(&self, seconds: f64) -> usize;
    /// What tokens say.
    fn said(&self, tokens: &[u32], request: &SpeechRequest) -> Result<Said>;
}

/// A text, and the language that it is in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// The text.
    pub text: String,
    /// The code or the name of the language, where the model tells it.
    pub language: Option<String>,
}

/// A model that finds the tokens of all positions, one by one or at once.
pub trait Labeller {
    /// The longest piece of a recording that it hears at once, in seconds.
    fn longest(&self) -> f64;
    /// What a piece says.
    fn label(&self, samples: &[f32], request: &SpeechRequest) -> Result<Labels>;
    /// The text of a token, with a space where a word begins; nothing for a special token.
    fn piece(&self, id: u32) -> Result<String>;
}

/// A model that finds when the words of a given text are said.
pub trait Aligner {
    /// The longest recording that it hears, in seconds.
    fn longest(&self) -> f64;
    /// The words of a text in a language, by its code or its English name.
    ///
    /// # Errors
    /// [`Error::Option`](crate::Error::Option) for a language whose words it cannot find.
    fn words(&self, text: &str, language: Option<&str>) -> Result<Vec<String>>;
    /// Where each word begins and ends, in seconds.
    fn times(&self, encoded: &Array, words: &[String]) -> Result<Vec<[f64; 2]>>;
}

/// What a piece of a recording says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Labels {
    /// The tokens in order.
    pub tokens: Vec<Label>,
    /// The language that the model hears.
    pub language: Option<String>,
    /// The emotion that it hears.
    pub emotion: Option<String>,
    /// The kind of sound that it hears.
    pub event: Option<String>,
}

/// A token with its place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Label {
    /// The token.
    pub id: u32,
    /// Its log-probability.
    pub logprob: f32,
    /// Where it begins, in seconds.
    pub start: f64,
    /// Where it ends, in seconds.
    pub end: f64,
}

impl Label {
    /// A token between positions of `seconds` each.
    pub fn spanning(token: CtcToken, seconds: f64) -> Self {
        let CtcToken { id, logprob, start, end } = token;
        Label { id, logprob, start: start as f64 * seconds, end: end as f64 * seconds }
    }
}

/// A decoder that reads the output of the encoder by cross attention, for windows of a fixed length.
pub struct WindowedDecoder {
    /// The decoder. The first pass over a cache brings the output of the encoder
    /// ([`Embedded::encoded`](crate::layers::embedded::Embedded::encoded)); the cache keeps the keys
    /// and values that are made of it, when it is rewound too, so that decode steps and other
    /// attempts need the ids alone.
    pub decoder: Rc<dyn LanguageModel>,
    /// Samples to features, frame by frame.
    pub front_end: LogMel,
    /// The frames of a window.
    pub frames: i32,
    /// The most tokens of a window, those of its prompt included.
    pub context: usize,
    /// The heads of cross attention that follow the audio.
    pub alignment_heads: Vec<AlignmentHead>,
}

/// A head of cross attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlignmentHead {
    /// The layer of the decoder.
    pub layer: i32,
    /// The head of that layer.
    pub head: i32,
}

impl WindowedDecoder {
    /// A pass of the decoder over ids `[batch, length]` to logits `[batch, length, vocabulary]`;
    /// `encoded` replaces what the cache has of an encoder.
    ///
    /// # Errors
    /// [`Error::MemoryLimit`](crate::Error::MemoryLimit), [`Error::Mlx`](crate::Error::Mlx);
    /// [`Error::Internal`](crate::Error::Internal) when no pass has brought the output of the encoder.
    pub fn decode(&self, ids: &Array, encoded: Option<&Array>, cache: &mut Cache) -> Result<Array> {
        let decoder = &*self.decoder;
        let mut x = decoder.embed(ids)?;
        x.encoded = encoded.cloned();
        decoder.logits(&prefill_embedded(decoder, &x, cache)?)
    }
}
