//! What a conversation remembers, on the engine's thread: the tokens that its cache has seen, and
//! checkpoints of positions that the cache cannot go back to by itself.
//!
//! A memory is only ever a shortcut. Whatever is asked of it next, it goes back to the last
//! position that both agree on, and what cannot be reused is computed again.

use crate::{
    error::{Error, Result},
    layers::cache_plan::CachePlan,
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

/// Where a saved cache names its tokens.
const TOKENS: &str = "mynah.tokens";

/// Tokens between checkpoints of places that nothing is known about.
const SPACING: usize = 512;

/// So many tokens are worth a copy of what another session remembers.
const WORTH_A_COPY: usize = 16;

/// Snapshots that one memory keeps.
const MAX_CHECKPOINTS: usize = 16;

/// What one sequence has left behind. Between steps the cache has seen exactly `tokens`.
pub(crate) struct PrefixCache {
    network: Rc<dyn LanguageModel>,
    plan: CachePlan,
    pub tokens: Vec<u32>,
    pub cache: Cache,
    /// By position.
    checkpoints: Vec<CacheCheckpoint>,
    /// The most bytes that the checkpoints may hold.
    checkpoint_bytes: usize,
}

impl PrefixCache {
    pub(crate) fn new(
        network: Rc<dyn LanguageModel>,
        plan: CachePlan,
        checkpoint_bytes: usize,
    ) -> Self {
        let (tokens, checkpoints) = (Vec::new(), Vec::new());
        PrefixCache {
            cache: network.cache(&plan),
            network,
            plan,
            tokens,
            checkpoints,
            checkpoint_bytes,
        }
    }

    pub(crate) fn clear(&mut self) {
        self.tokens.clear();
        self.checkpoints.clear();
        self.cache = self.network.cache(&self.plan);
    }

    /// A copy that shares its arrays.
    pub(crate) fn fork(&self) -> Self {
        PrefixCache {
            network: self.network.clone(),
            cache: self.cache.fork(),
            tokens: self.tokens.clone(),
            checkpoints: self.checkpoints.clone(),
            ..*self
        }
    }

    /// Writes it to a file, without its checkpoints.
    pub(crate) fn save(&mut self, path: &Path, fingerprint: &str) -> Result<()> {
        let tokens: Vec<_> = self.tokens.iter().map(u32::to_string).collect();
        let metadata = HashMap::from([(TOKENS.to_string(), tokens.join(","))]);
        self.cache.save(path, fingerprint, &metadata)
    }

    /// Takes over what a file remembers.
    pub(crate) fn restore(&mut self, path: &Path, fingerprint: &str) -> Result<()> {
        let unfit = |reason: &str| Error::SavedCache { file: path.into(), reason: reason.into() };
        let (cache, metadata) = Cache::load(path, &*self.network, fingerprint)?;
        let CachePlan { capacity, .. } = *cache.plan();
        if *cache.plan() != (CachePlan { capacity, ..self.plan }) {
            return Err(unfit("was saved under other options"));
        }
        let tokens = metadata.get(TOKENS).ok_or_else(|| unfit("holds no session"))?;
        let tokens: Option<Vec<u32>> = tokens.split(',').map(|id| id.parse().ok()).collect();
        let fits = |tokens: &Vec<u32>| tokens.len() == cache.offset as usize;
        self.tokens =
            tokens.filter(fits).ok_or_else(|| unfit("its tokens do not fit its positions"))?;
        self.cache = cache;
        Ok(())
    }

    /// Makes room for `positions` in all.
    fn reserve(&mut self, positions: usize) -> Result<()> {
        if self.tokens.is_empty() {
            let CachePlan { capacity, .. } = CachePlan::new(positions);
            self.cache = self.network.cache(&CachePlan { capacity, ..self.plan });
            return Ok(());
        }
        self.cache.shrink(positions)?;
        self.cache.reserve(i32::try_from(positions).unwrap_or(i32::MAX))
    }

    /// How many tokens at the beginning of `prompt` it has seen, the last one of the prompt left
    /// out: somebody wants to know what comes after it.
    fn shared(&self, prompt: &[u32]) -> usize {
        let pairs = self.tokens.iter().zip(&prompt[..prompt.len() - 1]);
        pairs.take_while(|(a, b)| a == b).count()
    }

    /// Forgets what comes after position `most`, and more where it must; gives what is left.
    fn go_back(&mut self, most: usize) -> Result<usize> {
        let excess = self.tokens.len() - most;
        if excess > 0 && !self.cache.rewind(excess as i32) {
            self.checkpoints.retain(|checkpoint| position(checkpoint) <= most);
            match self.checkpoints.last() {
                Some(last) => drop(self.cache.restore(last)?),
                None => self.clear(),
            }
        }
        let left = self.cache.offset as usize;
        self.tokens.truncate(left);
        self.checkpoints.retain(|checkpoint| position(checkpoint) <= left);
        Ok(left)
    }

    /// Remembers this position, if the cache could not go back to it.
    pub(crate) fn mark(&mut self) {
        let here = self.tokens.len();
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

    /// Remembers this position, if the last one that it remembers is far away.
    pub(crate) fn checkpoint_if_far(&mut self) {
        let last = self.checkpoints.last().map_or(0, position);
        if self.tokens.len() - last >= SPACING {
            self.mark();
        }
    }

    /// Forgets what it could have gone back to.
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

    /// The checkpoint that saves the fewest tokens against the one before it. The last one is where
    /// most go back to, and goes last.
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

/// The place of a memory, which one request at a time may use.
pub(crate) struct Slot {
    pub memory: RefCell<PrefixCache>,
    /// Whether somebody may come back to it.
    pub lasts: bool,
    is_held: Cell<bool>,
    /// For handles on other threads: how many tokens the memory has seen.
    used: Arc<AtomicUsize>,
}

/// The right to use a memory; whoever drops it lets the next one in.
pub(crate) struct Hold(Rc<Slot>);

impl Slot {
    /// The place of a memory that a session keeps.
    pub(crate) fn lasting(memory: PrefixCache, used: Arc<AtomicUsize>) -> Rc<Self> {
        used.store(memory.tokens.len(), Ordering::Relaxed);
        Rc::new(Slot { memory: memory.into(), lasts: true, is_held: Cell::default(), used })
    }

    /// The place of a memory for one request.
    pub(crate) fn passing(memory: PrefixCache) -> Rc<Self> {
        let (is_held, used) = (Cell::default(), Arc::default());
        Rc::new(Slot { memory: memory.into(), lasts: false, is_held, used })
    }

    /// Takes it, if nobody has it.
    pub(crate) fn hold(self: &Rc<Self>) -> Option<Hold> {
        (!self.is_held.replace(true)).then(|| Hold(self.clone()))
    }

    /// Goes back to the longest beginning of `prompt` that this memory or that of another session
    /// can go on from, makes room for `positions` in all, and gives its length.
    pub(crate) fn resume(
        &self,
        others: &[Rc<Slot>],
        prompt: &[u32],
        positions: usize,
    ) -> Result<usize> {
        let mut memory = self.memory.borrow_mut();
        let shared = memory.shared(prompt);
        let mut position = memory.go_back(shared)?;
        for other in others.iter().filter(|_| self.lasts) {
            // This memory itself is borrowed already.
            let Ok(theirs) = other.memory.try_borrow() else { continue };
            let shared = theirs.shared(prompt);
            if theirs.plan == memory.plan && shared >= position + WORTH_A_COPY {
                let mut fork = theirs.fork();
                if fork.go_back(shared)? >= position + WORTH_A_COPY {
                    position = fork.tokens.len();
                    fork.checkpoint_bytes = memory.checkpoint_bytes;
                    fork.thin_out();
                    *memory = fork;
                }
            }
        }
        if self.lasts && position > 0 {
            memory.mark();
        }
        memory.reserve(positions)?;
        Ok(position)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.is_held.set(false);
    }
}

impl Slot {
    /// Tells the handles what has changed.
    pub(crate) fn publish(&self) {
        self.used.store(self.memory.borrow().tokens.len(), Ordering::Relaxed);
    }
}
