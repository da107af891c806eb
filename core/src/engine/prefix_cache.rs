//! The prefix cache of a session, on the engine thread: the keys of the positions that its cache
//! holds, and checkpoints of positions that the cache cannot rewind to.
//!
//! Prefix reuse changes no result. A new prompt rewinds the cache to the longest common prefix, or to
//! a checkpoint before it, and the model computes the rest.

use crate::{
    engine::{draft_model::DraftModel, prompt::EnginePrompt},
    error::{Error, Result},
    layers::{cache_plan::CachePlan, embedded::Key},
    models::{
        cache::{Cache, CacheCheckpoint},
        language::LanguageModel,
    },
};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    path::Path,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Where the file of a cache has its keys.
const KEYS: &str = "mynah.keys";

/// Tokens from one checkpoint to the next where no caller marks positions.
const SPACING: usize = 512;

/// The shortest prefix that is worth a copy of another session's cache.
const WORTH_A_COPY: usize = 16;

/// The most checkpoints of one prefix cache.
const MAX_CHECKPOINTS: usize = 16;

/// The most checkpoints in a file: those of the last turn, so that its message can be edited and its
/// answer be generated again.
const MAX_SAVED_CHECKPOINTS: usize = 4;

/// The cache of one sequence, for reuse. Between steps the cache holds exactly the positions of
/// `keys`.
pub struct PrefixCache {
    network: Rc<dyn LanguageModel>,
    plan: CachePlan,
    /// What stands at each position.
    pub keys: Vec<Key>,
    /// The cache.
    pub cache: Cache,
    /// By position.
    checkpoints: Vec<CacheCheckpoint>,
    /// The most bytes that the checkpoints may take.
    checkpoint_bytes: usize,
}

impl PrefixCache {
    /// An empty one.
    pub fn new(network: Rc<dyn LanguageModel>, plan: CachePlan, checkpoint_bytes: usize) -> Self {
        let (keys, checkpoints) = (Vec::new(), Vec::new());
        let cache = network.cache(&plan);
        PrefixCache { network, plan, keys, cache, checkpoints, checkpoint_bytes }
    }

    pub(crate) fn clear(&mut self) {
        self.keys.clear();
        self.checkpoints.clear();
        self.cache = self.network.cache(&self.plan);
    }

    /// A copy that shares its arrays.
    pub(crate) fn fork(&self) -> Self {
        PrefixCache {
            network: self.network.clone(),
            cache: self.cache.fork(),
            keys: self.keys.clone(),
            checkpoints: self.checkpoints.clone(),
            ..*self
        }
    }

    /// Writes it to a file, with its latest checkpoints.
    ///
    /// # Errors
    /// Those of [`Cache::save_with`].
    pub fn save(&mut self, path: &Path, fingerprint: &str) -> Result<()> {
        let keys: Vec<_> = self.keys.iter().map(|key| key.0.to_string()).collect();
        let metadata = HashMap::from([(KEYS.to_string(), keys.join(","))]);
        let latest = self.checkpoints.len().saturating_sub(MAX_SAVED_CHECKPOINTS);
        self.cache.save_with(&self.checkpoints[latest..], path, fingerprint, &metadata)
    }

    /// Replaces the cache, its checkpoints and the keys by those of a file.
    ///
    /// # Errors
    /// Those of [`Cache::load_with`]; [`Error::SavedCache`] when the plan differs or the keys do not fit.
    pub fn restore(&mut self, path: &Path, fingerprint: &str) -> Result<()> {
        let unfit = |reason: &str| Error::SavedCache { file: path.into(), reason: reason.into() };
        let (cache, checkpoints, metadata) = Cache::load_with(path, &*self.network, fingerprint)?;
        let CachePlan { capacity, .. } = *cache.plan();
        if *cache.plan() != (CachePlan { capacity, ..self.plan }) {
            return Err(unfit("was saved under other options"));
        }
        let keys = metadata.get(KEYS).ok_or_else(|| unfit("holds no session"))?;
        let keys: Option<Vec<Key>> = keys.split(',').map(|key| key.parse().ok().map(Key)).collect();
        let fits = |keys: &Vec<Key>| keys.len() == cache.offset as usize;
        self.keys = keys.filter(fits).ok_or_else(|| unfit("its keys do not fit its positions"))?;
        (self.cache, self.checkpoints) = (cache, checkpoints);
        self.thin_out();
        Ok(())
    }

    /// Makes room for `positions` in all.
    fn reserve(&mut self, positions: usize) -> Result<()> {
        if self.keys.is_empty() {
            let CachePlan { capacity, .. } = CachePlan::new(positions);
            self.cache = self.network.cache(&CachePlan { capacity, ..self.plan });
            return Ok(());
        }
        self.cache.shrink(positions)?;
        self.cache.reserve(i32::try_from(positions).unwrap_or(i32::MAX))
    }

    /// The length of the longest reusable prefix of `prompt`. The last position is always computed,
    /// because its logits are needed, and no span is cut.
    pub fn shared(&self, prompt: &EnginePrompt) -> usize {
        let pairs = self.keys.iter().zip(&prompt.keys[..prompt.keys.len() - 1]);
        prompt.whole_prefix(pairs.take_while(|(a, b)| a == b).count())
    }

    /// Drops the positions after `most`, and more where the cache can only restore a checkpoint;
    /// returns how many are left.
    fn rewind_to(&mut self, most: usize) -> Result<usize> {
        let excess = self.keys.len() - most;
        if excess > 0 && !self.cache.rewind(excess as i32) {
            self.checkpoints.retain(|checkpoint| position(checkpoint) <= most);
            match self.checkpoints.last() {
                Some(last) => drop(self.cache.restore(last)?),
                None => self.clear(),
            }
        }
        let left = self.cache.offset as usize;
        self.keys.truncate(left);
        self.checkpoints.retain(|checkpoint| position(checkpoint) <= left);
        Ok(left)
    }

