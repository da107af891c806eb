//! Loading of models that are no language models.

use crate::{
    api::{
        download::{CONFIG, MODEL, download_as},
        load::{Limit, LoadEvent, LoadOptions, Progress, Tell},
        location::{Found, Location},
    },
    checkpoint::files::Files,
    engine::{
        Engine, Turn,
        engine_model::{EngineModel, Place, unload},
    },
    error::{Error, Result},
    families::{self, Entry},
    mlx,
    models::network::Kind,
};
use serde_json::Value;
use std::{
    fmt,
    marker::PhantomData,
    pin::Pin,
    sync::{Arc, Mutex},
};

/// A model of audio to be loaded, made by the `load` of its handle. Awaiting it loads the model; dropping
/// the future cancels the load.
#[must_use = "a model is loaded when its `LoadAudio` is awaited"]
pub struct LoadAudio<M> {
    location: Location,
    options: LoadOptions,
    progress: Progress,
    handle: PhantomData<fn() -> M>,
}

/// The handle of a model of audio.
pub(crate) trait AudioHandle: Sized + Send + 'static {
    /// The kind of its networks.
    const KIND: Kind;
    /// What the handle knows of its network.
    type Facts: Send + 'static;

    /// The facts of a network, on the engine thread.
    fn facts(model: &EngineModel) -> Result<Self::Facts>;

    /// The handle of a model that is in memory.
    fn new(loaded: LoadedAudio<Self::Facts>) -> Result<Self>;
}

/// A model of audio that is in memory.
pub(crate) struct LoadedAudio<F> {
    pub model_type: String,
    pub files: Files,
    pub place: Place,
    pub facts: F,
}

impl<M> LoadAudio<M> {
    pub(super) fn new(location: Location) -> Self {
        let progress = Box::new(|_| {});
        LoadAudio { location, options: LoadOptions::default(), progress, handle: PhantomData }
    }

    /// Sets the options. Those of prompts and caches have no effect.
    pub fn options(self, options: LoadOptions) -> Self {
        LoadAudio { options, ..self }
    }

    /// Sets a handler of progress events, which other threads call.
    pub fn progress(self, handler: impl FnMut(LoadEvent) + Send + 'static) -> Self {
        LoadAudio { progress: Box::new(handler), ..self }
    }
}

async fn load<M: AudioHandle>(load: LoadAudio<M>) -> Result<M> {
    let LoadAudio { location, options, progress, .. } = load;
    let tell = Tell(Arc::new(Mutex::new(progress)));
    let limit = Limit::set(options.memory)?;
    let read = |preview: &Preview| {
        preview.family.expect(M::KIND, &preview.config)?;
        Ok((preview.family.name(&preview.config).to_string(), preview.files.clone()))
    };
    let Loaded { place, settings, facts } =
        read_network(location, &options, tell, read, M::facts).await?;
    let (model_type, files) = settings;
    let model = M::new(LoadedAudio { model_type, files, place, facts })?;
    limit.keep();
    Ok(model)
}

/// What a checkpoint shows before its weights are read.
pub(super) struct Preview<'a> {
    pub files: &'a Files,
    pub family: &'static Entry,
    /// Its `config.json`; null without one.
    pub config: Value,
}

/// A model on the engine thread, what was read beside its weights, and what was told about it.
pub(super) struct Loaded<S, T> {
    pub place: Place,
    pub settings: S,
    pub facts: T,
}

/// Loads a model that `read` accepts, and tells `about` it on the engine thread.
pub(super) async fn load_with<S, T: Send + 'static>(
    location: Location,
    read: impl FnOnce(&Preview) -> Result<S>,
    about: impl Fn(&EngineModel) -> Result<T> + Send + 'static,
) -> Result<Loaded<S, T>> {
    let (name, options) = (location.to_string(), LoadOptions::default());
    let tell = Tell(Arc::new(Mutex::new(Box::new(|_| {}))));
    let loaded = read_network(location, &options, tell, read, about);
    loaded.await.map_err(Error::of_model(name))
}

async fn read_network<S, T: Send + 'static>(
    location: Location,
    options: &LoadOptions,
    tell: Tell,
    read: impl FnOnce(&Preview) -> Result<S>,
    about: impl Fn(&EngineModel) -> Result<T> + Send + 'static,
) -> Result<Loaded<S, T>> {
    let engine = Engine::get()?;
    let files: Files = match location.resolve()? {
        Found::Here(files) => files,
        Found::Hub(source) => {
            let tell = tell.clone();
            let tell = move |progress| tell.event(LoadEvent::Download(progress));
            download_as(&options.source(*source), MODEL, tell).await?.into()
        }
    };
    let config = files.json(CONFIG)?;
    let family = families::family(&files, config.as_ref())?;
    let preview = Preview { files: &files, family, config: config.clone().unwrap_or_default() };
    let settings = read(&preview)?;
    let begin = move || {
        let tell = move |share| tell.event(LoadEvent::Weights(share));
        let mut reading = EngineModel::read(&files, None, config.as_ref(), tell)?;
        Ok(move || {
            let Some(model) = reading()? else { return Ok(None) };
            let facts = about(&model)?;
            Ok(Some((Place::new(engine, model), facts)))
        })
    };
    let (place, facts) = engine.run_in_turns(Turn::Ready, begin).await?;
    Ok(Loaded { place, settings, facts })
}

impl<M: AudioHandle> IntoFuture for LoadAudio<M> {
    type Output = Result<M>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<M>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        let name = self.location.to_string();
        Box::pin(async move { load(self).await.map_err(Error::of_model(name)) })
    }
}

impl<M> fmt::Debug for LoadAudio<M> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("LoadAudio").field("location", &self.location).finish_non_exhaustive()
    }
}

/// Frees the memory of a model. What still uses it fails with [`Error::Unloaded`].
pub(super) async fn free(place: &Place) -> Result<()> {
    let id = place.id;
    let free = move || {
        unload(id);
        Ok(())
    };
    place.engine.run_at_once(free).await?;
    // Between the two jobs, transcriptions take their last turn.
    place.engine.run_at_once(mlx::release_memory).await
}
