//! A model on the engine's thread.

use crate::{
    config::Json,
    error::{Error, Result},
    families::{self, Family},
    files::Files,
    model::{Cache, DecodeStep, LanguageModel},
    weights::Scope,
};
use mlx_rs::{Array, memory};
use std::{cell::RefCell, rc::Rc};

/// A model and its compiled decode steps.
pub(crate) struct Loaded {
    pub network: Rc<dyn LanguageModel>,
    decode: RefCell<DecodeStep>,
}

impl Loaded {
    /// Reads a checkpoint into memory.
    pub(crate) fn read(files: &Files, config: &Json, progress: impl FnMut(f32)) -> Result<Self> {
        let family = family(config)?;
        let weights = Scope::open(files, config)?;
        let network = (family.build)(config, &weights)?;
        weights.finish(progress)?;
        tracing::debug!(
            family = family.model_types[0],
            memory = memory::active_memory()?,
            "loaded"
        );
        Ok(Loaded { network: network.into(), decode: RefCell::default() })
    }

    /// One token `[1, 1]` to logits `[1, 1, vocabulary]`.
    pub(crate) fn decode(&self, id: &Array, cache: &mut Cache) -> Result<Array> {
        self.decode.borrow_mut().run(&self.network, id, cache)
    }
}

/// The family that reads a checkpoint.
pub(crate) fn family(config: &Json) -> Result<&'static Family> {
    if let Some(file) = config.get("model_file").and_then(Json::as_str) {
        return Err(Error::CustomCode(file.into()));
    }
    families::find(model_type(config)?)
}

/// Its name in a config.
pub(crate) fn model_type(config: &Json) -> Result<&str> {
    let model_type =
        config.get("model_type").ok_or_else(|| Error::config("model_type", "missing"))?;
    model_type.as_str().ok_or_else(|| Error::config("model_type", "not a string"))
}
