//! The cache of one sequence: one state a layer.

use crate::{
    error::Result,
    layers::{
        cache_plan::CachePlan,
        state::{Memory, State, Volatile},
    },
    mlx::memory,
};
use mlx_rs::Array;

/// Buffers of a cache grow by this many positions, so that few shapes occur.
const GROWTH: u32 = 256;

/// What a model remembers of one sequence.
pub struct Cache {
    /// How many positions it has seen.
    pub offset: i32,
    /// One state a layer.
    pub states: Vec<Box<dyn State>>,
    /// Its capacity is the one that there is now.
    pub(crate) plan: CachePlan,
    /// The capacity that was asked for.
    expected: i32,
    pub(crate) quantized: bool,
}

/// A place that a cache can come back to: what rewinding it may not bring back, which is rings and
/// recurrent states.
#[derive(Clone)]
pub struct CacheCheckpoint {
    offset: i32,
    quantized: bool,
    volatile: Vec<Volatile>,
}

impl Cache {
    /// A cache of empty states.
    pub fn new(states: Vec<Box<dyn State>>, plan: &CachePlan) -> Self {
        let now = CachePlan { capacity: plan.first_capacity(), ..*plan };
        Cache { offset: 0, states, plan: now, expected: plan.capacity, quantized: false }
    }

    /// How it was asked to be kept.
    pub fn plan(&self) -> &CachePlan {
        &self.plan
    }

    fn memories(&mut self) -> impl Iterator<Item = Memory<'_>> {
        self.states.iter_mut().flat_map(|state| state.memories())
    }

    /// Makes room for `positions` in all.
    ///
    /// # Errors
    /// [`Error::MemoryLimit`], [`Error::Mlx`].
    pub fn reserve(&mut self, positions: i32) -> Result<()> {
        let needed = self.plan.bound.map_or(positions, |bound| positions.min(bound.positions));
        if needed > self.plan.capacity {
            let mut grown = self.fork();
            grown.plan.capacity = (needed as u32).next_multiple_of(GROWTH) as i32;
            grown.fit()?;
            memory::allow(grown.bytes())?;
            *self = grown;
        }
        Ok(())
    }

    /// Gives all memories the capacity of the cache.
    pub(super) fn fit(&mut self) -> Result<()> {
        let capacity = self.plan.capacity;
        self.memories().try_for_each(|memory| memory.reserve(capacity))
    }

    /// Gives up room that a longer sequence has left, if it is most of what there is.
    ///
    /// # Errors
    /// [`Error::Mlx`].
    pub(crate) fn shrink(&mut self, positions: usize) -> Result<()> {
        let CachePlan { capacity, .. } = CachePlan::new(positions.max(self.offset as usize));
        if self.plan.capacity / 2 > capacity {
            self.plan.capacity = capacity;
            self.memories().try_for_each(|memory| memory.shrink(capacity))?;
        }
        Ok(())
    }

    /// Moves on after a pass over `count` positions.
    pub(super) fn advance(&mut self, count: i32) -> Result<()> {
        self.offset += count;
        let due = self.plan.quantization.is_some_and(|q| self.offset >= q.from);
        if due && !self.quantized { self.quantize() } else { Ok(()) }
    }

    pub(super) fn quantize(&mut self) -> Result<()> {
        self.quantized = true;
        self.memories().try_for_each(Memory::quantize)?;
        self.plan.capacity = self.plan.capacity.max(self.expected);
        self.fit()
    }

    /// Everything it holds.
    pub fn arrays(&mut self) -> Vec<&mut Array> {
        self.memories().flat_map(Memory::arrays).collect()
    }

    /// What its arrays take, whoever shares them.
    pub fn bytes(&self) -> usize {
        self.fork().arrays().iter().map(|array| array.nbytes()).sum()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.memories().for_each(Memory::clear);
        (self.offset, self.quantized) = (0, false);
    }

    /// Forgets the last `count` positions; `false`, with nothing changed, when a memory cannot.
    /// All of them can always be forgotten. What has been quantized stays so.
    pub fn rewind(&mut self, count: i32) -> bool {
        let (from, to) = (self.offset, self.offset - count);
        if to == 0 {
            self.clear();
            return true;
        }
        let can = (1..=from).contains(&to) && self.memories().all(|m| m.rewinds(from, to));
        if can {
            self.offset = to;
        }
        can
    }

    /// Whether it could go back to any position by forgetting those after it.
    pub fn rewinds(&self) -> bool {
        self.fork().memories().all(|memory| memory.is_by_position())
    }

    /// The place where it is now. Arrays are shared, and those in it are copied when the cache
    /// changes them.
    pub fn checkpoint(&mut self) -> CacheCheckpoint {
        let volatile = self.memories().map(|memory| memory.volatile()).collect();
        CacheCheckpoint { offset: self.offset, quantized: self.quantized, volatile }
    }

    /// Goes back to a checkpoint of this cache, or of one that it was forked from or that was forked
    /// from it, whose positions it still has; `false`, with nothing changed, when it is before it.
    /// What has been quantized since stays so.
    ///
    /// # Errors
    /// [`Error::Mlx`].
    pub fn restore(&mut self, checkpoint: &CacheCheckpoint) -> Result<bool> {
        if checkpoint.offset > self.offset {
            return Ok(false);
        }
        if checkpoint.offset == 0 {
            self.clear();
            return Ok(true);
        }
        for (mut memory, volatile) in self.memories().zip(&checkpoint.volatile) {
            memory.restore(volatile);
        }
        self.offset = checkpoint.offset;
        self.fit()?;
        if self.quantized || checkpoint.quantized {
            self.quantize()?;
        }
        Ok(true)
    }

    /// A copy that shares its arrays: the one that goes on first copies what it changes.
    pub fn fork(&self) -> Cache {
        let states = self.states.iter().map(|state| state.fork()).collect();
        Cache { states, ..*self }
    }
}

impl CacheCheckpoint {
    /// How many positions the cache had seen.
    pub fn offset(&self) -> i32 {
        self.offset
    }

    /// What its arrays take, whoever shares them: nothing where a cache can rewind.
    pub fn bytes(&self) -> usize {
        self.volatile.iter().map(Volatile::bytes).sum()
    }
}
