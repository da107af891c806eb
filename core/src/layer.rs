//! The algebra of the residual stream: layers, residual branches, sums, sequences.

pub use crate::state::{CachePlan, State};

use crate::{
    error::Result,
    mlx,
    parts::{kv::Seen, norm::Norm, ring::Ring},
};
use mlx_rs::{Array, ops};
use std::{any::Any, cell::RefCell, collections::HashMap};

/// What one forward pass knows of its place in the sequence: facts of the call, never of the model.
pub struct Step {
    /// The position of the first token, `[1]`, on the device.
    pub position: Array,
    /// How many tokens the pass has.
    pub length: i32,
    /// The position of the first token where the host knows it. A decode step that is being
    /// compiled has none: it is replayed at every position.
    pub offset: Option<i32>,
    masks: RefCell<Vec<(Mask, Array)>>,
    lent: RefCell<Vec<(i32, Seen)>>,
    notes: RefCell<HashMap<Note, Array>>,
}

/// What a part of a model leaves in a pass for layers to come.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Note {
    /// The keys that an indexer has chosen.
    Choice,
    /// The keys among which later indexers choose.
    Candidates,
    /// Keys of all heads as they were projected, `[batch, length, heads · head_dim]`.
    Keys,
    /// Values, in the same way.
    Values,
    /// An input of its own for each layer, `[batch, length, layers, width]`.
    Inputs,
    /// What the next branch reads of several residual streams, `[batch, length, width]`.
    Branch,
}

#[derive(Clone, Copy, PartialEq)]
enum Mask {
    Seen(Option<Ring>),
    Filled(i32),
    Slot(Ring),
}

impl Step {
    /// A pass over `length` tokens from position `offset` on.
    pub fn prefill(offset: i32, length: i32) -> Self {
        let position = Array::from_slice(&[offset], &[1]);
        Step { length, offset: Some(offset), ..Step::decode(position) }
    }

    /// A pass over one token at a position that only the device knows.
    pub fn decode(position: Array) -> Self {
        Step {
            position,
            length: 1,
            offset: None,
            masks: RefCell::default(),
            lent: RefCell::default(),
            notes: RefCell::default(),
        }
    }

    /// The same pass over groups of `size` tokens: those that it has tokens of.
    pub(crate) fn grouped(&self, size: i32) -> Result<Self> {
        Ok(match self.offset {
            Some(offset) => {
                let length = (offset % size + self.length - 1) / size + 1;
                Step::prefill(offset / size, length)
            }
            None => Step::decode(self.position.floor_divide(Array::from_int(size))?),
        })
    }

    /// The positions of all its tokens, `[length]`.
    pub(crate) fn positions(&self) -> Result<Array> {
        Ok(ops::arange::<_, i32>(0, self.length, None)?.add(&self.position)?)
    }

    /// Lets later layers attend over the keys and values of this one.
    pub fn lend(&self, layer: i32, seen: Seen) {
        self.lent.borrow_mut().push((layer, seen));
    }

    /// What an earlier layer has lent.
    ///
    /// # Panics
    /// When it has not: a family's mistake, not its checkpoint's.
    pub fn lent(&self, layer: i32) -> Seen {
        let lent = self.lent.borrow();
        let found = lent.iter().find(|(lender, _)| *lender == layer);
        found.expect("a lender comes before its borrowers").1.clone()
    }

    /// Leaves something for later layers, instead of what there was; or nothing.
    pub fn note(&self, note: Note, value: Option<Array>) {
        let mut notes = self.notes.borrow_mut();
        match value {
            Some(value) => notes.insert(note, value),
            None => notes.remove(&note),
        };
    }

    /// What there is for later layers.
    pub fn noted(&self, note: Note) -> Option<Array> {
        self.notes.borrow().get(&note).cloned()
    }

    /// Each mask is built once a pass, not once a layer.
    fn memoized(&self, key: Mask, build: impl FnOnce() -> Result<Array>) -> Result<Array> {
        if let Some((_, mask)) = self.masks.borrow().iter().find(|(known, _)| *known == key) {
            return Ok(mask.clone());
        }
        let mask = build()?;
        self.masks.borrow_mut().push((key, mask.clone()));
        Ok(mask)
    }

