//! Loading of models of audio.

use crate::{
    api::{
        download::{CONFIG, MODEL, download_as},
        location::{Found, Location},
    },
    engine::{
        Engine, Turn,
        engine_model::{EngineModel, Place},
    },
    error::{Error, Result},
    families,
    models::network::Kind,
};
use std::sync::Arc;

/// Loads a model of one kind, and tells `about` it on the engine thread.
pub(super) async fn load<T: Send + 'static>(
    location: Location,
    kind: Kind,
    about: impl Fn(&EngineModel) -> Result<T> + Send + 'static,
) -> Result<(Arc<Place>, T)> {
    let name = location.to_string();
    let loaded = async {
        let engine = Engine::get()?;
        let files = match location.resolve()? {
            Found::Here(files) => files,
            Found::Hub(source) => download_as(&source, MODEL, drop).await?.into(),
        };
        let config = files.json(CONFIG)?;
        let family = families::family(&files, config.as_ref())?;
        family.expect(kind, &config.clone().unwrap_or_default())?;
        let read = move || {
            let mut reading = EngineModel::read(&files, None, config.as_ref(), drop)?;
            Ok(move || {
                let Some(model) = reading()? else { return Ok(None) };
                let facts = about(&model)?;
                Ok(Some((Arc::new(Place::new(engine, model)), facts)))
            })
        };
        engine.run_in_turns(Turn::Ready, read).await
    };
    loaded.await.map_err(Error::of_model(name))
}
