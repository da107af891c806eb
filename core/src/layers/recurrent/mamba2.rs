//! Mamba 2: a state space model with one decay a head, computed as attention within chunks
//! (SSD, [Dao and Gu 2024](https://arxiv.org/abs/2405.21060)). Follows `ssm` of mlx-lm.

use crate::layers::{
    feed_forward::mlp::swiglu, linear::Linear, norm::Norm, recurrent::conv::CausalConv,
};
use crate::{
    checkpoint::scope::Scope,
    error::Result,
    layers::{algebra::Layer, cache_plan::CachePlan, state::Recurrent, step::Step},
    mlx,
};
use mlx_rs::{Array, Dtype, ops};

/// Tokens that are computed as one block of attention.
const CHUNK: i32 = 256;

/// The sizes of a mixer.
#[derive(Clone, Copy, Debug)]
pub struct Mamba2Sizes {
    /// Width of the residual stream.
    pub hidden: i32,
    /// Number of heads.
    pub heads: i32,
    /// Width of one head.
    pub head_dim: i32,
    /// Width of the state for each element of a head.
    pub state: i32,
    /// Number of groups of heads that share `B` and `C`.
    pub groups: i32,
    /// Taps of the convolution.
    pub taps: i32,
}

/// A Mamba 2 mixer.
pub struct Mamba2 {
    input: Linear,
    conv: CausalConv,
    /// `-exp(A_log)`: how fast each head forgets.
    a: Array,
    d: Array,
    dt_bias: Array,
    dt_range: (f32, f32),
    norm: Norm,
    output: Linear,
    sizes: Mamba2Sizes,
}