    /// Keeps a checkpoint of this position, unless the cache can rewind to it.
    pub(crate) fn mark(&mut self) {
        let here = self.keys.len();
        let checkpoint = self.cache.checkpoint();
        let is_known = self.checkpoints.last().is_some_and(|last| position(last) == here);
        if is_known || checkpoint.bytes() == 0 {
            return;
        }
        self.checkpoints.push(checkpoint);
        self.thin_out();
    }

    fn thin_out(&mut self) {
        while self.checkpoints.len() > MAX_CHECKPOINTS
            || self.checkpoints_size() > self.checkpoint_bytes
        {
            let Some(least) = self.least_useful() else { return };
            self.checkpoints.remove(least);
        }
    }

    /// Keeps a checkpoint of this position if the last one is far away.
    pub(crate) fn checkpoint_if_far(&mut self) {
        let last = self.checkpoints.last().map_or(0, position);
        if self.keys.len() - last >= SPACING {
            self.mark();
        }
    }

    /// Drops all checkpoints.
    pub(crate) fn clear_checkpoints(&mut self) {
        self.checkpoints.clear();
    }

    /// Bytes of the cache and the checkpoints.
    pub(crate) fn bytes(&self) -> usize {
        self.cache.bytes() + self.checkpoints_size()
    }

    fn checkpoints_size(&self) -> usize {
        self.checkpoints.iter().map(CacheCheckpoint::bytes).sum()
    }

    /// The checkpoint that saves the fewest tokens against the one before it. Most requests resume
    /// from the last one, which is removed last.
    fn least_useful(&self) -> Option<usize> {
        let at = |i: usize| position(&self.checkpoints[i]);
        let saves = |i: &usize| at(*i) - i.checked_sub(1).map_or(0, at);
        let last = self.checkpoints.len().checked_sub(1)?;
        Some((0..last).min_by_key(saves).unwrap_or(last))
    }
}

fn position(checkpoint: &CacheCheckpoint) -> usize {
    checkpoint.offset() as usize
}

/// A prefix cache that one request at a time may use.
pub struct Slot {
    /// The prefix cache.
    pub prefix_cache: RefCell<PrefixCache>,
    /// The draft model of the latest request, with its own cache of the sequence.
    pub(crate) draft_model: RefCell<Option<DraftModel>>,
    /// Whether it is a session's, which later requests resume.
    pub lasts: bool,
    is_held: Cell<bool>,
    /// For handles on other threads: how many positions the cache holds.
    used: Arc<AtomicUsize>,
}

/// The right to use a prefix cache; dropping it frees the slot for the next request.
pub(crate) struct Hold(Rc<Slot>);

impl Slot {
    /// The slot of a session.
    pub fn lasting(prefix_cache: PrefixCache, used: Arc<AtomicUsize>) -> Rc<Self> {
        used.store(prefix_cache.keys.len(), Ordering::Relaxed);
        Rc::new(Slot {
            prefix_cache: prefix_cache.into(),
            draft_model: RefCell::default(),
            lasts: true,
            is_held: Cell::default(),
            used,
        })
    }

    /// The slot of one request.
    pub(crate) fn passing(prefix_cache: PrefixCache) -> Rc<Self> {
        let (is_held, used) = (Cell::default(), Arc::default());
        let draft_model = RefCell::default();
        Rc::new(Slot {
            prefix_cache: prefix_cache.into(),
            draft_model,
            lasts: false,
            is_held,
            used,
        })
    }

    /// Holds the slot, unless another request does.
    pub(crate) fn hold(self: &Rc<Self>) -> Option<Hold> {
        (!self.is_held.replace(true)).then(|| Hold(self.clone()))
    }

    /// Rewinds to the longest prefix of `prompt` that this prefix cache or that of another session
    /// holds, makes room for `positions` in all, and returns the length of the prefix.
    ///
    /// # Errors
    /// [`Error::MemoryLimit`], [`Error::Mlx`].
    pub fn resume(
        &self,
        others: &[Rc<Slot>],
        prompt: &EnginePrompt,
        positions: usize,
    ) -> Result<usize> {
        let mut own = self.prefix_cache.borrow_mut();
        let shared = own.shared(prompt);
        let mut position = own.rewind_to(shared)?;
        for other in others.iter().filter(|_| self.lasts) {
            // This one itself is borrowed already.
            let Ok(theirs) = other.prefix_cache.try_borrow() else { continue };
            let shared = theirs.shared(prompt);
            if theirs.plan == own.plan && shared >= position + WORTH_A_COPY {
                let mut fork = theirs.fork();
                if fork.rewind_to(shared)? >= position + WORTH_A_COPY {
                    position = fork.keys.len();
                    fork.checkpoint_bytes = own.checkpoint_bytes;
                    fork.thin_out();
                    *own = fork;
                }
            }
        }
        own.cache.forget_media();
        if self.lasts && position > 0 {
            own.mark();
        }
        own.reserve(positions)?;
        Ok(position)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.is_held.set(false);
    }
}

impl Slot {
    /// Whether a request uses it.
    pub(crate) fn is_held(&self) -> bool {
        self.is_held.get()
    }

    /// Tells the handles how many positions the cache holds.
    pub(crate) fn publish(&self) {
        self.used.store(self.prefix_cache.borrow().keys.len(), Ordering::Relaxed);
    }
}
