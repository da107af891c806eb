//! Vector quantization ([van den Oord et al. 2017](https://arxiv.org/abs/1711.00937)) and its residual
//! form ([Zeghidour et al. 2021](https://arxiv.org/abs/2107.03312)).

use crate::{
    checkpoint::scope::Scope,
    error::Result,
    layers::audio::convolution::{Convolution, Kernel},
    mlx,
};
use mlx_rs::{Array, ops};

/// One stage of a residual quantizer.
pub trait Quantizer {
    /// `[batch, length, width]` to codes `[batch, frames]`.
    fn encode(&self, x: &Array) -> Result<Array>;
    /// Codes `[batch, frames]` to `[batch, length, width]`.
    fn decode(&self, codes: &Array) -> Result<Array>;
}

/// Stages that each quantize what the stages before have left over.
pub struct ResidualQuantizer<Q>(pub Vec<Q>);

impl<Q: Quantizer> ResidualQuantizer<Q> {
    /// `[batch, length, width]` to the codes of each stage, `[batch, frames]`.
    pub fn encode(&self, x: &Array) -> Result<Vec<Array>> {
        self.encode_first(x, self.0.len())
    }

    /// As [`ResidualQuantizer::encode`], with the first `count` stages.
    pub fn encode_first(&self, x: &Array, count: usize) -> Result<Vec<Array>> {
        let mut rest = x.clone();
        let encode = |stage: &Q| {
            let codes = stage.encode(&rest)?;
            rest = rest.subtract(stage.decode(&codes)?)?;
            Ok(codes)
        };
        self.0.iter().take(count).map(encode).collect()
    }

    /// The codes of the first stages to `[batch, length, width]`.
    pub fn decode(&self, codes: &[Array]) -> Result<Array> {
        let parts = self.0.iter().zip(codes).map(|(stage, codes)| stage.decode(codes));
        let sum = |sum: Option<Array>, part: Result<Array>| match sum {
            Some(sum) => Ok::<_, crate::Error>(Some(sum.add(part?)?)),
            None => part.map(Some),
        };
        let sum = parts.into_iter().try_fold(None, sum)?;
        sum.ok_or_else(|| crate::Error::option("codes", "no codebook is given"))
    }
}

/// The entry at the smallest Euclidean distance.
pub struct Codebook {
    /// `[entries, width]`.
    table: Array,
    /// What vectors are compared with, `[width, entries]`.
    targets: Array,
    /// The squared lengths of the targets, `[entries]`.
    lengths: Array,
}

impl Codebook {
    /// Compares with the entries `[entries, width]` themselves.
    pub fn new(table: Array) -> Result<Self> {
        let targets = table.clone();
        Self::with_targets(table, targets)
    }

    fn with_targets(table: Array, targets: Array) -> Result<Self> {
        let lengths = targets.square()?.sum_axis(-1, false)?;
        Ok(Codebook { table, targets: targets.t(), lengths })
    }

    fn nearest(&self, x: &Array) -> Result<Array> {
        let two = mlx::scalar(2.0, x.dtype())?;
        let distance = self.lengths.subtract(ops::matmul(x, &self.targets)?.multiply(two)?)?;
        Ok(ops::indexing::argmin_axis(&distance, -1, false)?)
    }
}

impl Quantizer for Codebook {
    fn encode(&self, x: &Array) -> Result<Array> {
        self.nearest(x)
    }

    fn decode(&self, codes: &Array) -> Result<Array> {
        Ok(self.table.take_axis(codes, 0)?)
    }
}

/// The entry at the smallest angle, in a space of few dimensions, once for `stride` steps
/// ([Kumar et al. 2023](https://arxiv.org/abs/2306.06546)).
pub struct FactorizedQuantizer {
    input: Convolution,
    codebook: Codebook,
    output: Convolution,
    stride: i32,
}

/// The sizes of a [`FactorizedQuantizer`].
#[derive(Clone, Copy, Debug)]
pub struct FactorizedSizes {
    /// Width of the sequence.
    pub width: i32,
    /// Width of the codebook.
    pub code_width: i32,
    /// Entries of the codebook.
    pub entries: i32,
    /// Steps for each code.
    pub stride: i32,
}

impl Scope {
    /// Reads `in_proj`, `codebook` and `out_proj`.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn factorized_quantizer(&self, sizes: FactorizedSizes) -> Result<FactorizedQuantizer> {
        let FactorizedSizes { width, code_width, entries, stride } = sizes;
        let table = self.at("codebook").tensor("weight", &[entries, code_width])?;
        let targets = unit(&table)?;
        Ok(FactorizedQuantizer {
            input: self.at("in_proj").convolution(Kernel::new(width, code_width, 1), 0)?,
            codebook: Codebook::with_targets(table, self.keep(targets))?,
            output: self.at("out_proj").convolution(Kernel::new(code_width, width, 1), 0)?,
            stride,
        })
    }
}

/// Vectors of length 1.
fn unit(x: &Array) -> Result<Array> {
    let length = x.square()?.sum_axis(-1, true)?.sqrt()?;
    Ok(x.divide(ops::maximum(&length, mlx::scalar(1e-12, x.dtype())?)?)?)
}

impl Quantizer for FactorizedQuantizer {
    fn encode(&self, x: &Array) -> Result<Array> {
        let mut x = x.clone();
        if self.stride > 1 {
            let frames = x.dim(1) / self.stride;
            x = x.reshape(&[x.dim(0), frames, self.stride, x.dim(2)])?.mean_axis(2, false)?;
        }
        self.codebook.nearest(&unit(&self.input.forward(&x)?)?)
    }

    fn decode(&self, codes: &Array) -> Result<Array> {
        let y = self.output.forward(&self.codebook.decode(codes)?)?;
        if self.stride == 1 {
            return Ok(y);
        }
        let (batch, frames, width) = (y.dim(0), y.dim(1), y.dim(2));
        let repeated = y.expand_dims(2)?;
        let repeated = ops::broadcast_to(&repeated, &[batch, frames, self.stride, width])?;
        Ok(repeated.reshape(&[batch, frames * self.stride, width])?)
    }
}
