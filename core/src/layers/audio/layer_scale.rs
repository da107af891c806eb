//! Layer scale ([Touvron et al. 2021](https://arxiv.org/abs/2103.17239)): a branch times one factor for
//! each channel.

use crate::{
    error::Result,
    layers::{algebra::Layer, cache_plan::CachePlan, step::Step},
};
use mlx_rs::Array;

/// A layer whose output is multiplied by factors `[channels]`.
pub struct LayerScale<L> {
    /// The layer.
    pub inner: L,
    /// The factors.
    pub scale: Array,
}

impl<L: Layer> Layer for LayerScale<L> {
    type State = L::State;
    fn state(&self, plan: &CachePlan) -> L::State {
        self.inner.state(plan)
    }
    fn forward(&self, x: &Array, state: &mut L::State, step: &Step) -> Result<Array> {
        Ok(self.inner.forward(x, state, step)?.multiply(&self.scale)?)
    }
}
