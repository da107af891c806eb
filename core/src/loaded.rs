//! A model on the engine's thread.

use crate::{
    adapter,
    config::Json,
    error::{Error, Result},
    families::{self, Family},
    files::Files,
    generate::{PromptCache, SessionOptions, Slot},
    memory::ModelMemory,
    model::{Cache, DecodeStep, LanguageModel},
    weights::Scope,
};
use mlx_rs::{Array, memory};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    mem,
    rc::Rc,
};

/// A model, its compiled decode steps, and the conversations that it has.
pub(crate) struct Loaded {
    pub network: Rc<dyn LanguageModel>,
    decode: RefCell<DecodeStep>,
    /// Bytes that its weights take.
    weights: usize,
    /// What tells its checkpoint from others.
    pub fingerprint: String,
    pub sessions: RefCell<HashMap<u64, Rc<Slot>>>,
    /// Whoever still uses it shall end.
    pub unloaded: Cell<bool>,
}

impl Loaded {
    /// Begins to read a checkpoint into memory; what it gives is called until the model is there,
    /// and reads a batch of tensors each time.
    pub(crate) fn read<P: FnMut(f32)>(
        files: &Files,
        adapter: Option<&Files>,
        config: &Json,
        mut progress: P,
    ) -> Result<impl FnMut() -> Result<Option<Self>> + use<P>> {
        let family = family(config)?;
        let weights = Scope::open_with(files, adapter, config)?;
        let mut network = Some((family.build)(config, &weights)?);
        let mut reading = weights.reading()?;
        let weights = reading.total();
        let mut fingerprint = files.fingerprint()?;
        if let Some(adapter) = adapter {
            fingerprint += &adapter::fingerprint(adapter)?;
        }
        Ok(move || {
            if let Some(share) = reading.next()? {
                progress(share);
                return Ok(None);
            }
            let (decode, sessions) = (RefCell::default(), RefCell::default());
            let memory = memory::active_memory()?;
            tracing::debug!(family = family.model_types[0], memory, "loaded");
            Ok(network.take().map(|network| {
                let (network, fingerprint) = (network.into(), mem::take(&mut fingerprint));
                let unloaded = Cell::new(false);
                Loaded { network, decode, weights, fingerprint, sessions, unloaded }
            }))
        })
    }

    /// One token `[1, 1]` to logits `[1, 1, vocabulary]`.
    pub(crate) fn decode(&self, id: &Array, cache: &mut Cache) -> Result<Array> {
        self.decode.borrow_mut().run(&self.network, id, cache)
    }

    /// What it takes; on the engine's thread, between two steps.
    pub(crate) fn memory(&self) -> ModelMemory {
        let sessions = self.sessions.borrow();
        let caches = sessions.values().map(|slot| slot.memory.borrow().bytes()).sum();
        ModelMemory { weights: self.weights, caches }
    }

    /// An empty memory.
    pub(crate) fn prompt_cache(&self, options: SessionOptions) -> PromptCache {
        PromptCache::new(self.network.clone(), options.plan(), options.snapshot_bytes)
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
