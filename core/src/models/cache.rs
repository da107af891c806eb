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
    /// What the rotary positions of the next tokens add to their positions in the sequence, `[batch]`,
    /// once a prompt has had positions of its own.
    pub(crate) rotary_delta: Option<Array>,
}

/// A place that a cache can come back to: what rewinding it may not bring back, which is rings and
/// recurrent states.
#[derive(Clone)]
pub struct CacheCheckpoint {
    offset: i32,
    quantized: bool,
    rotary_delta: Option<Array>,
    volatile: Vec<Volatile>,
}

impl Cache {
    /// A cache of empty states.
    pub fn new(states: Vec<Box<dyn State>>, plan: &CachePlan) -> Self {
        let now = CachePlan { capacity: plan.first_capacity(), ..*plan };
        Cache {
            offset: 0,
            states,
            plan: now,
            expected: plan.capacity,
            quantized: false,
            rotary_delta: None,
        }
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
        let memories = self.states.iter_mut().flat_map(|state| state.memories());
        memories.flat_map(Memory::arrays).chain(&mut self.rotary_delta).collect()
    }

    /// Forgets what belongs to the media of a prompt and to no position: the next prompt brings its
    /// own.
    pub(crate) fn forget_media(&mut self) {
        for memory in self.states.iter_mut().flat_map(|state| state.memories()) {
            if let Memory::Fixed(fixed) = memory {
                fixed.0.clear();
            }
        }
        self.rotary_delta = None;
    }

    /// The sizes of the fixed states, and for each of [`Cache::arrays`] whether it is one of theirs.
    pub(super) fn fixed(&mut self) -> (Vec<usize>, Vec<bool>) {
        let (mut sizes, mut is_fixed) = (Vec::new(), Vec::new());
        for memory in self.memories() {
            let fixed = matches!(memory, Memory::Fixed(_));
            let count = memory.arrays().len();
            if fixed {
                sizes.push(count);
            }
            is_fixed.extend(std::iter::repeat_n(fixed, count));
        }
        is_fixed.extend(self.rotary_delta.iter().map(|_| false));
        (sizes, is_fixed)
    }

    /// Gives the fixed states so many arrays, which are placeholders.
    pub(super) fn set_fixed(&mut self, sizes: &[usize]) -> bool {
        let mut fixed: Vec<_> = self
            .memories()
            .filter_map(|memory| match memory {
                Memory::Fixed(fixed) => Some(fixed),
                _ => None,
            })
            .collect();
        for (fixed, size) in fixed.iter_mut().zip(sizes) {
            fixed.0 = vec![Array::from_int(0); *size];
        }
        fixed.len() == sizes.len()
    }

    /// The bytes of its arrays, shared or not.
    pub fn bytes(&self) -> usize {
        self.fork().arrays().iter().map(|array| array.nbytes()).sum()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.memories().for_each(Memory::clear);
        (self.offset, self.quantized, self.rotary_delta) = (0, false, None);
    }

    /// Forgets all positions; what belongs to none of them stays (see
    /// [`Fixed`](crate::layers::state::Fixed)).
    fn rewind_to_start(&mut self) {
        self.memories().for_each(Memory::rewind_to_start);
        (self.offset, self.quantized, self.rotary_delta) = (0, false, None);
    }

    /// Forgets the last `count` positions; `false`, with nothing changed, when a state cannot.
    /// All of them can always be forgotten. What has been quantized stays so.
    pub fn rewind(&mut self, count: i32) -> bool {
        let (from, to) = (self.offset, self.offset - count);
        if to == 0 {
            self.rewind_to_start();
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
        CacheCheckpoint {
            offset: self.offset,
            quantized: self.quantized,
            rotary_delta: self.rotary_delta.clone(),
            volatile,
        }
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
            self.rewind_to_start();
            return Ok(true);
        }
        for (mut memory, volatile) in self.memories().zip(&checkpoint.volatile) {
            memory.restore(volatile);
        }
        self.offset = checkpoint.offset;
        self.rotary_delta = checkpoint.rotary_delta.clone();
        self.fit()?;
        if self.quantized || checkpoint.quantized {
            self.quantize()?;
        }
        Ok(true)
    }

    /// A copy that shares its arrays: the one that goes on first copies what it changes.
    pub fn fork(&self) -> Cache {
        let states = self.states.iter().map(|state| state.fork()).collect();
        Cache { states, rotary_delta: self.rotary_delta.clone(), ..*self }
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
