//! The real-gated linear recurrent unit (RG-LRU,
//! [De et al. 2024](https://arxiv.org/abs/2402.19427)): a linear recurrence whose decay and input are
//! gated by the token. Follows transformers, which keeps the state in float32.

use crate::{
    checkpoint::scope::Scope,
    error::Result,
    layers::{
        feed_forward::activation::softplus, recurrent::linear_scan::linear_scan, state::Recurrent,
        step::Step,
    },
};
use mlx_rs::{Array, Dtype, ops};

/// How much an open gate sharpens the decay.
const SHARPNESS: f32 = -8.0;

/// An RG-LRU.
pub struct RgLru {
    input_gate: BlockDiagonal,
    decay_gate: BlockDiagonal,
    /// The logarithm of the decay where the gate is open, `[width]`, in float32.
    log_decay: Array,
}

impl RgLru {
    /// Reads a unit of `width` channels whose gates are `heads` blocks.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn read(w: &Scope, width: i32, heads: i32) -> Result<Self> {
        let parameter = w.take("recurrent_param", &[width])?.as_dtype(Dtype::Float32)?;
        Ok(RgLru {
            input_gate: BlockDiagonal::read(w, "input_gate", width, heads)?,
            decay_gate: BlockDiagonal::read(w, "recurrent_gate", width, heads)?,
            log_decay: w.keep(softplus(&parameter)?.multiply(Array::from_f32(SHARPNESS))?),
        })
    }

    /// Maps `[batch, length, width]` to the states after each token. The first token of a sequence
    /// enters the state as it is.
    ///
    /// # Errors
    /// [`crate::error::Error::Mlx`].
    pub fn forward(&self, x: &Array, state: &mut Recurrent, step: &Step) -> Result<Array> {
        let gate = ops::sigmoid(&self.decay_gate.forward(x)?)?.as_dtype(Dtype::Float32)?;
        let log_decays = gate.multiply(&self.log_decay)?;
        let decays = log_decays.exp()?;
        let one = Array::from_f32(1.0);
        let lost = one.subtract(log_decays.multiply(Array::from_f32(2.0))?.exp()?)?;
        let mut scale = lost.sqrt()?;
        if state.get().is_none() {
            let first = ops::arange::<_, i32>(0, x.dim(1), None)?.eq(Array::from_int(0))?;
            scale = ops::select(first.expand_dims(-1)?, one, scale)?;
        }
        let gated = x.multiply(ops::sigmoid(&self.input_gate.forward(x)?)?)?;
        let states = linear_scan(&decays, &gated.multiply(scale)?, state.get())?;
        state.follow(states.clone(), step)?;
        Ok(states.as_dtype(x.dtype())?)
    }
}

/// A projection with one block for each head.
struct BlockDiagonal {
    /// `[heads, block, block]`.
    weight: Array,
    /// `[heads, 1, block]`.
    bias: Array,
}

impl BlockDiagonal {
    fn read(w: &Scope, name: &str, width: i32, heads: i32) -> Result<Self> {
        let block = width / heads;
        let bias = w.take(&format!("{name}_bias"), &[heads, block])?.expand_dims(1)?;
        Ok(BlockDiagonal {
            weight: w.tensor(&format!("{name}_weight"), &[heads, block, block])?,
            bias: w.keep(bias),
        })
    }

    fn forward(&self, x: &Array) -> Result<Array> {
        let heads = ops::unflatten(x, -1, &[self.weight.dim(0), -1])?.swap_axes(1, 2)?;
        let y = heads.matmul(&self.weight)?.add(&self.bias)?;
        Ok(y.swap_axes(1, 2)?.reshape(x.shape())?)
    }
}
