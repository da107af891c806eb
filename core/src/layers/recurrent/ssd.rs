//! State space duality (SSD, [Dao and Gu 2024](https://arxiv.org/abs/2405.21060)): a state space model
//! with one decay a head, token by token as a recurrence, or a chunk of tokens as masked attention.
//! Follows `ssm` of mlx-lm.

use crate::{
    checkpoint::{config::Float, scope::Scope},
    error::Result,
    layers::{feed_forward::activation::softplus, state::Recurrent, step::Step},
    mlx,
};
use mlx_rs::{Array, Dtype, ops};
use serde::Deserialize;

/// Tokens that are computed as one block of attention.
const CHUNK: i32 = 64;

/// The bounds of the length of a time step.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "(Float, Float)")]
pub struct TimeStepLimit {
    shortest: f32,
    longest: f32,
}

impl TimeStepLimit {
    /// Time steps of any length.
    pub const NONE: TimeStepLimit = TimeStepLimit { shortest: 0.0, longest: f32::INFINITY };

    /// These limits, and this lower one.
    #[must_use]
    pub fn at_least(self, shortest: f32) -> Self {
        TimeStepLimit { shortest: self.shortest.max(shortest), longest: self.longest.max(shortest) }
    }
}

impl TryFrom<(Float, Float)> for TimeStepLimit {
    type Error = String;

    fn try_from((Float(shortest), Float(longest)): (Float, Float)) -> Result<Self, String> {
        if shortest <= longest {
            Ok(TimeStepLimit { shortest, longest })
        } else {
            Err(format!("{shortest} to {longest} is no range"))
        }
    }
}

/// The sizes of a state space model.
#[derive(Clone, Copy, Debug)]
pub struct SsdSizes {
    /// Number of heads.
    pub heads: i32,
    /// Width of one head.
    pub head_dim: i32,
    /// Number of groups of heads that share `B` and `C`.
    pub groups: i32,
    /// Width of the state for each element of a head.
    pub state: i32,
}

/// What a state space model computes from, for a number of tokens.
pub struct SsdInputs {
    /// `[batch, length, heads, head_dim]`.
    pub x: Array,
    /// How tokens enter the state, `[batch, length, groups, state]`.
    pub b: Array,
    /// How the state is read, `[batch, length, groups, state]`.
    pub c: Array,
    /// The lengths of the time steps before bias and softplus, `[batch, length, heads]`.
    pub dt: Array,
}

impl SsdInputs {
    /// The tokens from `start` to `end`.
    fn slice(&self, start: i32, end: i32) -> Result<SsdInputs> {
        let cut = |a: &Array| mlx::slice(a, 1, start, end);
        Ok(SsdInputs { x: cut(&self.x)?, b: cut(&self.b)?, c: cut(&self.c)?, dt: cut(&self.dt)? })
    }
}

/// The parameters of a state space model.
pub struct Ssd {
    /// `-exp(A_log)`: how fast each head forgets.
    a: Array,
    d: Array,
    dt_bias: Array,
    limit: TimeStepLimit,
    sizes: SsdSizes,
}

