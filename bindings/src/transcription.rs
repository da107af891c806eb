//! Models that hear.

use crate::{
    error::MynahError,
    pulled::{CallCanceller, Pulled, aside},
    samples::{AudioInput, unpacked},
};
use std::{
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
};

/// A model of speech to text in memory. The last handle that is dropped frees it.
#[derive(uniffi::Object)]
pub struct AudioModel(pub(crate) mynah::AudioModel);

/// Options of a transcription. `default_transcribe_options` has the usual ones; an absent field means
/// "none".
#[derive(Clone, Debug, uniffi::Record)]
pub struct TranscribeOptions {
    /// The language that is spoken, such as `en`; detected when absent.
    pub language: Option<String>,
    /// Whether the text is written in English, whatever the language is.
    pub translate: bool,
    /// Which times the segments have.
    pub timestamps: Timestamps,
    /// Text that comes before the recording.
    pub prompt: Option<String>,
    /// Sampling temperatures, one after the other until a window passes the thresholds.
    pub temperatures: Vec<f32>,
    /// A window is too repetitive when its text is this much longer than its compression.
    pub compression_ratio_threshold: Option<f32>,
    /// A window is a failure when the mean log-probability of its tokens is below this.
    pub logprob_threshold: Option<f32>,
    /// A failure is silence when the probability of no speech is above this.
    pub no_speech_threshold: Option<f32>,
    /// Whether the text of a window is the prompt of the next one.
    pub condition_on_previous_text: bool,
    /// Invented text after this many seconds of silence is dropped.
    pub hallucination_silence_threshold: Option<f32>,
    /// Whether numbers are written as digits, with punctuation.
    pub inverse_text_normalization: bool,
    /// The most tokens of a recording or of a window.
    pub max_tokens: Option<u32>,
    /// The seed of sampling.
    pub seed: u64,
}

/// Which times a transcription has.
#[derive(Clone, Copy, Debug, uniffi::Enum)]
pub enum Timestamps {
    /// None: one segment for each window of the model.
    None,
    /// The beginning and the end of each segment.
    Segments,
    /// Those of each word, too.
    Words,
}

/// The usual options.
#[uniffi::export]
pub fn default_transcribe_options() -> TranscribeOptions {
    let options = mynah::TranscribeOptions::default();
    TranscribeOptions {
        language: options.language,
        translate: options.task == mynah::Task::Translate,
        timestamps: match options.timestamps {
            mynah::Timestamps::None => Timestamps::None,
            mynah::Timestamps::Segments => Timestamps::Segments,
            mynah::Timestamps::Words => Timestamps::Words,
        },
        prompt: options.prompt,
        temperatures: options.temperatures,
        compression_ratio_threshold: options.compression_ratio_threshold,
        logprob_threshold: options.logprob_threshold,
        no_speech_threshold: options.no_speech_threshold,
        condition_on_previous_text: options.condition_on_previous_text,
        hallucination_silence_threshold: options.hallucination_silence_threshold,
        inverse_text_normalization: options.inverse_text_normalization,
        max_tokens: options.max_tokens.map(|tokens| tokens as u32),
        seed: options.seed,
    }
}

impl From<TranscribeOptions> for mynah::TranscribeOptions {
    fn from(options: TranscribeOptions) -> Self {
        let task = if options.translate { mynah::Task::Translate } else { mynah::Task::Transcribe };
        mynah::TranscribeOptions::default()
            .language(options.language)
            .task(task)
            .timestamps(match options.timestamps {
                Timestamps::None => mynah::Timestamps::None,
                Timestamps::Segments => mynah::Timestamps::Segments,
                Timestamps::Words => mynah::Timestamps::Words,
            })
            .prompt(options.prompt)
            .temperatures(options.temperatures)
            .compression_ratio_threshold(options.compression_ratio_threshold)
            .logprob_threshold(options.logprob_threshold)
            .no_speech_threshold(options.no_speech_threshold)
            .condition_on_previous_text(options.condition_on_previous_text)
            .hallucination_silence_threshold(options.hallucination_silence_threshold)
            .inverse_text_normalization(options.inverse_text_normalization)
            .max_tokens(options.max_tokens.map(|tokens| tokens as usize))
            .seed(options.seed)
    }
}

