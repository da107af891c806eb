//! A model on its way.

use crate::{
    downloader::{Downloader, Host},
    error::MynahError,
    model::Model,
    session::SessionOptions,
    source::ModelSource,
    steps::Steps,
};
use mynah::{Location, Source, hub};
use std::sync::Arc;

/// How to load a model; what is not given is as its checkpoint says.
#[derive(Clone, Debug, Default, uniffi::Record)]
pub struct LoadOptions {
    /// The longest sequence, in tokens, where that shall be shorter than what the model was made
    /// for.
    #[uniffi(default = None)]
    pub context: Option<u32>,
    /// How its sessions remember where they do not say otherwise, and how it does without one. By
    /// default in full precision; under a budget, as loses least of what fits.
    #[uniffi(default = None)]
    pub session: Option<SessionOptions>,
    /// What the process may take from now on.
    #[uniffi(default = None)]
    pub memory: Option<MemoryPolicy>,
    /// Whether no request may be made.
    #[uniffi(default = false)]
    pub offline: bool,
    /// Further tokens that end the text.
    #[uniffi(default = [])]
    pub end_tokens: Vec<String>,
    /// What fine-tuning added to the model, as mlx-lm or PEFT writes it.
    #[uniffi(default = None)]
    pub adapter: Option<ModelSource>,
    /// Where the tokenizer and the chat template are, if not beside the weights.
    #[uniffi(default = None)]
    pub tokenizer: Option<ModelSource>,
    /// A chat template instead of those of the files.
    #[uniffi(default = None)]
    pub chat_template: Option<String>,
    /// Whether to compute a first token before the model is there.
    #[uniffi(default = false)]
    pub prewarm: bool,
}

/// How much memory all models of the process may take together.
#[derive(Clone, Copy, Debug, uniffi::Enum)]
pub enum MemoryPolicy {
    /// So much.
    Budget {
        /// In bytes.
        bytes: u64,
    },
    /// As much as the system gives.
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

/// How far the loading of a model is.
#[derive(Clone, Debug, uniffi::Enum)]
pub enum LoadEvent {
    /// Files come from a hub.
    Downloading {
        /// How far that is.
        progress: DownloadProgress,
    },
    /// The weights are read.
    Loading {
        /// The share that is in memory, from 0 to 1.
        share: f64,
    },
}

/// How far a download is, over all files of a model.
#[derive(Clone, Debug, uniffi::Record)]
pub struct DownloadProgress {
    /// Bytes that are on the disk; it never falls.
    pub done: u64,
    /// Bytes of all files.
    pub total: u64,
    /// Bytes that arrive in a second.
    pub bytes_per_second: f64,
    /// How many seconds it will take at this speed, once there is one.
    pub remaining_seconds: Option<f64>,
    /// A file that is being fetched.
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
            mynah::LoadEvent::Weights(share) => Some(LoadEvent::Loading { share: share.into() }),
            _ => None,
        }
    }
}

/// A model on its way. It starts when it is first asked for something, and stops when it is
/// cancelled or dropped; what was downloaded until then stays on the disk.
#[derive(uniffi::Object)]
pub struct Loading(Steps<LoadEvent, Arc<Model>>);

/// Begins to load a model, its files by way of the host if that brings a downloader.
///
/// # Errors
/// When the source is none, or an option makes no sense.
#[uniffi::export(default(downloader = None))]
pub fn load_model(
    source: ModelSource,
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
        let load = mynah::Model::load(location).options(options).progress(tell);
        load.await.map(|model| Arc::new(Model(model)))
    }))))
}

#[uniffi::export]
impl Loading {
    /// How far it is now, when that has changed; nothing more once the model is there.
    ///
    /// # Errors
    /// Why there will be no model; once.
    pub async fn next(&self) -> Result<Option<LoadEvent>, MynahError> {
        self.0.next().await
    }

    /// The model, once it is there.
    ///
    /// # Errors
    /// Why there will be none.
    pub async fn model(&self) -> Result<Arc<Model>, MynahError> {
        self.0.outcome().await
    }

    /// Stops it.
    pub fn cancel(&self) {
        self.0.cancel();
    }
}

/// A model on its way to the disk. It starts when it is first asked for something, and stops when it
/// is cancelled or dropped; what has arrived until then stays.
#[derive(uniffi::Object)]
pub struct Downloading(Steps<hub::Progress, String>);

/// Begins to download a model, unless it is on the disk.
///
/// # Errors
/// When the source is none, or not one of a hub.
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
    /// How far it is now, when that has changed; nothing more once everything is there, and nothing
    /// at all if it was.
    ///
    /// # Errors
    /// Why it will not be there; once.
    pub async fn next(&self) -> Result<Option<DownloadProgress>, MynahError> {
        Ok(self.0.next().await?.map(DownloadProgress::from))
    }

    /// The folder of the model's files, once they are there.
    ///
    /// # Errors
    /// Why they will not be.
    pub async fn folder(&self) -> Result<String, MynahError> {
        self.0.outcome().await
    }

    /// Stops it.
    pub fn cancel(&self) {
        self.0.cancel();
    }
}
