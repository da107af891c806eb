//! What layers remember of a sequence, and how an application wants it kept.

use crate::{
    error::{Error, Result},
    mlx::{Format, Mode},
    parts::kv::Kv,
};
use mlx_rs::Array;
use std::any::Any;

/// How a session wants its caches built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CachePlan {
    /// Positions to make room for at once; a cache grows when they do not suffice.
    pub(crate) capacity: i32,
    /// Keys and values in fewer bits.
    pub quantization: Option<CacheQuantization>,
    /// No more keys and values than these.
    pub bound: Option<Bound>,
}

impl CachePlan {
    /// A cache that is expected to see so many positions. What is reserved in vain costs time at
    /// every step, so the room is tight; few capacities occur, so that compiled steps are shared.
    pub fn new(positions: usize) -> Self {
        const LEAST: usize = 64;
        let positions = positions.min(i32::MAX as usize - LEAST).next_multiple_of(LEAST);
        CachePlan { capacity: positions as i32, ..CachePlan::default() }
    }

    /// The room of an empty cache. What will be quantized reserves no more than it must before.
    pub(crate) fn first_capacity(&self) -> i32 {
        if self.quantization.is_some() { 0 } else { self.capacity }
    }
}

/// Keys and values as unsigned integers with a scale and a bias for each group, as mlx-lm's
/// `QuantizedKVCache` has them. States of recurrences and convolutions keep their precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheQuantization {
    pub(crate) format: Format,
    pub(crate) from: i32,
}

impl CacheQuantization {
    /// `bits` (4 or 8) for an element and a scale for `group_size` (32, 64 or 128) of them, from
    /// the end of the pass on in which the sequence reaches `from` positions.
    ///
    /// # Errors
    /// [`Error::Option`] for other numbers. That a group does not divide the heads of a model is
    /// known at its first pass, which then fails.
    pub fn new(bits: i32, group_size: i32, from: usize) -> Result<Self> {
        if ![4, 8].contains(&bits) {
            return Err(Error::option("cache bits", format!("{bits} is neither 4 nor 8")));
        }
        if ![32, 64, 128].contains(&group_size) {
            let reason = format!("{group_size} is none of 32, 64 and 128");
            return Err(Error::option("cache group size", reason));
        }
        let from = i32::try_from(from).unwrap_or(i32::MAX);
        Ok(CacheQuantization {
            format: Format { mode: Mode::Affine, bits, group: group_size },
            from,
        })
    }
}

/// A ring of positions behind a prefix that stays: the first tokens hold much of the attention
/// ([Xiao et al. 2023](https://arxiv.org/abs/2309.17453)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    pub(crate) positions: i32,
    pub(crate) keep: i32,
}

impl Bound {
    /// At most so many `positions`, of which the first `keep` stay (mlx-lm keeps 4) and the others
    /// are the latest. Layers with a window of at most that size keep theirs.
    ///
    /// # Errors
    /// [`Error::Option`] unless a position is left for the latest.
    pub fn new(positions: usize, keep: usize) -> Result<Self> {
        match (i32::try_from(positions), i32::try_from(keep)) {
            (Ok(positions), Ok(keep)) if keep < positions => Ok(Bound { positions, keep }),
            _ => {
                let reason = format!("{positions} positions of which {keep} stay");
                Err(Error::option("cache bound", reason))
            }
        }
    }
}

/// What a layer remembers between steps: a set of arrays and nothing else. Where a sequence
/// stands is known to the [`crate::layer::Step`], so that a decode step can be compiled once and
/// replayed.
pub trait State: Any {
    /// Its memories, always in the same order.
    fn memories(&mut self) -> Vec<Memory<'_>>;
    /// A copy; arrays are immutable and shared, so this costs a few handles.
    fn fork(&self) -> Box<dyn State>;
}