impl Ssd {
    /// Reads `A_log`, `D` and `dt_bias`.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn read(w: &Scope, sizes: SsdSizes, limit: TimeStepLimit) -> Result<Self> {
        let shape = [sizes.heads];
        let a_log = w.take("A_log", &shape)?.as_dtype(Dtype::Float32)?;
        Ok(Ssd {
            a: w.keep(a_log.exp()?.negative()?),
            d: w.tensor("D", &shape)?,
            dt_bias: w.tensor("dt_bias", &shape)?,
            limit,
            sizes,
        })
    }

    /// The lengths of the time steps, `[batch, length, heads]`, in float32.
    fn time_steps(&self, dt: &Array) -> Result<Array> {
        let dt = softplus(&dt.as_dtype(Dtype::Float32)?.add(&self.dt_bias)?)?;
        let TimeStepLimit { shortest, longest } = self.limit;
        // Softplus is positive.
        if shortest <= 0.0 && longest == f32::INFINITY {
            return Ok(dt);
        }
        Ok(ops::clip(&dt, (Array::from_f32(shortest), Array::from_f32(longest)))?)
    }

    /// All tokens of a pass, to `[batch, length, heads, head_dim]`. The state is
    /// `[batch, heads, head_dim, state]` in float32.
    pub fn scan(&self, inputs: SsdInputs, ssm: &mut Recurrent, step: &Step) -> Result<Array> {
        let inputs = SsdInputs { dt: self.time_steps(&inputs.dt)?, ..inputs };
        let x = &inputs.x;
        let length = x.dim(1);
        let skip = x.multiply(self.d.as_dtype(x.dtype())?.expand_dims(-1)?)?;
        let mut parts = Vec::new();
        match ssm.get().cloned() {
            Some(mut state) if step.is_verify() => {
                let mut states = Vec::new();
                for token in 0..length {
                    let (y, next) = self.step(&inputs.slice(token, token + 1)?, &state)?;
                    state = next;
                    parts.push(y);
                    states.push(state.clone());
                }
                ssm.set_aside(&states)?;
            }
            Some(state) if length == 1 => {
                let (y, next) = self.step(&inputs, &state)?;
                ssm.set(next);
                parts.push(y);
            }
            _ => {
                for start in (0..length).step_by(CHUNK as usize) {
                    let inputs = inputs.slice(start, length.min(start + CHUNK))?;
                    let (y, next) = self.chunk(&inputs, ssm.get())?;
                    ssm.set(next);
                    parts.push(y);
                }
            }
        }
        let y = if parts.len() == 1 { parts.remove(0) } else { ops::concatenate(&parts, 1)? };
        Ok(y.as_dtype(x.dtype())?.add(skip)?)
    }

    /// One token by the recurrence itself: `h ← exp(dt·A)·h + dt·x⊗B`, `y = h·C`. Returns `y` and the
    /// state after it.
    fn step(&self, inputs: &SsdInputs, state: &Array) -> Result<(Array, Array)> {
        let SsdSizes { heads, groups, head_dim, state: width } = self.sizes;
        let SsdInputs { x, b, c, dt } = inputs;
        let batch = x.dim(0);
        let shared = |a: &Array| -> Result<Array> { Ok(a.reshape(&[batch, groups, 1, 1, width])?) };
        let grouped = |a: &Array, last: i32| -> Result<Array> {
            Ok(a.reshape(&[batch, groups, heads / groups, -1, last])?)
        };
        let decay = grouped(&dt.multiply(&self.a)?.exp()?, 1)?;
        let dx = grouped(&x.multiply(dt.expand_dims(-1)?)?, 1)?;
        let state = grouped(state, width)?.multiply(decay)?.add(dx.multiply(shared(b)?)?)?;
        let y = state.multiply(shared(c)?)?.sum_axis(-1, false)?;
        let y = y.reshape(&[batch, 1, heads, head_dim])?;
        Ok((y, state.reshape(&[batch, heads, head_dim, width])?))
    }

    /// A chunk of tokens as masked attention, plus what the state before it contributes. Returns `y`
    /// and the state after the chunk.
    fn chunk(&self, inputs: &SsdInputs, state: Option<&Array>) -> Result<(Array, Array)> {
        let SsdSizes { heads, groups, head_dim, state: width } = self.sizes;
        let SsdInputs { x, b, c, dt } = inputs;
        let (batch, length) = (x.dim(0), x.dim(1));
        let repeats = heads / groups;
        // Sums of log decays up to and including each token: [batch, heads, length].
        let log_decay = dt.multiply(&self.a)?.swap_axes(1, 2)?.cumsum(-1, None, None)?;
        let between = log_decay.expand_dims(-1)?.subtract(log_decay.expand_dims(-2)?)?;
        let future = ops::full::<f32>(&[length, length], Array::from_f32(f32::NEG_INFINITY))?;
        let decay = between.add(ops::triu(&future, 1)?)?.exp()?;
        let (bt, ct) = (b.transpose_axes(&[0, 2, 3, 1])?, c.swap_axes(1, 2)?);
        // [batch, groups, 1, length, length], the same for all heads of a group.
        let scores = ops::matmul(&ct, &bt)?.expand_dims(2)?;
        let weights = scores.multiply(decay.reshape(&[batch, groups, repeats, length, length])?)?;
        let dx = x.multiply(dt.expand_dims(-1)?)?.swap_axes(1, 2)?;
        let grouped = [batch, groups, repeats, length, head_dim];
        let mut y = ops::matmul(&weights, &dx.reshape(&grouped)?)?;
        let last = mlx::slice(&log_decay, 2, length - 1, length)?;
        let remaining = last.subtract(&log_decay)?.exp()?.expand_dims(-1)?;
        // [batch, groups, repeats, head_dim, length] · [batch, groups, 1, length, state]
        let kept = dx.multiply(remaining)?.reshape(&grouped)?.swap_axes(-1, -2)?;
        let mut next = ops::matmul(&kept, &bt.swap_axes(-1, -2)?.expand_dims(2)?)?;
        if let Some(state) = state {
            let state = state.reshape(&[batch, groups, repeats, head_dim, width])?;
            let total = last.exp()?.reshape(&[batch, groups, repeats, 1, 1])?;
            next = next.add(state.multiply(total)?)?;
            let past = ops::matmul(&ct.expand_dims(2)?, &state.swap_axes(-1, -2)?)?;
            let reach = log_decay.exp()?.reshape(&[batch, groups, repeats, length, 1])?;
            y = y.add(past.multiply(reach)?)?;
        }
        let y = y.reshape(&[batch, heads, length, head_dim])?.swap_axes(1, 2)?;
        Ok((y, next.reshape(&[batch, heads, head_dim, width])?))
    }
}
