//! Models of speech and audio, as applications hold them.

use crate::{
    api::{
        location::Location,
        network::{self, AudioHandle, LoadAudio, LoadedAudio},
    },
    engine::{
        LiveAudio, LiveRequest, Transcription, TranscriptionRequest,
        engine_model::{EngineModel, Place, find},
    },
    error::{Error, Result},
    generate::{
        Score,
        transcription::{Timestamps, TranscribeOptions, Vocabulary, Wanted, score_transcript},
    },
    media::audio::{Audio, Recording},
    mlx,
    models::{
        network::Kind,
        speech::{Output, Transcriber},
    },
    text::Tokenizer,
};
use mlx_rs::{Array, Dtype};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// A model that hears or speaks. Clones are handles to the same model, which is freed with the last.
#[derive(Clone)]
pub struct AudioModel(Arc<Inner>);

struct Inner {
    model_type: String,
    sample_rate: u32,
    tokenizer: Option<Tokenizer>,
    /// The special tokens of a model of windows.
    vocabulary: Option<Arc<Vocabulary>>,
    place: Place,
}

/// Audio that a model is to hear.
#[derive(Clone, Debug, PartialEq)]
pub enum AudioInput {
    /// A file; see [`Audio::read`] for its formats.
    File(PathBuf),
    /// Samples.
    Samples(Audio),
}

/// What [`AudioModel::features`] returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// The features of the front end.
    #[default]
    FrontEnd,
    /// The output of the encoder.
    Encoder,
}

/// Features of audio.
#[derive(Clone, Debug, PartialEq)]
pub struct AudioFeatures {
    /// The number of frames.
    pub frames: usize,
    /// The number of values of a frame.
    pub bins: usize,
    /// The values, frame after frame.
    pub values: Vec<f32>,
}

/// A word of a given text with its place in a recording.
#[derive(Clone, Debug, PartialEq)]
pub struct AlignedWord {
    /// The word, without punctuation.
    pub word: String,
    /// Where it begins, in seconds.
    pub start: f64,
    /// Where it ends, in seconds.
    pub end: f64,
}

impl AudioModel {
    /// Loads a checkpoint; see [`Model::load`](crate::Model::load) for its location.
    ///
    /// ```no_run
    /// use mynah::{AudioModel, TranscribeOptions};
    ///
    /// # async fn load() -> mynah::Result<()> {
    /// let model = AudioModel::load("org/model").await?;
    /// let options = TranscribeOptions::default().language("en".to_string());
    /// let transcript = model.transcribe("interview.m4a", &options)?.finish().await?;
    /// println!("{}", transcript.text);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Awaiting it returns the errors of the download, the config, the weights and the tokenizer, with
    /// the name of the model ([`Error::Model`]); [`Error::ModelKind`] for a model of another kind;
    /// [`Error::Offline`]; [`Error::MemoryLimit`].
    pub fn load(location: impl Into<Location>) -> LoadAudio<Self> {
        LoadAudio::new(location.into())
    }

    /// The `model_type` of the config, or the name of the family where it has none.
    pub fn model_type(&self) -> &str {
        &self.0.model_type
    }

    /// Samples a second that the model hears, in Hz. Audio at other rates is resampled.
    pub fn sample_rate(&self) -> u32 {
        self.0.sample_rate
    }

    /// Writes down what is said in a file or in samples, as a stream of segments. A file is read as it is
    /// transcribed, so its length is not limited.
    ///
    /// # Errors
    /// [`Error::NoTokenizer`]; [`Error::Audio`] and [`Error::Option`]. The stream has the errors of the
    /// file and of the computation.
    pub fn transcribe(
        &self,
        audio: impl Into<AudioInput>,
        options: &TranscribeOptions,
    ) -> Result<Transcription> {
        let vocabulary = self.0.vocabulary.clone();
        let recording = self.recording(audio.into())?;
        let (model, options) = (self.0.place.id, options.clone());
        let request = TranscriptionRequest { model, vocabulary, recording, options };
        Ok(Transcription::start(self.0.place.engine, request))
    }

