//! Models of speech and audio, as applications hold them.

use crate::{
    api::{
        download::{CONFIG, MODEL, download_as},
        load::{Limit, LoadEvent, LoadOptions, Progress, Tell},
        location::{Found, Location},
    },
    engine::{
        Engine, LiveAudio, LiveRequest, Transcription, TranscriptionRequest, Turn,
        engine_model::{EngineModel, Place, find, unload},
    },
    error::{Error, Result},
    families,
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
    fmt,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex},
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

/// A model to be loaded, made by [`AudioModel::load`]. Awaiting it loads the model; dropping the future
/// cancels the load.
#[must_use = "a model is loaded when its `LoadAudio` is awaited"]
pub struct LoadAudio {
    location: Location,
    options: LoadOptions,
    progress: Progress,
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
    pub fn load(location: impl Into<Location>) -> LoadAudio {
        let progress = Box::new(|_| {});
        LoadAudio { location: location.into(), options: LoadOptions::default(), progress }
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

    /// Frees the memory of the model. What still uses it fails with [`Error::Unloaded`].
    ///
    /// # Errors
    /// [`Error::Internal`] when the engine has stopped.
    pub async fn unload(&self) -> Result<()> {
        let id = self.0.place.id;
        let free = move || {
            unload(id);
            Ok(())
        };
        self.0.place.engine.run_at_once(free).await?;
        // Between the two jobs, the transcriptions take their last turn.
        self.0.place.engine.run_at_once(mlx::release_memory).await
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
        let reason = "it has no samples; choose another recording".into();
        return Err(Error::Audio { name: "the recording".into(), reason });
    }
    model.features(&samples)
}

impl LoadAudio {
    /// Sets the options.
    pub fn options(self, options: LoadOptions) -> Self {
        LoadAudio { options, ..self }
    }

    /// Sets a handler of progress events, which other threads call.
    pub fn progress(self, handler: impl FnMut(LoadEvent) + Send + 'static) -> Self {
        LoadAudio { progress: Box::new(handler), ..self }
    }

    async fn run(self) -> Result<AudioModel> {
        let LoadAudio { location, options, progress } = self;
        let tell = Tell(Arc::new(Mutex::new(progress)));
        let engine = Engine::get()?;
        let files = match location.resolve()? {
            Found::Here(files) => files,
            Found::Hub(source) => {
                let tell = tell.clone();
                let tell = move |progress| tell.event(LoadEvent::Download(progress));
                download_as(&options.source(*source), MODEL, tell).await?.into()
            }
        };
        let config = files.json(CONFIG)?;
        let family = families::family(&files, config.as_ref())?;
        let model_type = family.name(&config.clone().unwrap_or_default()).to_string();
        family.expect(Kind::Transcriber, &config.clone().unwrap_or_default())?;
        let has_tokenizer = Tokenizer::is_expected(&files)?;
        let tokenizer = has_tokenizer.then(|| Tokenizer::load(&files)).transpose()?;
        let limit = Limit::set(options.memory)?;
        let reading = move || {
            let tell = move |share| tell.event(LoadEvent::Weights(share));
            let mut reading = EngineModel::read(&files, None, config.as_ref(), tell)?;
            Ok(move || {
                let Some(loaded) = reading()? else { return Ok(None) };
                let model = loaded.transcriber()?;
                let size = match model.output() {
                    Output::Windows(decoder) => Some(decoder.decoder.vocabulary()),
                    Output::Prompted(_) | Output::Labels(_) => None,
                };
                let sample_rate = model.sample_rate();
                Ok(Some((size, sample_rate, Place::new(engine, loaded))))
            })
        };
        let (size, sample_rate, place) = engine.run_in_turns(Turn::Ready, reading).await?;
        let windows = tokenizer.clone().zip(size);
        let vocabulary = windows.map(|(tokenizer, size)| Vocabulary::new(tokenizer, size));
        let vocabulary = vocabulary.transpose()?.map(Arc::new);
        limit.keep();
        let inner = Inner { model_type, sample_rate, tokenizer, vocabulary, place };
        Ok(AudioModel(Arc::new(inner)))
    }
}

impl IntoFuture for LoadAudio {
    type Output = Result<AudioModel>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<AudioModel>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        let name = self.location.to_string();
        Box::pin(async move { self.run().await.map_err(Error::of_model(name)) })
    }
}

impl fmt::Debug for LoadAudio {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("LoadAudio").field("location", &self.location).finish_non_exhaustive()
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
