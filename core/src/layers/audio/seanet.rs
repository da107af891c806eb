//! SEANet ([Tagliasacchi et al. 2020](https://arxiv.org/abs/2009.02095)): convolutions that pad by
//! themselves, to the left alone where they are causal, and residual units of them. Follows `EncodecModel`
//! of transformers.

use crate::{
    checkpoint::scope::Scope,
    error::{Error, Result},
    layers::{
        algebra::{Block, Layer, Map},
        audio::{
            convolution::{Convolution, Kernel, TransposedConvolution},
            sequence::Sequence,
        },
        cache_plan::CachePlan,
        state::Recurrent,
        step::Step,
    },
    mlx,
};
use mlx_rs::{Array, ops};
use serde::Deserialize;

/// What stands before the beginning and after the end of a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Edge {
    /// Zeros.
    #[serde(alias = "zero")]
    Constant,
    /// The sequence mirrored at its ends.
    #[default]
    Reflect,
    /// The first and the last step.
    Replicate,
}

/// How the convolutions of a SEANet pad and normalise.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Whether no step depends on later ones.
    pub is_causal: bool,
    /// What is padded with.
    pub edge: Edge,
    /// Whether a norm over time and channels follows each convolution.
    pub has_norm: bool,
    /// The share of what a causal transposed convolution has too much that is cut on the right.
    pub trim_right: f32,
}

/// A convolution that pads by itself. A causal one of stride 1 continues a stream.
pub struct SeanetConv {
    conv: Convolution,
    norm: Option<TimeNorm>,
    style: Style,
}

impl Scope {
    /// Reads `conv`, and `norm` where the style has one.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn seanet_conv(&self, kernel: Kernel, style: Style) -> Result<SeanetConv> {
        let norm = style.has_norm.then(|| TimeNorm::read(self, kernel.output)).transpose()?;
        Ok(SeanetConv { conv: self.at("conv").convolution(kernel, 0)?, norm, style })
    }

    /// Reads the transposed `conv`, and `norm` where the style has one.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn seanet_up(&self, kernel: Kernel, style: Style) -> Result<SeanetUp> {
        let norm = style.has_norm.then(|| TimeNorm::read(self, kernel.output)).transpose()?;
        Ok(SeanetUp { conv: self.at("conv").transposed_convolution(kernel, 0, 0)?, norm, style })
    }
}

impl Layer for SeanetConv {
    type State = Recurrent;

    fn state(&self, _: &CachePlan) -> Recurrent {
        Recurrent::default()
    }

    fn forward(&self, x: &Array, last: &mut Recurrent, _: &Step) -> Result<Array> {
        let kernel = &self.conv.kernel;
        let total = kernel.span() - kernel.stride;
        // The last window is whole.
        let extra = (-x.dim(1)).rem_euclid(kernel.stride);
        let padded = if self.style.is_causal {
            let (whole, left) = match last.take() {
                Some(before) => (ops::concatenate(&[&before, x], 1)?, 0),
                None => (x.clone(), total),
            };
            let padded = pad(&whole, left, extra, self.style.edge)?;
            let end = padded.dim(1) - extra;
            if total > 0 {
                // A slice keeps all of a long pass in memory.
                last.set(mlx::slice(&padded, 1, end - total, end)?.contiguous()?);
            }
            padded
        } else {
            let right = total / 2;
            pad(x, total - right, right + extra, self.style.edge)?
        };
        let y = self.conv.forward(&padded)?;
        self.norm.as_ref().map_or(Ok(y.clone()), |norm| norm.forward(&y))
    }
}

/// `x` with steps before and after it.
pub fn pad(x: &Array, left: i32, right: i32, edge: Edge) -> Result<Array> {
    let width = [(0, 0), (left, right), (0, 0)];
    if left == 0 && right == 0 {
        return Ok(x.clone());
    }
    match edge {
        Edge::Constant => Ok(ops::pad(x, &width[..], None, None)?),
        Edge::Replicate => Ok(ops::pad(x, &width[..], None, ops::PadMode::Edge)?),
        Edge::Reflect => {
            // A sequence that is too short to be mirrored is lengthened by zeros, which are cut again.
            let missing = (left.max(right) + 1 - x.dim(1)).max(0);
            let x = pad(x, 0, missing, Edge::Constant)?;
            let length = x.dim(1);
            let mirrored: Vec<i32> = (-left..length + right)
                .map(|i| {
                    if i < 0 {
                        -i
                    } else if i >= length {
                        2 * (length - 1) - i
                    } else {
                        i
                    }
                })
                .collect();
            let kept = mirrored.len() as i32 - missing;
            let mirrored = Array::from_slice(&mirrored[..kept as usize], &[kept]);
            Ok(x.take_axis(mirrored, 1)?)
        }
    }
}