    /// Writes down what is said in audio that is still coming, at `sample_rate` Hz. Partial text comes
    /// once a second of audio. A segment is final when another one has followed it, at most 30 seconds
    /// later; the audio ends when [`LiveAudio`] is dropped.
    ///
    /// # Errors
    /// [`Error::Option`] for a sample rate that cannot be converted. The stream has the errors of the
    /// computation.
    pub fn transcribe_live(
        &self,
        sample_rate: u32,
        options: &TranscribeOptions,
    ) -> Result<(LiveAudio, Transcription)> {
        let mut options = options.clone();
        if options.timestamps == Timestamps::None {
            options.timestamps = Timestamps::Segments;
        }
        let request = LiveRequest {
            model: self.0.place.id,
            model_rate: self.0.sample_rate,
            sample_rate,
            vocabulary: self.0.vocabulary.clone(),
            options,
        };
        LiveAudio::start(self.0.place.engine, request)
    }

    /// The features of the first 30 seconds of audio, or of all of it where the model has no windows.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Audio`], [`Error::Mlx`].
    pub async fn features(
        &self,
        audio: impl Into<AudioInput>,
        stage: Stage,
    ) -> Result<AudioFeatures> {
        let (id, recording) = (self.0.place.id, self.recording(audio.into())?);
        let compute = move || {
            let model = find(id)?;
            let model = &**model.transcriber()?;
            let features = features(model, &recording)?;
            let features = match stage {
                Stage::FrontEnd => features,
                Stage::Encoder => model.encode(&features)?,
            };
            let (frames, bins) = (features.dim(-2) as usize, features.dim(-1) as usize);
            let values = mlx::to_vec(&features.as_dtype(Dtype::Float32)?)?;
            Ok(AudioFeatures { frames, bins, values })
        };
        self.0.place.engine.compute(compute).await
    }

    /// The log-probabilities of given tokens after the model's own prompt for this audio, each given
    /// those before it, with the `top` most probable tokens at its place; and the length of the prompt
    /// in tokens.
    ///
    /// # Errors
    /// As [`AudioModel::transcribe`]; [`Error::TokenOutOfVocabulary`].
    pub async fn score(
        &self,
        audio: impl Into<AudioInput>,
        tokens: &[u32],
        top: usize,
        options: &TranscribeOptions,
    ) -> Result<(usize, Score)> {
        let vocabulary = self.0.vocabulary.clone();
        let (id, recording) = (self.0.place.id, self.recording(audio.into())?);
        let (tokens, options) = (tokens.to_vec(), options.clone());
        let compute = move || {
            let model = find(id)?;
            let model = &**model.transcriber()?;
            let encoded = model.encode(&features(model, &recording)?)?;
            score_transcript(
                model,
                vocabulary.as_deref(),
                &encoded,
                &options,
                &Wanted { tokens, top },
            )
        };
        self.0.place.engine.compute(compute).await
    }

    /// Finds when the words of a text are said, in a language by its code or English name. Punctuation
    /// belongs to no word, and in Chinese each character is one.
    ///
    /// # Errors
    /// [`Error::Option`] for a model that does not align, for a text without words, and for a language
    /// whose words it cannot find; [`Error::Io`], [`Error::Audio`], [`Error::Mlx`].
    pub async fn align(
        &self,
        audio: impl Into<AudioInput>,
        text: &str,
        language: Option<&str>,
    ) -> Result<Vec<AlignedWord>> {
        let (id, recording) = (self.0.place.id, self.recording(audio.into())?);
        let (text, language) = (text.to_string(), language.map(str::to_string));
        let compute = move || {
            let model = find(id)?;
            let model = &**model.transcriber()?;
            let Output::Aligner(aligner) = model.output() else {
                let reason = "this model does not align; choose a forced aligner";
                return Err(Error::option("model", reason));
            };
            let words = aligner.words(&text, language.as_deref())?;
            if words.is_empty() {
                return Err(Error::option("text", "it has no words"));
            }
            let most = aligner.longest() * f64::from(model.sample_rate());
            let samples = recording.start(model.sample_rate(), most as usize)?;
            if samples.is_empty() {
                return Err(no_samples());
            }
            let encoded = model.encode(&model.features(&samples)?)?;
            let times = aligner.times(&encoded, &words)?;
            let words = words.into_iter().zip(times);
            Ok(words.map(|(word, [start, end])| AlignedWord { word, start, end }).collect())
        };
        self.0.place.engine.compute(compute).await
    }

