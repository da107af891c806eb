//! Layers one after the other, which may change the length and the width of a sequence.

use crate::{
    error::Result,
    layers::{
        algebra::{Block, Layer},
        audio::noise::Noise,
        cache_plan::CachePlan,
        state::{State, StatePart},
        step::Step,
    },
};
use mlx_rs::Array;

/// `[batch, length, channels]` through one layer after the other.
pub struct Sequence(pub Vec<Block>);

impl Sequence {
    /// A pass over a whole sequence, of which nothing is kept.
    pub fn run(&self, x: &Array) -> Result<Array> {
        self.run_with(x, Noise::Zero)
    }

    /// As [`Sequence::run`], with random numbers.
    pub fn run_with(&self, x: &Array, noise: Noise) -> Result<Array> {
        let step = Step::prefill(0, x.dim(1));
        step.put(noise);
        self.forward(x, &mut Layer::state(self, &CachePlan::default()), &step)
    }
}

/// The states of the layers of a [`Sequence`].
pub struct States(Vec<Box<dyn State>>);

impl Clone for States {
    fn clone(&self) -> Self {
        States(self.0.iter().map(|state| state.fork()).collect())
    }
}

impl State for States {
    fn parts(&mut self) -> Vec<StatePart<'_>> {
        self.0.iter_mut().flat_map(|state| state.parts()).collect()
    }
    fn fork(&self) -> Box<dyn State> {
        Box::new(self.clone())
    }
}

impl Layer for Sequence {
    type State = States;

    fn state(&self, plan: &CachePlan) -> States {
        States(self.0.iter().map(|block| block.state(plan)).collect())
    }

    fn forward(&self, x: &Array, states: &mut States, step: &Step) -> Result<Array> {
        self.0
            .iter()
            .zip(&mut states.0)
            .try_fold(x.clone(), |x, (block, state)| block.forward(&x, &mut **state, step))
    }
}