/// A part of a recording, usually a sentence. Times are in seconds.
#[derive(Clone, Debug, uniffi::Record)]
pub struct Segment {
    /// Where it begins.
    pub start: f64,
    /// Where it ends.
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
#[derive(Clone, Debug, uniffi::Record)]
pub struct Word {
    /// Its text, with the space before it and the punctuation around it.
    pub word: String,
    /// Where it begins.
    pub start: f64,
    /// Where it ends.
    pub end: f64,
    /// The mean probability of its tokens.
    pub probability: f32,
}

/// The text of a recording.
#[derive(Clone, Debug, uniffi::Record)]
pub struct Transcript {
    /// The whole text.
    pub text: String,
    /// The code of its language, where the model knows it.
    pub language: Option<String>,
    /// The tokens of the text, with those that stand for times.
    pub tokens: Vec<u32>,
    /// The log-probability of each token.
    pub logprobs: Vec<f32>,
    /// Its segments in order.
    pub segments: Vec<Segment>,
    /// The emotion that the model hears, where it tells.
    pub emotion: Option<String>,
    /// The kind of sound that the model hears, where it tells.
    pub event: Option<String>,
}

/// An event of a transcription.
#[derive(Clone, Debug, uniffi::Enum)]
pub enum TranscriptionEvent {
    /// The next segments, which are final.
    Segments {
        /// The segments.
        segments: Vec<Segment>,
        /// The share of the recording that is transcribed, from 0 to 1.
        share: f32,
    },
    /// The text after the final segments of audio that is still coming; it may change.
    Partial {
        /// The text.
        text: String,
        /// Where it begins, in seconds.
        start: f64,
    },
    /// The whole transcript, the last event.
    Finished {
        /// The transcript.
        transcript: Transcript,
    },
}

impl From<mynah::Segment> for Segment {
    fn from(segment: mynah::Segment) -> Self {
        let word = |word: mynah::Word| Word {
            word: word.word,
            start: word.start,
            end: word.end,
            probability: word.probability,
        };
        Segment {
            start: segment.start,
            end: segment.end,
            text: segment.text,
            tokens: segment.tokens,
            avg_logprob: segment.avg_logprob,
            compression_ratio: segment.compression_ratio,
            no_speech_probability: segment.no_speech_probability,
            temperature: segment.temperature,
            words: segment.words.into_iter().map(word).collect(),
        }
    }
}

impl From<mynah::Transcript> for Transcript {
    fn from(transcript: mynah::Transcript) -> Self {
        Transcript {
            text: transcript.text,
            language: transcript.language,
            tokens: transcript.tokens,
            logprobs: transcript.logprobs,
            segments: transcript.segments.into_iter().map(Segment::from).collect(),
            emotion: transcript.emotion,
            event: transcript.event,
        }
    }
}

impl TranscriptionEvent {
    /// None for an event of a kind that has no counterpart here.
    fn of(event: mynah::TranscriptionEvent) -> Option<Self> {
        match event {
            mynah::TranscriptionEvent::Segments { segments, share } => {
                let segments = segments.into_iter().map(Segment::from).collect();
                Some(TranscriptionEvent::Segments { segments, share })
            }
            mynah::TranscriptionEvent::Partial { text, start } => {
                Some(TranscriptionEvent::Partial { text, start })
            }
            mynah::TranscriptionEvent::Finished(transcript) => {
                Some(TranscriptionEvent::Finished { transcript: transcript.into() })
            }
            _ => None,
        }
    }
}

/// A running transcription. Dropping it stops the computation.
#[derive(uniffi::Object)]
pub struct Transcription(Pulled<mynah::TranscriptionEvent>);

impl Transcription {
    fn new(mut running: mynah::Transcription) -> Arc<Self> {
        let next = move |context: &mut std::task::Context<'_>| pin!(running.next()).poll(context);
        Arc::new(Transcription(Pulled::new(next)))
    }
}

#[uniffi::export]
impl Transcription {
    /// Waits for the next event; none after the end, after an error, and once cancelled.
    ///
    /// # Errors
    /// Those of the file and of the computation.
    pub async fn next(&self) -> Result<Option<TranscriptionEvent>, MynahError> {
        while let Some(event) = self.0.next().await? {
            if let Some(event) = TranscriptionEvent::of(event) {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// Stops the computation.
    pub fn cancel(&self) {
        self.0.cancel();
    }
}

/// A transcription of audio that is still coming.
#[derive(uniffi::Record)]
pub struct LiveTranscription {
    /// Takes the audio.
    pub audio: Arc<LiveAudio>,
    /// The events.
    pub transcription: Arc<Transcription>,
}

/// Takes the audio of a live transcription.
#[derive(uniffi::Object)]
pub struct LiveAudio(Mutex<Option<mynah::LiveAudio>>);

#[uniffi::export]
impl LiveAudio {
    /// Adds the next samples of one channel: 32-bit floats, little endian. Samples after the end have no
    /// effect.
    ///
    /// # Errors
    /// When a sample is not a number.
    pub fn push(&self, samples: Vec<u8>) -> Result<(), MynahError> {
        match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(audio) => Ok(audio.push(&unpacked(&samples))?),
            None => Ok(()),
        }
    }

    /// Ends the audio.
    pub fn finish(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// A word of a given text with its place in a recording.
#[derive(Clone, Debug, uniffi::Record)]
pub struct AlignedWord {
    /// The word, without punctuation.
    pub word: String,
    /// Where it begins, in seconds.
    pub start: f64,
    /// Where it ends, in seconds.
    pub end: f64,
}

#[uniffi::export]
impl AudioModel {
    /// The `model_type` of the config, or the name of the family where it has none.
    pub fn model_type(&self) -> String {
        self.0.model_type().into()
    }

    /// Samples a second that the model hears, in Hz. Audio at other rates is resampled.
    pub fn sample_rate(&self) -> u32 {
        self.0.sample_rate()
    }

    /// Writes down what is said.
    ///
    /// # Errors
    /// When samples cannot be converted.
    pub fn transcribe(
        &self,
        audio: AudioInput,
        options: TranscribeOptions,
    ) -> Result<Arc<Transcription>, MynahError> {
        let audio = match audio {
            AudioInput::File { path } => mynah::AudioInput::File(path.into()),
            AudioInput::Samples { audio } => mynah::AudioInput::Samples(audio.try_into()?),
        };
        Ok(Transcription::new(self.0.transcribe(audio, &options.into())?))
    }

    /// Writes down what is said in audio that is still coming.
    ///
    /// # Errors
    /// When the sample rate cannot be converted.
    pub fn transcribe_live(
        &self,
        sample_rate: u32,
        options: TranscribeOptions,
    ) -> Result<LiveTranscription, MynahError> {
        let (audio, running) = self.0.transcribe_live(sample_rate, &options.into())?;
        let audio = Arc::new(LiveAudio(Mutex::new(Some(audio))));
        Ok(LiveTranscription { audio, transcription: Transcription::new(running) })
    }

    /// Finds when the words of a text are said, in a language by its code or English name. Punctuation
    /// belongs to no word, and in Chinese each character is one.
    ///
    /// # Errors
    /// When the model does not align, the text has no words, the words of the language cannot be found, or
    /// the computation fails or is cancelled.
    pub async fn align(
        &self,
        audio: AudioInput,
        text: String,
        language: Option<String>,
        canceller: Arc<CallCanceller>,
    ) -> Result<Vec<AlignedWord>, MynahError> {
        let model = self.0.clone();
        let align = async move {
            let audio = match audio {
                AudioInput::File { path } => mynah::AudioInput::File(path.into()),
                AudioInput::Samples { audio } => mynah::AudioInput::Samples(audio.try_into()?),
            };
            model.align(audio, &text, language.as_deref()).await
        };
        let words = aside(canceller, align).await?.into_iter();
        let word = |word: mynah::AlignedWord| AlignedWord {
            word: word.word,
            start: word.start,
            end: word.end,
        };
        Ok(words.map(word).collect())
    }

    /// Frees the memory of the model.
    ///
    /// # Errors
    /// When the device fails.
    pub async fn unload(&self) -> Result<(), MynahError> {
        Ok(self.0.unload().await?)
    }
}
