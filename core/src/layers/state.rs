//! What layers keep of a sequence between passes.

use crate::{
    error::{Error, Result},
    layers::{attention::kv_cache::KvCache, step::Step},
    mlx,
};
use mlx_rs::{Array, ops};
use std::any::Any;

/// What a layer keeps between steps: a set of arrays and nothing else. The
/// [`Step`](crate::layers::step::Step) knows where a sequence stands, so that a decode step can be
/// compiled once and replayed.
pub trait State: Any {
    /// Its parts, always in the same order.
    fn parts(&mut self) -> Vec<StatePart<'_>>;
    /// A copy; arrays are immutable and shared, so this costs a few handles.
    fn fork(&self) -> Box<dyn State>;
}

/// The kinds of state.
pub enum StatePart<'a> {
    /// Entries by position, which can be removed one by one.
    KvCache(&'a mut KvCache),
    /// The whole past in one array.
    Recurrent(&'a mut Recurrent),
    /// Arrays that no token changes, such as the keys and values of cross attention.
    Fixed(&'a mut Fixed),
}

impl<'a> StatePart<'a> {
    pub(crate) fn arrays(self) -> Vec<&'a mut Array> {
        match self {
            StatePart::KvCache(kv) => kv.arrays(),
            StatePart::Recurrent(recurrent) => recurrent.state.iter_mut().collect(),
            StatePart::Fixed(fixed) => fixed.0.iter_mut().collect(),
        }
    }

    pub(crate) fn reserve(self, positions: i32) -> Result<()> {
        match self {
            StatePart::KvCache(kv) => kv.reserve(positions),
            StatePart::Recurrent(_) | StatePart::Fixed(_) => Ok(()),
        }
    }

    pub(crate) fn shrink(self, positions: i32) -> Result<()> {
        match self {
            StatePart::KvCache(kv) => kv.shrink(positions),
            StatePart::Recurrent(_) | StatePart::Fixed(_) => Ok(()),
        }
    }

    pub(crate) fn quantize(self) -> Result<()> {
        match self {
            StatePart::KvCache(kv) => kv.quantize(),
            StatePart::Recurrent(_) | StatePart::Fixed(_) => Ok(()),
        }
    }

    /// Removes everything.
    pub(crate) fn clear(self) {
        match self {
            StatePart::KvCache(kv) => kv.clear(),
            StatePart::Recurrent(recurrent) => *recurrent = Recurrent::default(),
            StatePart::Fixed(fixed) => fixed.0.clear(),
        }
    }

    /// Removes the entries of all positions and keeps what belongs to none of them.
    pub(crate) fn rewind_to_start(self) {
        if !matches!(self, StatePart::Fixed(_)) {
            self.clear();
        }
    }

    /// Whether a sequence of `from` positions can go on from `to` by removing the last ones.
    pub(crate) fn rewinds(&self, from: i32, to: i32) -> bool {
        match self {
            StatePart::KvCache(kv) => kv.rewinds(from),
            StatePart::Recurrent(_) => from == to,
            StatePart::Fixed(_) => true,
        }
    }

    /// Whether later tokens overwrite what rewinding would need.
    pub(crate) fn is_volatile(&self) -> bool {
        match self {
            StatePart::KvCache(kv) => kv.is_ring(),
            StatePart::Recurrent(_) => true,
            StatePart::Fixed(_) => false,
        }
    }

    /// A copy of what rewinding may not bring back.
    pub(crate) fn volatile(&self) -> Volatile {
        match self {
            StatePart::KvCache(kv) if kv.is_ring() => Volatile::Ring((**kv).clone()),
            StatePart::KvCache(_) | StatePart::Fixed(_) => Volatile::Nothing,
            StatePart::Recurrent(recurrent) => Volatile::Recurrent((**recurrent).clone()),
        }
    }

    pub(crate) fn restore(&mut self, volatile: &Volatile) {
        match (self, volatile) {
            (StatePart::KvCache(kv), Volatile::Ring(ring)) => kv.clone_from(ring),
            (StatePart::Recurrent(state), Volatile::Recurrent(past)) => state.clone_from(past),
            _ => {}
        }
    }

    /// What a verify pass has set aside until [`StatePart::accept`].
    pub(crate) fn trail(self) -> Vec<&'a mut Array> {
        match self {
            StatePart::KvCache(kv) => kv.trail(),
            StatePart::Recurrent(recurrent) => recurrent.trail.iter_mut().collect(),
            StatePart::Fixed(_) => Vec::new(),
        }
    }

    /// Makes room for what a verify pass of another state of this shape has set aside.
    pub(crate) fn expect_trail(self) {
        match self {
            StatePart::KvCache(kv) => kv.expect_trail(),
            StatePart::Recurrent(recurrent) => recurrent.trail.clone_from(&recurrent.state),
            StatePart::Fixed(_) => {}
        }
    }

    /// Commits the first `counts` tokens of the last verify pass, which began at `offsets`: one
    /// number for all rows of the batch, or one for each.
    pub(crate) fn accept(self, counts: &[i32], offsets: &[i32]) -> Result<()> {
        match self {
            StatePart::KvCache(kv) => kv.accept(counts, offsets),
            StatePart::Recurrent(recurrent) => recurrent.accept(counts),
            StatePart::Fixed(_) => Ok(()),
        }
    }

    /// Whether a verify pass can run over several tokens at once.
    pub(crate) fn verifies_at_once(&self) -> bool {
        !matches!(self, StatePart::KvCache(kv) if !kv.verifies_at_once())
    }
}

/// What rewinding may not bring back of one part of a state.
#[derive(Clone)]
pub(crate) enum Volatile {
    Nothing,
    Ring(KvCache),
    Recurrent(Recurrent),
}

