//! A model on the engine's thread.

use crate::{
    checkpoint::{adapter, files::Files, scope::Scope},
    engine::{
        Engine,
        draft_model::DraftModel,
        media_cache::MediaCache,
        prefix_cache::{PrefixCache, Slot},
        prompt::EnginePrompt,
        speculator::SOURCES,
    },
    error::{Error, Result},
    families::{self, family},
    generate::Costs,
    layers::cache_plan::CachePlan,
    mlx,
    models::{
        cache::Cache,
        codec::Codec,
        decode_step::DecodeStep,
        detector::Detector,
        embedder::Embedder,
        language::LanguageModel,
        network::{Kind, Network},
        reranker::Reranker,
        speaker::Speaker,
        speech::Transcriber,
    },
    processors::PreparedMedia,
};
use mlx_rs::{Array, linalg, memory, ops, transforms::async_eval};
use serde_json::{Map, Value};
use std::{
    cell::{Cell, RefCell, RefMut},
    collections::HashMap,
    mem,
    rc::Rc,
    sync::atomic::{AtomicU64, Ordering},
};

/// A model, its compiled decode steps, and the prefix caches of its sessions.
pub(crate) struct EngineModel {
    network: Network,
    /// Its `model_type`, or the name of its family.
    model_type: String,
    /// The fields of its config that it does not use.
    pub ignored_fields: Vec<String>,
    decode: Rc<RefCell<DecodeStep>>,
    /// What its passes have cost, for the governors of its generations: with drafts of each source.
    pub costs: RefCell<[Costs; SOURCES]>,
    /// Bytes that its weights take.
    weights: usize,
    /// What tells its checkpoint from others.
    pub fingerprint: String,
    pub sessions: RefCell<HashMap<u64, Rc<Slot>>>,
    /// The features of the latest pictures.
    media: RefCell<MediaCache>,
    /// Generations that still use it end.
    pub unloaded: Cell<bool>,
}

impl EngineModel {
    /// Begins to read a checkpoint into memory. Each call of the returned function reads a batch of
    /// tensors; the last one returns the model.
    pub(crate) fn read<P: FnMut(f32)>(
        files: &Files,
        adapter: Option<&Files>,
        config: Option<&Value>,
        mut progress: P,
    ) -> Result<impl FnMut() -> Result<Option<Self>> + use<P>> {
        let family = family(files, config)?;
        let none = Value::Object(Map::new());
        let config = config.unwrap_or(&none);
        let weights = Scope::open_with(files, &family.files, adapter, config)?;
        let mut network = Some(family.network(&weights, files)?);
        let mut ignored_fields = families::ignored_fields(&weights)?;
        let mut model_type = family.name(config).to_string();
        let parameters = weights.parameters();
        let mut reading = weights.reading()?;
        let weights = reading.total();
        let mut fingerprint = files.fingerprint_of(&family.files)?;
        if let Some(adapter) = adapter {
            fingerprint += &adapter::fingerprint(adapter)?;
        }
        Ok(move || {
            if let Some(share) = reading.next()? {
                progress(share);
                return Ok(None);
            }
            let decode = Rc::new(RefCell::new(DecodeStep::with_parameters(parameters.clone())));
            let sessions = RefCell::default();
            let memory = memory::active_memory()?;
            tracing::debug!(family = family.model_types[0], memory, "weights loaded");
            mlx::memory::wire_if_large()?;
            Ok(network.take().map(|network| EngineModel {
                network,
                model_type: mem::take(&mut model_type),
                ignored_fields: mem::take(&mut ignored_fields),
                decode,
                costs: RefCell::default(),
                weights,
                fingerprint: mem::take(&mut fingerprint),
                sessions,
                media: RefCell::default(),
                unloaded: Cell::new(false),
            }))
        })
    }

    /// The language model that it is.
    ///
    /// # Errors
    /// [`Error::ModelKind`] for a model of another kind.
    pub(crate) fn language(&self) -> Result<&Rc<dyn LanguageModel>> {
        match &self.network {
            Network::Language(model) => Ok(model),
            _ => Err(self.is_no(Kind::Language)),
        }
    }

    /// The audio codec that it is.
    ///
    /// # Errors
    /// [`Error::ModelKind`] for a model of another kind.
    pub(crate) fn codec(&self) -> Result<&Rc<dyn Codec>> {
        match &self.network {
            Network::Codec(model) => Ok(model),
            _ => Err(self.is_no(Kind::Codec)),
        }
    }

    /// The detector that it is.
    ///
    /// # Errors
    /// [`Error::ModelKind`] for a model of another kind.
    pub(crate) fn detector(&self) -> Result<&Rc<dyn Detector>> {
        match &self.network {
            Network::Detector(model) => Ok(model),
            _ => Err(self.is_no(Kind::Detector)),
        }
    }

    /// The embedder that it is.
    ///
    /// # Errors
    /// [`Error::ModelKind`] for a model of another kind.
    pub(crate) fn embedder(&self) -> Result<&Rc<dyn Embedder>> {
        match &self.network {
            Network::Embedder(model) => Ok(model),
            _ => Err(self.is_no(Kind::Embedder)),
        }
    }