    /// Which of the `past` keys before the pass and of its own each query sees: itself and all
    /// before it that are in the ring. `[length, past + length]`, true where seen.
    pub(crate) fn seen_mask(&self, past: i32, ring: Option<Ring>) -> Result<Array> {
        self.memoized(Mask::Seen(ring), || {
            let queries = ops::arange::<_, i32>(past, past + self.length, None)?.expand_dims(1)?;
            let keys = ops::arange::<_, i32>(0, past + self.length, None)?.expand_dims(0)?;
            let distance = queries.subtract(&keys)?;
            let seen = distance.ge(Array::from_int(0))?;
            let Some(ring) = ring else { return Ok(seen) };
            let near = distance.lt(Array::from_int(ring.turning()))?;
            let near = match ring.keep {
                0 => near,
                keep => near.logical_or(keys.lt(Array::from_int(keep))?)?,
            };
            Ok(seen.logical_and(near)?)
        })
    }

    /// Which slots of a buffer hold keys, the token's own included. `[capacity]`.
    pub(crate) fn filled_mask(&self, capacity: i32) -> Result<Array> {
        self.memoized(Mask::Filled(capacity), || {
            Ok(ops::arange::<_, i32>(0, capacity, None)?.le(&self.position)?)
        })
    }

    /// The slot `[1]` of the token.
    pub(crate) fn slot(&self, ring: Option<Ring>) -> Result<Array> {
        let Some(ring) = ring else { return Ok(self.position.clone()) };
        self.memoized(Mask::Slot(ring), || {
            let (keep, turning) = (Array::from_int(ring.keep), Array::from_int(ring.turning()));
            if ring.keep == 0 {
                return Ok(self.position.remainder(turning)?);
            }
            let turned = self.position.subtract(&keep)?.remainder(turning)?.add(&keep)?;
            Ok(ops::select(&self.position.lt(keep)?, &self.position, turned)?)
        })
    }
}

/// Anything that maps the residual stream `[batch, length, width]` to itself: attention, a
/// feed-forward network, a recurrence, a whole block.
pub trait Layer {
    /// What it remembers between passes.
    type State: State + Clone;
    /// An empty memory.
    fn state(&self, plan: &CachePlan) -> Self::State;
    /// One pass.
    fn forward(&self, x: &Array, state: &mut Self::State, step: &Step) -> Result<Array>;
}

impl<S: State + Clone> Layer for Box<dyn Layer<State = S>> {
    type State = S;
    fn state(&self, plan: &CachePlan) -> S {
        (**self).state(plan)
    }
    fn forward(&self, x: &Array, state: &mut S, step: &Step) -> Result<Array> {
        (**self).forward(x, state, step)
    }
}

/// A layer that remembers nothing and sees each token by itself: a function of `[batch, length, width]`.
pub struct Map<F>(pub F);

impl<F: Fn(&Array) -> Result<Array>> Layer for Map<F> {
    type State = ();
    fn state(&self, _: &CachePlan) {}
    fn forward(&self, x: &Array, (): &mut (), _: &Step) -> Result<Array> {
        (self.0)(x)
    }
}

impl Layer for Norm {
    type State = ();
    fn state(&self, _: &CachePlan) {}
    fn forward(&self, x: &Array, (): &mut (), _: &Step) -> Result<Array> {
        self.forward(x)
    }
}

/// How a branch joins the residual stream.
pub type Join = fn(&Array, &Array) -> Result<Array>;

/// `x + y`.
fn sum(x: &Array, y: &Array) -> Result<Array> {
    Ok(x.add(y)?)
}

/// `x + scale · post(inner(pre(x)))`.
pub struct Residual<L> {
    pre: Option<Norm>,
    inner: L,
    post: Option<Norm>,
    scale: f32,
    join: Join,
}

impl<L: Layer> Residual<L> {
    /// `x + inner(x)`.
    pub fn plain(inner: L) -> Self {
        Residual { pre: None, inner, post: None, scale: 1.0, join: sum }
    }