impl Mamba2 {
    /// Reads a mixer; `bias` and `conv_bias` say which biases must be there.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn read(
        w: &Scope,
        s: Mamba2Sizes,
        eps: f32,
        dt_range: (f32, f32),
        (bias, conv_bias): (bool, bool),
    ) -> Result<Self> {
        let read = if bias { Scope::linear_with_bias } else { Scope::linear };
        let inner = s.heads * s.head_dim;
        let channels = inner + 2 * s.groups * s.state;
        Ok(Mamba2 {
            input: read(w, "in_proj", s.hidden, inner + channels + s.heads)?,
            conv: CausalConv::read(w, "conv1d", channels, s.taps, conv_bias)?,
            a: w.keep(w.take("A_log", &[s.heads])?.exp()?.negative()?.as_dtype(Dtype::Float32)?),
            d: w.tensor("D", &[s.heads])?,
            dt_bias: w.tensor("dt_bias", &[s.heads])?,
            dt_range,
            norm: w.rms_norm("norm", inner, eps)?,
            output: read(w, "out_proj", inner, s.hidden)?,
            sizes: s,
        })
    }

    /// The length of each time step, `[batch, length, heads]`.
    fn dt(&self, dt: &Array) -> Result<Array> {
        let dt = dt.as_dtype(Dtype::Float32)?.add(&self.dt_bias)?;
        let dt = ops::logaddexp(&dt, Array::from_f32(0.0))?;
        let (shortest, longest) = self.dt_range;
        Ok(ops::clip(&dt, (Array::from_f32(shortest), Array::from_f32(longest)))?)
    }

    /// One token by the recurrence itself: `h ← exp(dt·A)·h + dt·x⊗B`, `y = h·C`.
    fn step(
        &self,
        x: &Array,
        b: &Array,
        c: &Array,
        dt: &Array,
        state: &Array,
    ) -> Result<(Array, Array)> {
        let Mamba2Sizes { heads, groups, head_dim, state: width, .. } = self.sizes;
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

    /// A chunk of tokens as masked attention, plus what the state before it contributes.
    fn chunk(
        &self,
        x: &Array,
        b: &Array,
        c: &Array,
        dt: &Array,
        state: Option<&Array>,
    ) -> Result<(Array, Array)> {
        let Mamba2Sizes { heads, groups, head_dim, state: width, .. } = self.sizes;
        let (batch, length) = (x.dim(0), x.dim(1));
        let repeats = heads / groups;
        // Sums of log decays up to and including each token: [batch, heads, length].
        let log_decay = dt.multiply(&self.a)?.swap_axes(1, 2)?.cumsum(-1, None, None)?;
        let between = log_decay.expand_dims(-1)?.subtract(log_decay.expand_dims(-2)?)?;
        let decay = ops::tril(between.exp()?, None)?;
        let (bt, ct) = (b.transpose_axes(&[0, 2, 3, 1])?, c.swap_axes(1, 2)?);
        // [batch, groups, 1, length, length], the same for all heads of a group.
        let scores = ops::matmul(&ct, &bt)?.expand_dims(2)?;
        let shape = [batch, groups, repeats, length, length];
        let weights = ops::tril(scores.multiply(decay.reshape(&shape)?)?, None)?;
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

    /// All tokens of a pass: `x` `[batch, length, heads, head_dim]`, `b` and `c`
    /// `[batch, length, groups, state]`; the recurrent state is `[batch, heads, head_dim, state]`.
    fn scan(&self, [x, b, c, dt]: [&Array; 4], ssm: &mut Recurrent, step: &Step) -> Result<Array> {
        let dt = self.dt(dt)?;
        let length = x.dim(1);
        let skip = x.multiply(self.d.reshape(&[1, 1, -1, 1])?)?;
        let y = match ssm.get().cloned() {
            Some(mut state) if step.is_verify() => {
                let (mut parts, mut states) = (Vec::new(), Vec::new());
                for at in 0..length {
                    let cut = |a: &Array| mlx::slice(a, 1, at, at + 1);
                    let y = self.step(&cut(x)?, &cut(b)?, &cut(c)?, &cut(&dt)?, &state)?;
                    state = y.1;
                    parts.push(y.0);
                    states.push(state.clone());
                }
                ssm.set_aside(&states)?;
                ops::concatenate(&parts, 1)?
            }
            Some(state) if length == 1 => {
                let (y, next) = self.step(x, b, c, &dt, &state)?;
                ssm.set(next);
                y
            }
            _ => {
                let mut parts = Vec::new();
                for start in (0..length).step_by(CHUNK as usize) {
                    let cut = |a: &Array| mlx::slice(a, 1, start, length.min(start + CHUNK));
                    let past = ssm.get();
                    let (y, next) = self.chunk(&cut(x)?, &cut(b)?, &cut(c)?, &cut(&dt)?, past)?;
                    ssm.set(next);
                    parts.push(y);
                }
                ops::concatenate(&parts, 1)?
            }
        };
        Ok(y.as_dtype(x.dtype())?.add(skip)?)
    }
}

impl Layer for Mamba2 {
    /// Of the convolution, and of the state space model.
    type State = (Recurrent, Recurrent);

    fn state(&self, _: &CachePlan) -> Self::State {
        Self::State::default()
    }

    fn forward(&self, x: &Array, (last, ssm): &mut Self::State, step: &Step) -> Result<Array> {
        let s = self.sizes;
        let (batch, length) = (x.dim(0), x.dim(1));
        let (inner, shared) = (s.heads * s.head_dim, s.groups * s.state);
        let projected = self.input.forward(x)?;
        let channels = inner + 2 * shared;
        let parts = ops::split_at_indices(&projected, &[inner, inner + channels], -1)?;
        let (gate, mixed, dt) = (&parts[0], &parts[1], &parts[2]);
        let mixed = self.conv.forward(mixed, last, step)?;
        let mixed = mixed.multiply(ops::sigmoid(&mixed)?)?;
        let parts = ops::split_at_indices(&mixed, &[inner, inner + shared], -1)?;
        let x = parts[0].reshape(&[batch, length, s.heads, s.head_dim])?;
        let b = parts[1].reshape(&[batch, length, s.groups, s.state])?;
        let c = parts[2].reshape(&[batch, length, s.groups, s.state])?;
        let y = self.scan([&x, &b, &c, dt], ssm, step)?.reshape(&[batch, length, inner])?;
        self.output.forward(&self.norm.forward(&swiglu(gate, &y)?)?)
    }
}
