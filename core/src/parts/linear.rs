//! Matrices of a checkpoint, dense or quantized, and what is done with them: projections, token
//! tables, stacks of experts.

use super::low_rank::LowRank;
use crate::{
    error::Result,
    mlx::{self, Quantized},
};
use mlx_rs::{Array, Dtype, ops};

/// A matrix `[…, output, input]` as the checkpoint stores it.
pub enum Matrix {
    /// Floating point.
    Dense(Array),
    /// Quantized along the input.
    Quantized(Quantized),
}

impl Matrix {
    /// The rows, which are outputs, from `start` to `stop` of each of `groups`.
    pub(crate) fn rows(&self, groups: i32, start: i32, stop: i32) -> Result<Self> {
        self.map(|a| cut(a, a.ndim() - 2, groups, start, stop))
    }

    /// The same done to all arrays, for what leaves the input axis and that of experts alone.
    pub(crate) fn map(&self, change: impl Fn(&Array) -> Result<Array>) -> Result<Self> {
        Ok(match self {
            Matrix::Dense(weight) => Matrix::Dense(change(weight)?),
            Matrix::Quantized(matrix) => Matrix::Quantized(matrix.map(change)?),
        })
    }

    /// Of a stack, how many matrices there are, their inputs and their outputs.
    pub(crate) fn sizes(&self) -> [i32; 3] {
        match self {
            Matrix::Dense(weight) => [weight.dim(0), weight.dim(-1), weight.dim(-2)],
            Matrix::Quantized(Quantized { weight, scales, format, .. }) => {
                [weight.dim(0), scales.dim(-1) * format.group, weight.dim(-2)]
            }
        }
    }

    /// The matrices of the experts from `start` to `stop`, of a stack.
    pub(crate) fn experts(&self, start: i32, stop: i32) -> Result<Self> {
        let cut = |a: &Array| mlx::slice(a, 0, start, stop);
        let mut part = self.map(cut)?;
        if let Matrix::Quantized(part) = &mut part {
            part.global_scale = part.global_scale.as_ref().map(cut).transpose()?;
        }
        Ok(part)
    }

    /// The matrix of one expert, of a stack.
    pub(crate) fn expert(&self, i: i32) -> Result<Self> {
        let alone = |a: &Array| -> Result<Array> { Ok(a.squeeze_axes(&[0])?) };
        let mut part = self.experts(i, i + 1)?.map(alone)?;
        if let Matrix::Quantized(part) = &mut part {
            part.global_scale = part.global_scale.as_ref().map(alone).transpose()?;
        }
        Ok(part)
    }

    /// As experts, which MLX multiplies on the CPU in single precision only; anything else would
    /// end the process.
    pub(crate) fn for_experts(self) -> Result<Self> {
        Ok(match self {
            Matrix::Dense(weight) if mlx::is_cpu()? => {
                Matrix::Dense(weight.as_dtype(Dtype::Float32)?)
            }
            matrix => matrix,
        })
    }
}

/// What stands from `start` to `stop` in each of the `groups` that an axis consists of.
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

/// `x · weightᵀ + bias`, and what an adapter adds to that.
pub struct Linear {
    weight: Matrix,
    bias: Option<Array>,
    added: Option<LowRank>,
}

impl Linear {
    /// Dense weights are turned once, not at every call.
    pub(crate) fn new(weight: Matrix, bias: Option<Array>) -> Self {
        let weight = match weight {
            Matrix::Dense(weight) => Matrix::Dense(weight.t()),
            quantized => quantized,
        };
        Linear { weight, bias, added: None }
    }

    pub(crate) fn adapted(self, added: Option<LowRank>) -> Self {
        Linear { added, ..self }
    }

    /// `[…, input]` to `[…, output]`.
    pub(crate) fn forward(&self, x: &Array) -> Result<Array> {
        match (&self.added, &self.bias) {
            (None, bias) => self.multiply(x, bias.as_ref()),
            // Lengths are those of the rows alone.
            (Some(added), Some(bias)) if added.stretch.is_some() => {
                Ok(added.add(x, &self.multiply(x, None)?)?.add(bias)?)
            }
            (Some(added), bias) => added.add(x, &self.multiply(x, bias.as_ref())?),
        }
    }

