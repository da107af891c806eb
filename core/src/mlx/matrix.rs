//! A matrix of a checkpoint, dense or quantized.

use crate::{
    error::Result,
    mlx::{self, quantized::Quantized},
};
use mlx_rs::{Array, Dtype};

/// A matrix `[…, output, input]` as the checkpoint stores it.
pub enum Matrix {
    /// Floating point.
    Dense(Array),
    /// Quantized along the input.
    Quantized(Quantized),
}

/// The sizes of a matrix `[output, input]`.
#[derive(Clone, Copy)]
pub struct MatrixSizes {
    /// Number of outputs.
    pub output: i32,
    /// Number of inputs.
    pub input: i32,
}

/// The sizes of a stack of matrices `[experts, output, input]`.
#[derive(Clone, Copy)]
pub struct StackSizes {
    /// Number of matrices.
    pub experts: i32,
    /// Number of inputs of each.
    pub input: i32,
    /// Number of outputs of each.
    pub output: i32,
}

impl Matrix {
    /// The output rows from `start` to `stop` of each of `groups` equal groups.
    pub(crate) fn rows(&self, groups: i32, start: i32, stop: i32) -> Result<Self> {
        self.map(|a| cut(a, a.ndim() - 2, groups, start, stop))
    }

    /// Applies a function to all arrays; it must not change the input axis or the axis of experts.
    pub(crate) fn map(&self, change: impl Fn(&Array) -> Result<Array>) -> Result<Self> {
        Ok(match self {
            Matrix::Dense(weight) => Matrix::Dense(change(weight)?),
            Matrix::Quantized(matrix) => Matrix::Quantized(matrix.map(change)?),
        })
    }

    /// The sizes of a stack.
    pub(crate) fn stack_sizes(&self) -> StackSizes {
        match self {
            Matrix::Dense(weight) => {
                StackSizes { experts: weight.dim(0), input: weight.dim(-1), output: weight.dim(-2) }
            }
            Matrix::Quantized(Quantized { weight, scales, format, .. }) => StackSizes {
                experts: weight.dim(0),
                input: scales.dim(-1) * format.group,
                output: weight.dim(-2),
            },
        }
    }

    /// The experts from `start` to `stop` of a stack.
    pub(crate) fn experts(&self, start: i32, stop: i32) -> Result<Self> {
        let cut = |a: &Array| mlx::slice(a, 0, start, stop);
        let mut part = self.map(cut)?;
        if let Matrix::Quantized(part) = &mut part {
            part.global_scale = part.global_scale.as_ref().map(cut).transpose()?;
        }
        Ok(part)
    }

    /// One expert of a stack.
    pub(crate) fn expert(&self, i: i32) -> Result<Self> {
        let alone = |a: &Array| -> Result<Array> { Ok(a.squeeze_axes(&[0])?) };
        let mut part = self.experts(i, i + 1)?.map(alone)?;
        if let Matrix::Quantized(part) = &mut part {
            part.global_scale = part.global_scale.as_ref().map(alone).transpose()?;
        }
        Ok(part)
    }

    /// Prepares a stack of experts: on the CPU, MLX multiplies them in float32 only, and any other
    /// type would end the process.
    pub(crate) fn for_experts(self) -> Result<Self> {
        Ok(match self {
            Matrix::Dense(weight) if mlx::is_cpu()? => {
                Matrix::Dense(weight.as_dtype(Dtype::Float32)?)
            }
            matrix => matrix,
        })
    }
}

/// The elements from `start` to `stop` of each of the `groups` equal parts of an axis.
pub(crate) fn cut(a: &Array, axis: usize, groups: i32, start: i32, stop: i32) -> Result<Array> {
    if groups == 1 {
        return mlx::slice(a, axis, start, stop);
    }
    let (mut split, mut joined) = (a.shape().to_vec(), a.shape().to_vec());
    split[axis] /= groups;
    split.insert(axis, groups);
    joined[axis] = groups * (stop - start);
    Ok(mlx::slice(&a.reshape(&split)?, axis + 1, start, stop)?.reshape(&joined)?)
}