    /// `x + inner(norm(x))`.
    pub fn pre(norm: Norm, inner: L) -> Self {
        Residual { pre: Some(norm), inner, post: None, scale: 1.0, join: sum }
    }

    /// `x + norm(inner(x))`.
    pub fn post(inner: L, norm: Norm) -> Self {
        Residual { pre: None, inner, post: Some(norm), scale: 1.0, join: sum }
    }

    /// `x + post(inner(pre(x)))`.
    pub fn sandwich(pre: Norm, inner: L, post: Norm) -> Self {
        Residual { pre: Some(pre), inner, post: Some(post), scale: 1.0, join: sum }
    }

    /// Multiplies the branch before it joins the stream.
    pub fn scaled(self, scale: f32) -> Self {
        Residual { scale, ..self }
    }

    /// Joins the stream in another way than by a plain sum.
    pub fn joined_by(self, join: Join) -> Self {
        Residual { join, ..self }
    }
}

impl<L: Layer> Layer for Residual<L> {
    type State = L::State;
    fn state(&self, plan: &CachePlan) -> L::State {
        self.inner.state(plan)
    }
    fn forward(&self, x: &Array, state: &mut L::State, step: &Step) -> Result<Array> {
        let mut y = match &self.pre {
            Some(norm) => self.inner.forward(&norm.forward(x)?, state, step)?,
            None => self.inner.forward(x, state, step)?,
        };
        if let Some(norm) = &self.post {
            y = norm.forward(&y)?;
        }
        if self.scale != 1.0 {
            y = y.multiply(mlx::scalar(self.scale, y.dtype())?)?;
        }
        (self.join)(x, &y)
    }
}

/// `a(x) + b(x)`.
pub struct Parallel<A, B>(pub A, pub B);

impl<A: Layer, B: Layer> Layer for Parallel<A, B> {
    type State = (A::State, B::State);
    fn state(&self, plan: &CachePlan) -> Self::State {
        (self.0.state(plan), self.1.state(plan))
    }
    fn forward(&self, x: &Array, state: &mut Self::State, step: &Step) -> Result<Array> {
        let a = self.0.forward(x, &mut state.0, step)?;
        Ok(a.add(self.1.forward(x, &mut state.1, step)?)?)
    }
}

/// `b(a(x))`: a block is usually two residual branches in sequence.
impl<A: Layer, B: Layer> Layer for (A, B) {
    type State = (A::State, B::State);
    fn state(&self, plan: &CachePlan) -> Self::State {
        (self.0.state(plan), self.1.state(plan))
    }
    fn forward(&self, x: &Array, state: &mut Self::State, step: &Step) -> Result<Array> {
        let x = self.0.forward(x, &mut state.0, step)?;
        self.1.forward(&x, &mut state.1, step)
    }
}

/// A block of any composition: the one place where the types of layers are erased.
pub struct Block(Box<dyn Erased>);

trait Erased {
    fn state(&self, plan: &CachePlan) -> Box<dyn State>;
    fn forward(&self, x: &Array, state: &mut dyn State, step: &Step) -> Result<Array>;
}

impl<L: Layer> Erased for L {
    fn state(&self, plan: &CachePlan) -> Box<dyn State> {
        Box::new(Layer::state(self, plan))
    }
    fn forward(&self, x: &Array, state: &mut dyn State, step: &Step) -> Result<Array> {
        let state = (state as &mut dyn Any).downcast_mut();
        Layer::forward(self, x, state.expect("a state stays with the block that made it"), step)
    }
}

impl Block {
    /// Erases the type of a layer.
    pub fn new(layer: impl Layer + 'static) -> Self {
        Block(Box::new(layer))
    }

    pub(crate) fn state(&self, plan: &CachePlan) -> Box<dyn State> {
        self.0.state(plan)
    }

    pub(crate) fn forward(&self, x: &Array, state: &mut dyn State, step: &Step) -> Result<Array> {
        self.0.forward(x, state, step)
    }
}