/// A transposed convolution that cuts off what it has too much. A causal one continues a stream.
pub struct SeanetUp {
    conv: TransposedConvolution,
    norm: Option<TimeNorm>,
    style: Style,
}

impl Layer for SeanetUp {
    type State = Recurrent;

    fn state(&self, _: &CachePlan) -> Recurrent {
        Recurrent::default()
    }

    fn forward(&self, x: &Array, last: &mut Recurrent, _: &Step) -> Result<Array> {
        let kernel = &self.conv.kernel;
        let total = kernel.size - kernel.stride;
        let mut y = self.conv.without_bias(x)?;
        let right = match self.style.is_causal {
            true => (total as f32 * self.style.trim_right).ceil() as i32,
            false => total / 2,
        };
        if right == total && total > 0 {
            // What this pass adds to the first steps of the next one.
            let (start, end) = (y.dim(1) - total, y.dim(1));
            if let Some(tail) = last.take() {
                let tail = pad(&tail, 0, start, Edge::Constant)?;
                y = y.add(tail)?;
            }
            last.set(mlx::slice(&y, 1, start, end)?.contiguous()?);
        }
        let mut y = self.conv.add_bias(y)?;
        if let Some(norm) = &self.norm {
            y = norm.forward(&y)?;
        }
        mlx::slice(&y, 1, total - right, y.dim(1) - right)
    }
}

/// A norm over all steps and channels of a sequence.
struct TimeNorm {
    weight: Array,
    bias: Array,
}

impl TimeNorm {
    fn read(w: &Scope, channels: i32) -> Result<Self> {
        let w = w.at("norm");
        let weight = w.tensor("weight", &[channels])?;
        Ok(TimeNorm { weight, bias: w.tensor("bias", &[channels])? })
    }

    fn forward(&self, x: &Array) -> Result<Array> {
        let (batch, length, channels) = (x.dim(0), x.dim(1), x.dim(2));
        let flat = x.reshape(&[batch, length * channels])?;
        let y = mlx_rs::fast::layer_norm(flat, None, None, 1e-5)?;
        let y = y.reshape(&[batch, length, channels])?;
        Ok(y.multiply(&self.weight)?.add(&self.bias)?)
    }
}

/// ELU ([Clevert et al. 2015](https://arxiv.org/abs/1511.07289)): `x`, or `e^x - 1` below 0.
pub fn elu(x: &Array) -> Result<Array> {
    let zero = mlx::scalar(0.0, x.dtype())?;
    let below = ops::expm1(&ops::minimum(x, &zero)?)?;
    Ok(ops::select(&x.gt(&zero)?, x, below)?)
}

/// ELU as a layer.
pub fn elu_block() -> Block {
    Block::new(Map(elu))
}

/// `shortcut(x) + branch(x)`.
pub struct ResidualUnit {
    branch: Sequence,
    shortcut: Sequence,
}

impl ResidualUnit {
    /// Reads the unit: ELU, a dilated convolution to a part of the channels, ELU, and one back.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn read(
        w: &Scope,
        first: Kernel,
        second: Kernel,
        has_shortcut: bool,
        style: Style,
    ) -> Result<Self> {
        if first.output < 1 {
            return Err(Error::config("compress", "leaves no channel"));
        }
        let conv = |name: &str, kernel| w.at(name).seanet_conv(kernel, style).map(Block::new);
        let branch =
            vec![elu_block(), conv("block.1", first)?, elu_block(), conv("block.3", second)?];
        let same = Kernel { size: 1, dilation: 1, output: first.input, ..first };
        let shortcut = has_shortcut.then(|| conv("shortcut", same)).transpose()?;
        Ok(ResidualUnit {
            branch: Sequence(branch),
            shortcut: Sequence(shortcut.into_iter().collect()),
        })
    }
}

impl Layer for ResidualUnit {
    type State = (<Sequence as Layer>::State, <Sequence as Layer>::State);

    fn state(&self, plan: &CachePlan) -> Self::State {
        (self.shortcut.state(plan), self.branch.state(plan))
    }

    fn forward(&self, x: &Array, state: &mut Self::State, step: &Step) -> Result<Array> {
        let shortcut = self.shortcut.forward(x, &mut state.0, step)?;
        Ok(shortcut.add(self.branch.forward(x, &mut state.1, step)?)?)
    }
}
