//! What layers remember of a sequence, and how an application wants it kept.

use crate::{error::Result, layers::attention::kv_cache::KvCache};
use mlx_rs::Array;
use std::any::Any;

/// What a layer remembers between steps: a set of arrays and nothing else. Where a sequence
/// stands is known to the [`crate::layers::step::Step`], so that a decode step can be compiled once and
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
    KvCache(&'a mut KvCache),
    /// The whole past in one array.
    Recurrent(&'a mut Recurrent),
    /// Arrays that no token changes, such as the keys and values of cross attention.
    Fixed(&'a mut Fixed),
}

impl<'a> Memory<'a> {
    pub(crate) fn arrays(self) -> Vec<&'a mut Array> {
        match self {
            Memory::KvCache(kv) => kv.arrays(),
            Memory::Recurrent(state) => state.0.iter_mut().collect(),
            Memory::Fixed(fixed) => fixed.0.iter_mut().collect(),
        }
    }

    pub(crate) fn reserve(self, positions: i32) -> Result<()> {
        match self {
            Memory::KvCache(kv) => kv.reserve(positions),
            Memory::Recurrent(_) | Memory::Fixed(_) => Ok(()),
        }
    }

    pub(crate) fn shrink(self, positions: i32) -> Result<()> {
        match self {
            Memory::KvCache(kv) => kv.shrink(positions),
            Memory::Recurrent(_) | Memory::Fixed(_) => Ok(()),
        }
    }

    pub(crate) fn quantize(self) -> Result<()> {
        match self {
            Memory::KvCache(kv) => kv.quantize(),
            Memory::Recurrent(_) | Memory::Fixed(_) => Ok(()),
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(self) {
        match self {
            Memory::KvCache(kv) => kv.clear(),
            Memory::Recurrent(state) => state.0 = None,
            Memory::Fixed(fixed) => fixed.0.clear(),
        }
    }

    /// Forgets all positions, and keeps what belongs to none of them.
    pub(crate) fn rewind_to_start(self) {
        if !matches!(self, Memory::Fixed(_)) {
            self.clear();
        }
    }

    /// Whether a sequence of `from` positions can go on from `to` by forgetting the last ones.
    pub(crate) fn rewinds(&self, from: i32, to: i32) -> bool {
        match self {
            Memory::KvCache(kv) => kv.rewinds(from),
            Memory::Recurrent(_) => from == to,
            Memory::Fixed(_) => true,
        }
    }

    /// Whether any number of entries can be forgotten.
    pub(crate) fn is_by_position(&self) -> bool {
        match self {
            Memory::KvCache(kv) => !kv.is_ring(),
            Memory::Recurrent(_) => false,
            Memory::Fixed(_) => true,
        }
    }

    /// A copy of what rewinding may not bring back.
    pub(crate) fn volatile(&self) -> Volatile {
        match self {
            Memory::KvCache(kv) if kv.is_ring() => Volatile::Ring((**kv).clone()),
            Memory::KvCache(_) | Memory::Fixed(_) => Volatile::Nothing,
            Memory::Recurrent(state) => Volatile::Recurrent((**state).clone()),
        }
    }

    pub(crate) fn restore(&mut self, volatile: &Volatile) {
        match (self, volatile) {
            (Memory::KvCache(kv), Volatile::Ring(ring)) => kv.clone_from(ring),
            (Memory::Recurrent(state), Volatile::Recurrent(past)) => state.clone_from(past),
            _ => {}
        }
    }
}

/// What rewinding may not bring back of one memory.
#[derive(Clone)]
pub(crate) enum Volatile {
    Nothing,
    Ring(KvCache),
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

/// Arrays `[batch, …]` that a sequence has from its first pass on and that no token changes, such as
/// the keys and values of cross attention. They survive rewinding; none before the first pass.
#[derive(Clone, Default)]
pub struct Fixed(pub Vec<Array>);

impl State for Fixed {
    fn memories(&mut self) -> Vec<Memory<'_>> {
        vec![Memory::Fixed(self)]
    }
    fn fork(&self) -> Box<dyn State> {
        Box::new(self.clone())
    }
}

impl State for KvCache {
    fn memories(&mut self) -> Vec<Memory<'_>> {
        vec![Memory::KvCache(self)]
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
