//! Loading and downloading.

use crate::{
    codec::AudioCodec,
    detection::VadModel,
    downloader::{Downloader, Host},
    error::MynahError,
    model::Model,
    session::SessionOptions,
    source::ModelSource,
    speech::SpeechModel,
    steps::Steps,
    transcription::AudioModel,
};
use mynah::{Location, Source, hub};
use std::sync::Arc;

/// How to load a model. The checkpoint decides absent options.
#[derive(Clone, Debug, Default, uniffi::Record)]
pub struct LoadOptions {
    /// The longest sequence, in tokens, if it is to be shorter than the config's.
    #[uniffi(default = None)]
    pub context: Option<u32>,
    /// The default cache options of its sessions and of generations without one; full precision by
    /// default. With a memory budget, the most precise options that fit.
    #[uniffi(default = None)]
    pub session: Option<SessionOptions>,
    /// The memory limit of the process from now on.
    #[uniffi(default = None)]
    pub memory: Option<MemoryPolicy>,
    /// Whether network requests are forbidden.
    #[uniffi(default = false)]
    pub offline: bool,
    /// Further end-of-sequence tokens.
    #[uniffi(default = [])]
    pub end_tokens: Vec<String>,
    /// A LoRA or DoRA adapter in the layout of mlx-lm or PEFT.
    #[uniffi(default = None)]
    pub adapter: Option<ModelSource>,
    /// The source of the tokenizer and the chat template, if not the model's.
    #[uniffi(default = None)]
    pub tokenizer: Option<ModelSource>,
    /// A chat template that replaces the one of the files.
    #[uniffi(default = None)]
    pub chat_template: Option<String>,
    /// Whether to compute a token during loading, so that the first generation starts at once.
    #[uniffi(default = false)]
    pub prewarm: bool,
}

/// The memory limit of all models of the process together.
#[derive(Clone, Copy, Debug, uniffi::Enum)]
pub enum MemoryPolicy {
    /// A limit.
    Budget {
        /// In bytes.
        bytes: u64,
    },
    /// No limit.
    Unlimited,
}

impl LoadOptions {
    fn core(
        self,
        downloader: Option<Arc<dyn Downloader>>,
    ) -> Result<mynah::LoadOptions, MynahError> {
        let defaults = mynah::SessionOptions::default();
        let session = self.session.map(|session| session.over(defaults)).transpose()?;
        let memory = match self.memory {
            None => mynah::MemoryPolicy::Unchanged,
            Some(MemoryPolicy::Budget { bytes }) => {
                mynah::MemoryPolicy::Budget(usize::try_from(bytes).unwrap_or(usize::MAX))
            }
            Some(MemoryPolicy::Unlimited) => mynah::MemoryPolicy::Unlimited,
        };
        let mut options = mynah::LoadOptions::default()
            .context(self.context.map(|context| context as usize))
            .session(session)
            .memory(memory)
            .end_tokens(self.end_tokens)
            .offline(self.offline)
            .downloader(downloader.map(Host::transport))
            .prewarm(self.prewarm);
        options.adapter = self.adapter.map(Location::try_from).transpose()?;
        options.tokenizer = self.tokenizer.map(Location::try_from).transpose()?;
        options.chat_template = self.chat_template;
        Ok(options)
    }
}

/// The progress of a load.
#[derive(Clone, Debug, uniffi::Enum)]
pub enum LoadEvent {
    /// The library downloads files from a hub.
    Downloading {
        /// The progress of the download.
        progress: DownloadProgress,
    },
    /// The library reads the weights.
    Loading {
        /// The fraction that is in memory, from 0 to 1.
        fraction: f64,
    },
}

/// The progress of a download over all files of a model.
#[derive(Clone, Debug, uniffi::Record)]
pub struct DownloadProgress {
    /// Bytes on the disk; never decreases.
    pub done: u64,
    /// Bytes of all files.
    pub total: u64,
    /// The current speed.
    pub bytes_per_second: f64,
    /// The remaining time at this speed, once a speed is known.
    pub remaining_seconds: Option<f64>,
    /// One of the files in progress.
    pub file: String,
}

impl From<hub::Progress> for DownloadProgress {
    fn from(progress: hub::Progress) -> Self {
        DownloadProgress {
            done: progress.done,
            total: progress.total,
            bytes_per_second: progress.bytes_per_second,
            remaining_seconds: progress.remaining.map(|remaining| remaining.as_secs_f64()),
            file: progress.file,
        }
    }
}

impl LoadEvent {
    /// None for an event of a kind that has no counterpart here.
    fn of(event: mynah::LoadEvent) -> Option<Self> {
        match event {
            mynah::LoadEvent::Download(progress) => {
                Some(LoadEvent::Downloading { progress: progress.into() })
            }
            mynah::LoadEvent::Weights(fraction) => {
                Some(LoadEvent::Loading { fraction: fraction.into() })
            }
            _ => None,
        }
    }
}

