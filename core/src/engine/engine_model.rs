//! A model on the engine's thread.

use crate::{
    checkpoint::{adapter, files::Files, scope::Scope},
    engine::{
        Engine,
        prefix_cache::{PrefixCache, Slot},
    },
    error::{Error, Result},
    families::{self, family},
    layers::cache_plan::CachePlan,
    mlx,
    models::{cache::Cache, decode_step::DecodeStep, language::LanguageModel},
};
use mlx_rs::{Array, memory};
use serde_json::Value;
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    mem,
    rc::Rc,
    sync::atomic::{AtomicU64, Ordering},
};

/// A model, its compiled decode steps, and the conversations that it has.
pub(crate) struct EngineModel {
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

impl EngineModel {
    /// Begins to read a checkpoint into memory; what it gives is called until the model is there,
    /// and reads a batch of tensors each time.
    pub(crate) fn read<P: FnMut(f32)>(
        files: &Files,
        adapter: Option<&Files>,
        config: &Value,
        mut progress: P,
    ) -> Result<impl FnMut() -> Result<Option<Self>> + use<P>> {
        let family = family(config)?;
        let weights = Scope::open_with(files, adapter, config)?;
        let mut network = Some(families::build(&weights)?);
        let fields = families::ignored_fields(&weights)?;
        if !fields.is_empty() {
            let family = family.model_types[0];
            tracing::warn!(family, ?fields, "config.json has fields that the model does not use");
        }
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
                EngineModel { network, decode, weights, fingerprint, sessions, unloaded }
            }))
        })
    }

    /// One token `[1, 1]` to logits `[1, 1, vocabulary]`.
    pub(crate) fn decode(&self, id: &Array, cache: &mut Cache) -> Result<Array> {
        self.decode.borrow_mut().run(&self.network, id, cache)
    }

    /// The prefix caches of its sessions.
    pub(crate) fn slots(&self) -> Vec<Rc<Slot>> {
        self.sessions.borrow().values().cloned().collect()
    }

    /// What it takes; on the engine's thread, between two steps.
    pub(crate) fn memory(&self) -> ModelMemory {
        let sessions = self.sessions.borrow();
        let caches = sessions.values().map(|slot| slot.memory.borrow().bytes()).sum();
        ModelMemory { weights: self.weights, caches }
    }

    /// An empty memory.
    pub(crate) fn prompt_cache(&self, plan: CachePlan, checkpoint_bytes: usize) -> PrefixCache {
        PrefixCache::new(self.network.clone(), plan, checkpoint_bytes)
    }
}

/// What one model takes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelMemory {
    /// Its weights.
    pub weights: usize,
    /// What its sessions remember.
    pub caches: usize,
}

thread_local! {
    /// The models of the engine's thread.
    static MODELS: RefCell<HashMap<u64, Rc<EngineModel>>> = RefCell::default();
}

/// The place of a model among those of the engine's thread, which this keeps.
pub(crate) struct Place {
    pub id: u64,
    pub engine: &'static Engine,
}

impl Place {
    /// On the engine's thread.
    pub fn new(engine: &'static Engine, loaded: EngineModel) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        MODELS.with_borrow_mut(|models| models.insert(id, Rc::new(loaded)));
        Place { id, engine }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let id = self.id;
        self.engine.post_job(move || {
            MODELS.with_borrow_mut(|models| models.remove(&id));
            mlx::release_memory().ok();
        });
    }
}

/// A model by its id. On the engine's thread.
pub(crate) fn find(id: u64) -> Result<Rc<EngineModel>> {
    MODELS.with_borrow(|models| models.get(&id).cloned()).ok_or(Error::Unloaded)
}

/// All models. On the engine's thread.
pub(crate) fn all() -> Vec<Rc<EngineModel>> {
    MODELS.with_borrow(|models| models.values().cloned().collect())
}

/// Frees a model, whatever handles it has. On the engine's thread.
pub(crate) fn unload(id: u64) {
    if let Some(loaded) = MODELS.with_borrow_mut(|models| models.remove(&id)) {
        loaded.unloaded.set(true);
        loaded.sessions.borrow_mut().clear();
    }
}
