//! What a transcription gives.

/// The text of a recording.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Transcript {
    /// The whole text.
    pub text: String,
    /// The code of its language, such as `en`, where the model knows it.
    pub language: Option<String>,
    /// The tokens of the text, with those that stand for times.
    pub tokens: Vec<u32>,
    /// The log-probability (natural) of each of them, under the rules that hold at its place; empty
    /// where no decoder wrote them.
    pub logprobs: Vec<f32>,
    /// Its segments in order.
    pub segments: Vec<Segment>,
    /// The emotion that the model hears, where it tells.
    pub emotion: Option<String>,
    /// The kind of sound that the model hears, such as `Speech`, where it tells.
    pub event: Option<String>,
}

/// A part of a recording, usually a sentence.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Segment {
    /// Where it begins, in seconds.
    pub start: f64,
    /// Where it ends, in seconds.
    pub end: f64,
    /// Its text.
    pub text: String,
    /// Its tokens, with those that stand for times.
    pub tokens: Vec<u32>,
    /// The mean log-probability of the tokens of its window.
    pub avg_logprob: f32,
    /// How much longer the text of its window is than its compression.
    pub compression_ratio: f32,
    /// The probability that its window has no speech.
    pub no_speech_probability: f32,
    /// The temperature at which its window was decoded.
    pub temperature: f32,
    /// Its words, if their times were asked for.
    pub words: Vec<Word>,
}

/// A word with its times.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Word {
    /// Its text, with the space before it and the punctuation around it.
    pub word: String,
    /// Where it begins, in seconds.
    pub start: f64,
    /// Where it ends, in seconds.
    pub end: f64,
    /// The mean probability of its tokens.
    pub probability: f32,
}

impl Segment {
    /// The same segment, `seconds` later.
    pub(crate) fn later(mut self, seconds: f64) -> Self {
        self.start += seconds;
        self.end += seconds;
        for word in &mut self.words {
            word.start += seconds;
            word.end += seconds;
        }
        self
    }
}