/// What kind of model is loaded.
#[derive(Clone, Copy, Debug, uniffi::Enum)]
pub enum ModelKind {
    /// A language model.
    Language,
    /// A model of speech to text.
    Audio,
    /// A model of text to speech.
    Speech,
    /// A detector of speech, turns or speakers.
    Vad,
    /// An audio codec.
    Codec,
}

/// A model in memory.
#[derive(Clone, uniffi::Enum)]
pub enum LoadedModel {
    /// A language model.
    Language {
        /// The model.
        model: Arc<Model>,
    },
    /// A model of speech to text.
    Audio {
        /// The model.
        model: Arc<AudioModel>,
    },
    /// A model of text to speech.
    Speech {
        /// The model.
        model: Arc<SpeechModel>,
    },
    /// A detector of speech, turns or speakers.
    Vad {
        /// The model.
        model: Arc<VadModel>,
    },
    /// An audio codec.
    Codec {
        /// The model.
        model: Arc<AudioCodec>,
    },
}

/// The load of a model. It starts with the first call of `next` or `model` and stops when it is
/// cancelled or dropped; downloaded bytes stay on the disk.
#[derive(uniffi::Object)]
pub struct Loading(Steps<LoadEvent, LoadedModel>);

/// Prepares the load of a model. A downloader, if given, downloads its files.
///
/// # Errors
/// When the source or an option is invalid.
#[uniffi::export(default(downloader = None))]
pub fn load_model(
    source: ModelSource,
    kind: ModelKind,
    options: LoadOptions,
    downloader: Option<Arc<dyn Downloader>>,
) -> Result<Arc<Loading>, MynahError> {
    let (location, options) = (Location::try_from(source)?, options.core(downloader)?);
    Ok(Arc::new(Loading(Steps::new(|events| async move {
        let tell = move |event| {
            if let Some(event) = LoadEvent::of(event) {
                events.send_replace(Some(event));
            }
        };
        Ok(match kind {
            ModelKind::Language => {
                let model = mynah::Model::load(location).options(options).progress(tell).await?;
                LoadedModel::Language { model: Arc::new(Model(model)) }
            }
            ModelKind::Audio => {
                let load = mynah::AudioModel::load(location).options(options).progress(tell);
                LoadedModel::Audio { model: Arc::new(AudioModel(load.await?)) }
            }
            ModelKind::Speech => {
                let load = mynah::SpeechModel::load(location).options(options).progress(tell);
                LoadedModel::Speech { model: Arc::new(SpeechModel(load.await?)) }
            }
            ModelKind::Vad => {
                let load = mynah::VadModel::load(location).options(options).progress(tell);
                LoadedModel::Vad { model: Arc::new(VadModel(load.await?)) }
            }
            ModelKind::Codec => {
                let load = mynah::AudioCodec::load(location).options(options).progress(tell);
                LoadedModel::Codec { model: Arc::new(AudioCodec(load.await?)) }
            }
        })
    }))))
}

#[uniffi::export]
impl Loading {
    /// Waits for progress; none once the model is loaded. A slow reader gets the latest event only.
    ///
    /// # Errors
    /// Why the load failed; once.
    pub async fn next(&self) -> Result<Option<LoadEvent>, MynahError> {
        self.0.next().await
    }

    /// Waits for the model.
    ///
    /// # Errors
    /// Why the load failed.
    pub async fn model(&self) -> Result<LoadedModel, MynahError> {
        self.0.outcome().await
    }

    /// Cancels the work.
    pub fn cancel(&self) {
        self.0.cancel();
    }
}

/// The download of a model. It starts with the first call of `next` or `folder` and stops when it is
/// cancelled or dropped; downloaded bytes stay on the disk.
#[derive(uniffi::Object)]
pub struct Downloading(Steps<hub::Progress, String>);

/// Prepares the download of a model.
///
/// # Errors
/// When the source is invalid or not on a hub.
#[uniffi::export(default(downloader = None))]
pub fn download_model(
    source: ModelSource,
    downloader: Option<Arc<dyn Downloader>>,
) -> Result<Arc<Downloading>, MynahError> {
    let source = Source::try_from(source)?;
    let source = match downloader {
        Some(downloader) => source.with_downloader(Host::transport(downloader)),
        None => source,
    };
    Ok(Arc::new(Downloading(Steps::new(|events| async move {
        let tell = move |progress| drop(events.send_replace(Some(progress)));
        let folder = mynah::download(&source, tell).await?;
        Ok(folder.to_string_lossy().into_owned())
    }))))
}

#[uniffi::export]
impl Downloading {
    /// Waits for progress; none once all files are on the disk. A slow reader gets the latest event only.
    ///
    /// # Errors
    /// Why the download failed; once.
    pub async fn next(&self) -> Result<Option<DownloadProgress>, MynahError> {
        Ok(self.0.next().await?.map(DownloadProgress::from))
    }

    /// Waits for the folder of the files.
    ///
    /// # Errors
    /// Why the download failed.
    pub async fn folder(&self) -> Result<String, MynahError> {
        self.0.outcome().await
    }

    /// Cancels the work.
    pub fn cancel(&self) {
        self.0.cancel();
    }
}
