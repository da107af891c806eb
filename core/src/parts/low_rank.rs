//! What fine-tuning adds to a matrix: a product of two of low rank
//! ([Hu et al. 2021](https://arxiv.org/abs/2106.09685)), and with it other lengths of its rows
//! ([Liu et al. 2024](https://arxiv.org/abs/2402.09353)). The matrix itself stays as it is, so it may
//! be quantized.

use super::linear::{Matrix, cut};
use crate::{error::Result, mlx};
use mlx_rs::{Array, Dtype, ops};

/// An addition to a matrix `[…, output, input]`.
#[derive(Clone)]
pub(crate) struct LowRank {
    /// `[…, input, rank]`.
    pub a: Array,
    /// `[…, rank, output]`.
    pub b: Array,
    pub scale: f32,
    /// By what the rows of the sum are multiplied, `[output]`.
    pub stretch: Option<Array>,
}

impl LowRank {
    /// The additions to the matrices of a stack.
    pub fn stack(parts: &[LowRank]) -> Result<Self> {
        let stack = |factor: fn(&LowRank) -> &Array| {
            ops::stack(&parts.iter().map(factor).collect::<Vec<_>>(), 0)
        };
        let scale = parts.first().map_or(1.0, |part| part.scale);
        Ok(LowRank { a: stack(|part| &part.a)?, b: stack(|part| &part.b)?, scale, stretch: None })
    }

    /// With rows of these lengths, `[output]`, in what is added to `matrix`.
    pub fn with_lengths(self, matrix: &Matrix, lengths: &Array) -> Result<Self> {
        let dense = match matrix {
            Matrix::Dense(weight) => weight.clone(),
            Matrix::Quantized(weight) => weight.dequantize(None)?,
        };
        let sum = dense.add(self.scaled(&self.b)?.t().matmul(self.a.t())?)?;
        let stretch = lengths.divide(sum.square()?.sum_axis(-1, false)?.sqrt()?)?;
        Ok(LowRank { stretch: Some(stretch), ..self })
    }

    /// What is added to the rows from `start` to `stop` of each of `groups`.
    pub fn rows(&self, groups: i32, start: i32, stop: i32) -> Result<Self> {
        let stretch = self.stretch.as_ref().map(|stretch| cut(stretch, 0, groups, start, stop));
        let b = cut(&self.b, self.b.ndim() - 1, groups, start, stop)?;
        Ok(LowRank { b, stretch: stretch.transpose()?, ..self.clone() })
    }

    /// As [`Matrix::for_experts`].
    pub fn for_experts(self) -> Result<Self> {
        if !mlx::is_cpu()? {
            return Ok(self);
        }
        let (a, b) = (self.a.as_dtype(Dtype::Float32)?, self.b.as_dtype(Dtype::Float32)?);
        Ok(LowRank { a, b, ..self })
    }

    /// To `y`, which the matrix makes of `x`.
    pub fn add(&self, x: &Array, y: &Array) -> Result<Array> {
        let z = x.matmul(&self.a)?.matmul(&self.b)?;
        let sum = y.add(self.scaled(&z)?.as_dtype(x.dtype())?)?;
        let Some(stretch) = &self.stretch else { return Ok(sum) };
        Ok(stretch.as_dtype(x.dtype())?.multiply(sum)?)
    }

    /// To `y`, which are the rows `ids` of the matrix.
    pub fn add_to_rows(&self, ids: &Array, y: &Array) -> Result<Array> {
        let rows = self.b.t().take_axis(ids, 0)?;
        let z = rows.matmul(self.a.t())?;
        let sum = y.add(self.scaled(&z)?.as_dtype(y.dtype())?)?;
        let Some(stretch) = &self.stretch else { return Ok(sum) };
        let stretch = stretch.take_axis(ids, 0)?.expand_dims(-1)?;
        Ok(stretch.as_dtype(y.dtype())?.multiply(sum)?)
    }

    /// To `y`, which the matrices `ids` of a stack make of `x`.
    pub fn add_by_expert(&self, x: &Array, y: &Array, ids: &Array, sorted: bool) -> Result<Array> {
        let through = |x: &Array, w: &Array| ops::gather_mm(x, w, None::<&Array>, ids, sorted);
        let z = through(&through(x, &self.a)?, &self.b)?;
        Ok(y.add(self.scaled(&z)?.as_dtype(x.dtype())?)?)
    }

    fn scaled(&self, z: &Array) -> Result<Array> {
        Ok(z.multiply(mlx::scalar(self.scale, z.dtype())?)?)
    }
}
