//! Loading of models that are no language models.

use crate::{
    api::{
        download::{CONFIG, MODEL, download_as},
        location::{Found, Location},
    },
    checkpoint::files::Files,
    engine::{
        Engine, Turn,
        engine_model::{EngineModel, Place},
    },
    error::{Error, Result},
    families::{self, Entry},
    models::network::Kind,
};
use serde_json::Value;
use std::sync::Arc;

/// What a checkpoint shows before its weights are read.
pub(super) struct Preview<'a> {
    pub files: &'a Files,
    pub family: &'static Entry,
    /// Its `config.json`; null without one.
    pub config: Value,
}

/// A model on the engine thread, what was read beside its weights, and what was told about it.
pub(super) struct Loaded<S, T> {
    pub place: Arc<Place>,
    pub settings: S,
    pub facts: T,
}

/// Loads a model of one kind, and tells `about` it on the engine thread.
pub(super) async fn load<T: Send + 'static>(
    location: Location,
    kind: Kind,
    about: impl Fn(&EngineModel) -> Result<T> + Send + 'static,
) -> Result<(Arc<Place>, T)> {
    let expect = |preview: &Preview| preview.family.expect(kind, &preview.config);
    let loaded = load_with(location, expect, about).await?;
    Ok((loaded.place, loaded.facts))
}

/// Loads a model that `read` accepts, and tells `about` it on the engine thread.
pub(super) async fn load_with<S, T: Send + 'static>(
    location: Location,
    read: impl FnOnce(&Preview) -> Result<S>,
    about: impl Fn(&EngineModel) -> Result<T> + Send + 'static,
) -> Result<Loaded<S, T>> {
    let name = location.to_string();
    let loaded = async {
        let engine = Engine::get()?;
        let files = match location.resolve()? {
            Found::Here(files) => files,
            Found::Hub(source) => download_as(&source, MODEL, drop).await?.into(),
        };
        let config = files.json(CONFIG)?;
        let family = families::family(&files, config.as_ref())?;
        let preview = Preview { files: &files, family, config: config.clone().unwrap_or_default() };
        let settings = read(&preview)?;
        let begin = move || {
            let mut reading = EngineModel::read(&files, None, config.as_ref(), drop)?;
            Ok(move || {
                let Some(model) = reading()? else { return Ok(None) };
                let facts = about(&model)?;
                Ok(Some((Arc::new(Place::new(engine, model)), facts)))
            })
        };
        let (place, facts) = engine.run_in_turns(Turn::Ready, begin).await?;
        Ok(Loaded { place, settings, facts })
    };
    loaded.await.map_err(Error::of_model(name))
}
