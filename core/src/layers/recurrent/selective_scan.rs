//! The mixer of Mamba ([Gu and Dao 2023](https://arxiv.org/abs/2312.00752)): a state space model whose
//! time steps, inputs and outputs are selected by the token, with a decay for each channel and element
//! of the state. Follows transformers.

use crate::{
    checkpoint::scope::Scope,
    error::Result,
    layers::{
        algebra::Layer,
        cache_plan::CachePlan,
        feed_forward::{
            activation::{silu, softplus},
            mlp::swiglu,
        },
        linear::Linear,
        norm::Norm,
        recurrent::{conv::CausalConv, linear_scan::linear_scan},
        state::Recurrent,
        step::Step,
    },
    mlx,
};
use mlx_rs::{Array, Dtype, ops};

/// Tokens whose states are in memory at once.
const CHUNK: i32 = 64;

/// The sizes of a mixer.
#[derive(Clone, Copy, Debug)]
pub struct SelectiveScanSizes {
    /// Width of the residual stream.
    pub hidden: i32,
    /// Number of channels.
    pub inner: i32,
    /// Width of the state of each channel.
    pub state: i32,
    /// Width of the projection that time steps come from.
    pub time_step_rank: i32,
    /// Taps of the convolution.
    pub taps: i32,
}

/// Which biases a mixer has.
#[derive(Clone, Copy, Debug)]
pub struct SelectiveScanBiases {
    /// Those of the first and last projection.
    pub projections: bool,
    /// That of the convolution.
    pub conv: bool,
}

/// The norms of time steps, `B` and `C`.
#[derive(Clone, Copy, Debug)]
pub enum SelectionNorms {
    /// None.
    None,
    /// RMS norms without weights, with this epsilon.
    Weightless(f32),
    /// RMS norms `dt_layernorm`, `b_layernorm` and `c_layernorm`, with this epsilon.
    Weighted(f32),
}

/// A Mamba mixer.
pub struct SelectiveScan {
    input: Linear,
    conv: CausalConv,
    selection: Linear,
    norms: Option<[Norm; 3]>,
    time_step: Linear,
    /// `-exp(A_log)`: how fast each element of a state decays.
    a: Array,
    d: Array,
    output: Linear,
    sizes: SelectiveScanSizes,
}

impl SelectiveScan {
    /// Reads a mixer.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn read(
        w: &Scope,
        s: SelectiveScanSizes,
        biases: SelectiveScanBiases,
        norms: SelectionNorms,
    ) -> Result<Self> {
        let read = if biases.projections { Scope::linear_with_bias } else { Scope::linear };
        let norms = match norms {
            SelectionNorms::None => None,
            SelectionNorms::Weightless(eps) => {
                Some([(); 3].map(|()| Norm::Rms { weight: None, eps }))
            }
            SelectionNorms::Weighted(eps) => Some([
                w.rms_norm("dt_layernorm", s.time_step_rank, eps)?,
                w.rms_norm("b_layernorm", s.state, eps)?,
                w.rms_norm("c_layernorm", s.state, eps)?,
            ]),
        };
        let a_log = w.take("A_log", &[s.inner, s.state])?.as_dtype(Dtype::Float32)?;
        Ok(SelectiveScan {
            input: read(w, "in_proj", s.hidden, 2 * s.inner)?,
            conv: CausalConv::read(w, "conv1d", s.inner, s.taps, biases.conv)?,
            selection: w.linear("x_proj", s.inner, s.time_step_rank + 2 * s.state)?,
            norms,
            time_step: w.linear_with_bias("dt_proj", s.time_step_rank, s.inner)?,
            a: w.keep(a_log.exp()?.negative()?),
            d: w.tensor("D", &[s.inner])?,
            output: read(w, "out_proj", s.inner, s.hidden)?,
            sizes: s,
        })
    }

    /// Time steps `[batch, length, inner]`, `B` and `C` `[batch, length, state]`, in float32.
    fn select(&self, x: &Array) -> Result<[Array; 3]> {
        let (rank, state) = (self.sizes.time_step_rank, self.sizes.state);
        let parts = ops::split_at_indices(&self.selection.forward(x)?, &[rank, rank + state], -1)?;
        let normed = |i: usize| match &self.norms {
            Some(norms) => norms[i].forward(&parts[i]),
            None => Ok(parts[i].clone()),
        };
        let wide = |x: Array| -> Result<Array> { Ok(x.as_dtype(Dtype::Float32)?) };
        let dt = softplus(&wide(self.time_step.forward(&normed(0)?)?)?)?;
        Ok([dt, wide(normed(1)?)?, wide(normed(2)?)?])
    }

    /// The output `[batch, length, inner]` of the state space model, whose state is
    /// `[batch, inner, state]`, in float32.
    fn scan(&self, x: &Array, ssm: &mut Recurrent, step: &Step) -> Result<Array> {
        let [dt, b, c] = self.select(x)?;
        let dx = dt.multiply(x)?;
        let length = x.dim(1);
        let mut parts = Vec::new();
        for start in (0..length).step_by(CHUNK as usize) {
            let end = length.min(start + CHUNK);
            let cut = |array: &Array| mlx::slice(array, 1, start, end);
            let decays = cut(&dt)?.expand_dims(-1)?.multiply(&self.a)?.exp()?;
            let inputs = cut(&dx)?.expand_dims(-1)?.multiply(cut(&b)?.expand_dims(2)?)?;
            let states = linear_scan(&decays, &inputs, ssm.get())?;
            parts.push(states.matmul(cut(&c)?.expand_dims(-1)?)?.squeeze_axes(&[-1])?);
            ssm.follow(states, step)?;
        }
        let y = if parts.len() == 1 { parts.remove(0) } else { ops::concatenate(&parts, 1)? };
        Ok(y.add(x.multiply(&self.d)?)?.as_dtype(x.dtype())?)
    }
}

impl Layer for SelectiveScan {
    /// Of the convolution, and of the state space model.
    type State = (Recurrent, Recurrent);

    fn state(&self, _: &CachePlan) -> Self::State {
        Self::State::default()
    }

    fn forward(&self, x: &Array, (last, ssm): &mut Self::State, step: &Step) -> Result<Array> {
        let parts = ops::split_equal(&self.input.forward(x)?, 2, -1)?;
        let x = silu(&self.conv.forward(&parts[0], last, step)?)?;
        let y = self.scan(&x, ssm, step)?;
        self.output.forward(&swiglu(&parts[1], &y)?)
    }
}
