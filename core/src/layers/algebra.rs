//! The algebra of the residual stream: layers, residual branches, sums, sequences.

use crate::{
    error::Result,
    layers::{cache_plan::CachePlan, state::State, step::Step},
};
use mlx_rs::Array;
use std::any::Any;

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