/// The kinds of memory that there are.
pub enum Memory<'a> {
    /// Entries by position, which can be forgotten one by one.
    Kv(&'a mut Kv),
    /// The whole past in one array.
    Recurrent(&'a mut Recurrent),
}

impl<'a> Memory<'a> {
    pub(crate) fn arrays(self) -> Vec<&'a mut Array> {
        match self {
            Memory::Kv(kv) => kv.arrays(),
            Memory::Recurrent(state) => state.0.iter_mut().collect(),
        }
    }

    pub(crate) fn reserve(self, positions: i32) -> Result<()> {
        match self {
            Memory::Kv(kv) => kv.reserve(positions),
            Memory::Recurrent(_) => Ok(()),
        }
    }

    pub(crate) fn shrink(self, positions: i32) -> Result<()> {
        match self {
            Memory::Kv(kv) => kv.shrink(positions),
            Memory::Recurrent(_) => Ok(()),
        }
    }

    pub(crate) fn quantize(self) -> Result<()> {
        match self {
            Memory::Kv(kv) => kv.quantize(),
            Memory::Recurrent(_) => Ok(()),
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(self) {
        match self {
            Memory::Kv(kv) => kv.clear(),
            Memory::Recurrent(state) => state.0 = None,
        }
    }

    /// Whether a sequence of `from` positions can go on from `to` by forgetting the last ones.
    pub(crate) fn rewinds(&self, from: i32, to: i32) -> bool {
        match self {
            Memory::Kv(kv) => kv.rewinds(from),
            Memory::Recurrent(_) => from == to,
        }
    }

    /// Whether any number of entries can be forgotten.
    pub(crate) fn is_by_position(&self) -> bool {
        matches!(self, Memory::Kv(kv) if !kv.is_ring())
    }

    /// A copy of what rewinding may not bring back.
    pub(crate) fn volatile(&self) -> Volatile {
        match self {
            Memory::Kv(kv) if kv.is_ring() => Volatile::Ring((**kv).clone()),
            Memory::Kv(_) => Volatile::Nothing,
            Memory::Recurrent(state) => Volatile::Recurrent((**state).clone()),
        }
    }

    pub(crate) fn restore(&mut self, volatile: &Volatile) {
        match (self, volatile) {
            (Memory::Kv(kv), Volatile::Ring(ring)) => kv.clone_from(ring),
            (Memory::Recurrent(state), Volatile::Recurrent(past)) => state.clone_from(past),
            _ => {}
        }
    }
}

/// What rewinding may not bring back of one memory.
#[derive(Clone)]
pub(crate) enum Volatile {
    Nothing,
    Ring(Kv),
    Recurrent(Recurrent),
}

impl Volatile {
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Volatile::Nothing => 0,
            Volatile::Ring(kv) => kv.bytes(),
            Volatile::Recurrent(state) => state.0.iter().map(Array::nbytes).sum(),
        }
    }
}

/// The state of a recurrence or of a convolution, `[batch, …]`; nothing before the first token.
#[derive(Clone, Default)]
pub struct Recurrent(pub Option<Array>);

impl State for Recurrent {
    fn memories(&mut self) -> Vec<Memory<'_>> {
        vec![Memory::Recurrent(self)]
    }
    fn fork(&self) -> Box<dyn State> {
        Box::new(self.clone())
    }
}

impl State for Kv {
    fn memories(&mut self) -> Vec<Memory<'_>> {
        vec![Memory::Kv(self)]
    }
    fn fork(&self) -> Box<dyn State> {
        Box::new(self.clone())
    }
}

impl State for () {
    fn memories(&mut self) -> Vec<Memory<'_>> {
        Vec::new()
    }
    fn fork(&self) -> Box<dyn State> {
        Box::new(())
    }
}

/// What only some layers of a kind remember.
impl<S: State + Clone> State for Option<S> {
    fn memories(&mut self) -> Vec<Memory<'_>> {
        self.as_mut().map_or_else(Vec::new, State::memories)
    }
    fn fork(&self) -> Box<dyn State> {
        Box::new(self.clone())
    }
}

impl<A: State + Clone, B: State + Clone> State for (A, B) {
    fn memories(&mut self) -> Vec<Memory<'_>> {
        let mut memories = self.0.memories();
        memories.extend(self.1.memories());
        memories
    }
    fn fork(&self) -> Box<dyn State> {
        Box::new(self.clone())
    }
}