    /// The reranker that it is.
    ///
    /// # Errors
    /// [`Error::ModelKind`] for a model of another kind.
    pub(crate) fn reranker(&self) -> Result<&Rc<dyn Reranker>> {
        match &self.network {
            Network::Reranker(model) => Ok(model),
            _ => Err(self.is_no(Kind::Reranker)),
        }
    }

    /// The speaker that it is.
    ///
    /// # Errors
    /// [`Error::ModelKind`] for a model of another kind.
    pub(crate) fn speaker(&self) -> Result<&Rc<dyn Speaker>> {
        match &self.network {
            Network::Speaker(model) => Ok(model),
            _ => Err(self.is_no(Kind::Speaker)),
        }
    }

    /// The transcriber that it is.
    ///
    /// # Errors
    /// [`Error::ModelKind`] for a model of another kind.
    pub(crate) fn transcriber(&self) -> Result<&Rc<dyn Transcriber>> {
        match &self.network {
            Network::Transcriber(model) => Ok(model),
            _ => Err(self.is_no(Kind::Transcriber)),
        }
    }

    fn is_no(&self, expected: Kind) -> Error {
        Error::ModelKind {
            model_type: self.model_type.clone(),
            found: self.network.kind().description(),
            expected: expected.description(),
        }
    }

    /// Its compiled decode steps.
    pub(crate) fn decode_step(&self) -> RefMut<'_, DecodeStep> {
        self.decode.borrow_mut()
    }

    /// One token `[1, 1]` to logits `[1, 1, vocabulary]`.
    pub(crate) fn decode(&self, id: &Array, cache: &mut Cache) -> Result<Array> {
        self.decode.borrow_mut().run(self.language()?, id, cache)
    }

    /// Tokens `[1, length]` to logits `[1, length, vocabulary]`, of which the cache keeps what it is told
    /// to accept.
    pub(crate) fn verify(&self, ids: &Array, cache: &mut Cache) -> Result<Array> {
        self.decode.borrow_mut().verify(self.language()?, ids, cache)
    }

    /// The model as one that drafts, with an empty cache.
    ///
    /// # Errors
    /// [`Error::ModelKind`] unless it is a language model.
    pub(crate) fn drafting(&self) -> Result<DraftModel> {
        Ok(DraftModel::new(self.language()?.clone(), self.decode.clone()))
    }

    /// Whether this model drafts there.
    pub(crate) fn drafts_in(&self, draft: &DraftModel) -> bool {
        draft.steps_by(&self.decode)
    }

    /// Whether such a verify pass is compiled.
    pub(crate) fn has_compiled_verify(&self, cache: &Cache, length: usize) -> bool {
        self.decode.borrow().has_compiled_verify(cache, length as i32)
    }

    /// Whether the decode step of such a cache is compiled.
    pub(crate) fn has_compiled(&self, cache: &Cache) -> bool {
        self.decode.borrow().has_compiled(cache)
    }

    /// The prefix caches of its sessions.
    pub(crate) fn slots(&self) -> Vec<Rc<Slot>> {
        self.sessions.borrow().values().cloned().collect()
    }

    /// What it takes; on the engine's thread, between two steps.
    pub(crate) fn memory(&self) -> ModelMemory {
        let sessions = self.sessions.borrow();
        let bytes = |slot: &Rc<Slot>| {
            let drafts = slot.draft_model.borrow().as_ref().map_or(0, DraftModel::bytes);
            slot.prefix_cache.borrow().bytes() + drafts
        };
        let caches = sessions.values().map(bytes).sum();
        ModelMemory { weights: self.weights, caches }
    }

    /// A prompt of tokens and of the media that its placeholders stand for.
    ///
    /// # Errors
    /// [`Error::ModelKind`], and those of [`EnginePrompt::new`].
    pub(crate) fn prompt(&self, tokens: Vec<u32>, media: &[PreparedMedia]) -> Result<EnginePrompt> {
        let media = self.media.borrow_mut().get(media);
        EnginePrompt::new(&**self.language()?, tokens, &media)
    }

    /// Frees the features of pictures that no generation uses.
    pub(crate) fn forget_media(&self) {
        self.media.take();
    }

    /// An empty prefix cache.
    ///
    /// # Errors
    /// [`Error::ModelKind`] unless it is a language model.
    pub(crate) fn prompt_cache(
        &self,
        plan: CachePlan,
        checkpoint_bytes: usize,
    ) -> Result<PrefixCache> {
        Ok(PrefixCache::new(self.language()?.clone(), plan, checkpoint_bytes))
    }
}

/// The memory of one model, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelMemory {
    /// Its weights.
    pub weights: usize,
    /// The prefix caches of its sessions.
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

/// Leaves what a failing device leaves: zeros in the caches that generations are changing, and a
/// failure that the next call meets. For tests; on the engine's thread.
pub fn fail_device() -> Result<()> {
    // A product, so that the failure seldom comes before everything is queued.
    let ones = ops::ones::<f32>(&[2, 200_000])?;
    let zeros = ones.matmul(ones.t())?.multiply(Array::from_f32(0.0))?;
    async_eval([&linalg::inv(zeros)?]).ok();
    for slot in all().iter().flat_map(|loaded| loaded.slots()).filter(|slot| slot.is_held()) {
        for array in slot.prefix_cache.borrow_mut().cache.arrays() {
            *array = ops::zeros_like(&*array)?;
        }
    }
    Ok(())
}