impl Volatile {
    pub(crate) fn arrays(&self) -> &[Array] {
        match self {
            Volatile::Nothing => &[],
            Volatile::Ring(kv) => kv.buffers(),
            Volatile::Recurrent(recurrent) => recurrent.state.as_slice(),
        }
    }
}

/// The state of a recurrence or of a convolution, `[batch, …]`; nothing before the first token.
#[derive(Clone, Default)]
pub struct Recurrent {
    state: Option<Array>,
    /// The states after each token of the last verify pass, `[batch, tokens, …]`.
    trail: Option<Array>,
}

impl Recurrent {
    /// The state before this pass.
    pub(crate) fn get(&self) -> Option<&Array> {
        self.state.as_ref()
    }

    /// The state before this pass, which [`Recurrent::set`] replaces.
    pub(crate) fn take(&mut self) -> Option<Array> {
        self.state.take()
    }

    /// The state after a prefill or decode step.
    pub(crate) fn set(&mut self, state: Array) {
        self.state = Some(state);
    }

    /// The states after each token of a verify pass, `[batch, …]` each. The state stays as it was.
    pub(crate) fn set_aside(&mut self, states: &[Array]) -> Result<()> {
        self.trail = Some(ops::stack(states, 1)?);
        Ok(())
    }

    /// Goes on to the last of the states after each token, `[batch, length, …]`, or sets them aside in
    /// a verify pass.
    pub(crate) fn follow(&mut self, states: Array, step: &Step) -> Result<()> {
        if step.is_verify() {
            self.trail = Some(states);
            return Ok(());
        }
        let length = states.dim(1);
        let last = mlx::slice(&states, 1, length - 1, length)?.squeeze_axes(&[1])?;
        // A slice keeps the states of a long pass in memory.
        self.state = Some(if length > 1 { last.contiguous()? } else { last });
        Ok(())
    }

    /// The input `x` `[batch, length, …]` after the last `count` inputs of the tokens before, which
    /// are the state and zeros at the beginning: `[batch, count + length, …]`.
    pub(crate) fn after_last(&mut self, x: &Array, count: i32, step: &Step) -> Result<Array> {
        let last = match &self.state {
            Some(last) => last.clone(),
            None => {
                let mut shape = x.shape().to_vec();
                shape[1] = count;
                ops::zeros_dtype(&shape, x.dtype())?
            }
        };
        let all = ops::concatenate(&[&last, x], 1)?;
        let length = x.dim(1);
        if step.is_verify() {
            let first = ops::arange::<_, i32>(1, length + 1, None)?.expand_dims(1)?;
            let windows = first.add(ops::arange::<_, i32>(0, count, None)?)?;
            self.trail = Some(all.take_axis(windows, 1)?);
            return Ok(all);
        }
        let last = mlx::slice(&all, 1, length, length + count)?;
        // A slice keeps all of a long pass in memory.
        self.state = Some(if length > 1 { last.contiguous()? } else { last });
        Ok(all)
    }

    fn accept(&mut self, counts: &[i32]) -> Result<()> {
        let Some(trail) = self.trail.take() else { return Ok(()) };
        let state = self.state.as_ref();
        let state = state.ok_or_else(|| Error::Internal("a prompt comes first".into()))?;
        let after = |state: &Array, trail: &Array, count: i32| match count {
            0 => Ok(state.clone()),
            // A slice alone would keep the states after all tokens.
            _ => Ok(mlx::slice(trail, 1, count - 1, count)?.squeeze_axes(&[1])?.contiguous()?),
        };
        let next: Result<Array> = match counts {
            [count] => after(state, &trail, *count),
            _ => {
                let cut = |x: &Array, row: i32| mlx::slice(x, 0, row, row + 1);
                let rows = (0..).zip(counts);
                let rows = rows.map(|(row, n)| after(&cut(state, row)?, &cut(&trail, row)?, *n));
                let rows: Vec<Array> = rows.collect::<Result<_>>()?;
                Ok(ops::concatenate(&rows, 0)?)
            }
        };
        self.state = Some(next?);
        Ok(())
    }
}

impl State for Recurrent {
    fn parts(&mut self) -> Vec<StatePart<'_>> {
        vec![StatePart::Recurrent(self)]
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
    fn parts(&mut self) -> Vec<StatePart<'_>> {
        vec![StatePart::Fixed(self)]
    }
    fn fork(&self) -> Box<dyn State> {
        Box::new(self.clone())
    }
}

impl State for KvCache {
    fn parts(&mut self) -> Vec<StatePart<'_>> {
        vec![StatePart::KvCache(self)]
    }
    fn fork(&self) -> Box<dyn State> {
        Box::new(self.clone())
    }
}

impl State for () {
    fn parts(&mut self) -> Vec<StatePart<'_>> {
        Vec::new()
    }
    fn fork(&self) -> Box<dyn State> {
        Box::new(())
    }
}

/// The state that only some layers of a kind have.
impl<S: State + Clone> State for Option<S> {
    fn parts(&mut self) -> Vec<StatePart<'_>> {
        self.as_mut().map_or_else(Vec::new, State::parts)
    }
    fn fork(&self) -> Box<dyn State> {
        Box::new(self.clone())
    }
}

impl<A: State + Clone, B: State + Clone> State for (A, B) {
    fn parts(&mut self) -> Vec<StatePart<'_>> {
        let mut parts = self.0.parts();
        parts.extend(self.1.parts());
        parts
    }
    fn fork(&self) -> Box<dyn State> {
        Box::new(self.clone())
    }
}