    fn multiply(&self, x: &Array, bias: Option<&Array>) -> Result<Array> {
        Ok(match (&self.weight, bias) {
            (Matrix::Dense(weight), None) => ops::matmul(x, weight)?,
            (Matrix::Dense(weight), Some(bias)) => ops::addmm(bias, x, weight, None, None)?,
            (Matrix::Quantized(weight), None) => weight.matmul(x)?,
            (Matrix::Quantized(weight), Some(bias)) => weight.matmul(x)?.add(bias)?,
        })
    }
}

/// A table `[vocabulary, width]` that can also be read backwards, as a tied output head.
pub struct Embedding {
    table: Matrix,
    head: Linear,
    added: Option<LowRank>,
}

impl Embedding {
    pub(crate) fn new(table: Matrix) -> Self {
        let head = Linear::new(
            match &table {
                Matrix::Dense(table) => Matrix::Dense(table.clone()),
                Matrix::Quantized(table) => Matrix::Quantized(table.clone()),
            },
            None,
        );
        Embedding { table, head, added: None }
    }

    /// With what an adapter adds to the table, and to that as a head.
    pub(crate) fn adapted(self, [added, to_head]: [Option<LowRank>; 2]) -> Self {
        Embedding { table: self.table, head: self.head.adapted(to_head), added }
    }

    pub(crate) fn vocabulary(&self) -> u32 {
        match &self.table {
            Matrix::Dense(table) => table.dim(0) as u32,
            Matrix::Quantized(table) => table.weight.dim(0) as u32,
        }
    }

    /// Token ids `[…]` to rows `[…, width]`.
    pub(crate) fn lookup(&self, ids: &Array) -> Result<Array> {
        let rows = self.rows(ids)?;
        match &self.added {
            Some(added) => added.add_to_rows(ids, &rows),
            None => Ok(rows),
        }
    }

    fn rows(&self, ids: &Array) -> Result<Array> {
        let rows = |table: &Array| table.take_axis(ids, 0);
        match &self.table {
            Matrix::Dense(table) => Ok(rows(table)?),
            Matrix::Quantized(table) => {
                // Affine scales carry the precision of the model; the others are bytes.
                let dtype = match table.scales.dtype() {
                    Dtype::Uint8 => None,
                    dtype => Some(dtype),
                };
                let rows = Quantized {
                    weight: rows(&table.weight)?,
                    scales: rows(&table.scales)?,
                    biases: table.biases.as_ref().map(rows).transpose()?,
                    global_scale: table.global_scale.clone(),
                    format: table.format,
                };
                rows.dequantize(dtype)
            }
        }
    }

    /// `[…, width]` to logits `[…, vocabulary]`.
    pub(crate) fn logits(&self, h: &Array) -> Result<Array> {
        self.head.forward(h)
    }
}

/// The same projection of every expert, `[experts, output, input]`.
pub struct Experts {
    weight: Matrix,
    bias: Option<Array>,
    added: Option<LowRank>,
}

impl Experts {
    pub(crate) fn new(weight: Matrix, bias: Option<Array>) -> Self {
        let weight = match weight {
            Matrix::Dense(weight) => Matrix::Dense(weight.swap_axes(-1, -2).unwrap_or(weight)),
            quantized => quantized,
        };
        Experts { weight, bias, added: None }
    }

    pub(crate) fn adapted(self, added: Option<LowRank>) -> Self {
        Experts { added, ..self }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> i32 {
        match &self.weight {
            Matrix::Dense(weight) => weight.dim(0),
            Matrix::Quantized(weight) => weight.weight.dim(0),
        }
    }

    /// `[…, 1, input]` through the experts `ids` `[…]`, to `[…, 1, output]`; `sorted` says that the
    /// ids never decrease.
    pub(crate) fn forward(&self, x: &Array, ids: &Array, sorted: bool) -> Result<Array> {
        let y = match &self.weight {
            Matrix::Dense(weight) => {
                let wide = x.as_dtype(weight.dtype())?;
                ops::gather_mm(wide, weight, None::<&Array>, ids, sorted)?.as_dtype(x.dtype())?
            }
            Matrix::Quantized(weight) => weight.gather_matmul(x, ids, sorted)?,
        };
        let y = match &self.bias {
            Some(bias) => y.add(bias.take_axis(ids, 0)?.expand_dims(-2)?)?,
            None => y,
        };
        match &self.added {
            Some(added) => added.add_by_expert(x, &y, ids, sorted),
            None => Ok(y),
        }
    }
}