    /// Frees the memory of the model. What still uses it fails with [`Error::Unloaded`].
    ///
    /// # Errors
    /// [`Error::Internal`] when the engine has stopped.
    pub async fn unload(&self) -> Result<()> {
        network::free(&self.0.place).await
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// [`Error::NoTokenizer`] where the checkpoint has none of a common kind.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.0.tokenizer.as_ref().ok_or(Error::NoTokenizer)
    }

    fn recording(&self, audio: AudioInput) -> Result<Recording> {
        Ok(match audio {
            AudioInput::File(path) => Recording::File(path),
            AudioInput::Samples(audio) => {
                Recording::Samples(audio.to_mono(self.0.sample_rate)?.into())
            }
        })
    }
}

/// The features of the first window of a recording, or of all of it.
fn features(model: &dyn Transcriber, recording: &Recording) -> Result<Array> {
    /// References read no more of a recording at once.
    const SECONDS: usize = 30 * 60;
    let rate = model.sample_rate();
    let samples = recording.start(rate, SECONDS * rate as usize)?;
    if samples.is_empty() {
        return Err(no_samples());
    }
    model.features(&samples)
}

fn no_samples() -> Error {
    let reason = "it has no samples; choose another recording".into();
    Error::Audio { name: "the recording".into(), reason }
}

impl AudioHandle for AudioModel {
    const KIND: Kind = Kind::Transcriber;
    /// The size of the vocabulary of a model of windows, and the sample rate.
    type Facts = (Option<u32>, u32);

    fn facts(model: &EngineModel) -> Result<Self::Facts> {
        let model = model.transcriber()?;
        let size = match model.output() {
            Output::Windows(decoder) => Some(decoder.decoder.vocabulary()),
            Output::Prompted(_) | Output::Labels(_) | Output::Aligner(_) => None,
        };
        Ok((size, model.sample_rate()))
    }

    fn new(loaded: LoadedAudio<Self::Facts>) -> Result<Self> {
        let LoadedAudio { model_type, files, place, facts: (size, sample_rate) } = loaded;
        let has_tokenizer = Tokenizer::is_expected(&files)?;
        let tokenizer = has_tokenizer.then(|| Tokenizer::load(&files)).transpose()?;
        let windows = tokenizer.clone().zip(size);
        let vocabulary = windows.map(|(tokenizer, size)| Vocabulary::new(tokenizer, size));
        let vocabulary = vocabulary.transpose()?.map(Arc::new);
        let inner = Inner { model_type, sample_rate, tokenizer, vocabulary, place };
        Ok(AudioModel(Arc::new(inner)))
    }
}

impl From<&str> for AudioInput {
    fn from(path: &str) -> Self {
        AudioInput::File(path.into())
    }
}

impl From<&Path> for AudioInput {
    fn from(path: &Path) -> Self {
        AudioInput::File(path.into())
    }
}

impl From<PathBuf> for AudioInput {
    fn from(path: PathBuf) -> Self {
        AudioInput::File(path)
    }
}

impl From<Audio> for AudioInput {
    fn from(audio: Audio) -> Self {
        AudioInput::Samples(audio)
    }
}
