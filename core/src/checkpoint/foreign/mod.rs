//! Matrices in the quantization formats of other tools than MLX: AWQ, GPTQ, compressed-tensors,
//! NVIDIA's ModelOpt, ternary weights, and 8-bit floats with scales.
//!
//! Integers and 4-bit floats become formats of MLX that hold the same numbers. 8-bit floats become
//! bfloat16, as in the reference, unless their scales are powers of two, which MLX has too. Each
//! matrix is converted on its own and lazily, so that no model is in memory twice.

mod floats;
mod integers;

pub(super) use integers::transposed;

use crate::{
    checkpoint::scope::Scope,
    error::{Error, Result},
    mlx::matrix::Matrix,
};
use mlx_rs::Dtype;

/// The names of the global scale of a matrix of 4-bit floats. The elements are divided by that of
/// compressed-tensors, and multiplied by that of ModelOpt.
const COMPRESSED_TENSORS: &str = "weight_global_scale";
pub(crate) const MODEL_OPT: &str = "weight_scale_2";

/// The shape of a matrix, or of a stack of matrices.
pub(in crate::checkpoint) struct MatrixShape<'a> {
    pub stack: &'a [i32],
    pub output: i32,
    pub input: i32,
    /// Whether each half of the outputs may have its own global scale.
    pub has_halves: bool,
}

/// An axis of a tensor, counted from the last one.
pub(in crate::checkpoint) struct Axis<'a> {
    pub name: &'a str,
    pub from_last: usize,
}

/// The tensors beside 4-bit floats.
pub(in crate::checkpoint) struct FloatNames<'a> {
    pub scales: &'a str,
    pub global_scale: &'a str,
}

impl<'a> MatrixShape<'a> {
    /// From `[…, output, input]`.
    pub fn of(shape: &'a [i32]) -> Result<Self> {
        let [stack @ .., output, input] = shape else {
            return Err(Error::Internal(format!("{shape:?} is not the shape of a matrix")));
        };
        Ok(MatrixShape { stack, output: *output, input: *input, has_halves: false })
    }

    /// The shape of the same stack of other matrices.
    pub fn with(&self, matrix: &[i32]) -> Vec<i32> {
        [self.stack, matrix].concat()
    }

    pub fn elements(&self) -> u64 {
        self.with(&[self.output, self.input]).iter().map(|size| *size as u64).product()
    }
}

impl Scope {
    /// The matrix `weight` here, if it is in the format of another tool.
    pub(in crate::checkpoint) fn foreign_matrix(&self, m: &MatrixShape) -> Result<Option<Matrix>> {
        let scales = ["weight_scale_inv", "weight_scale", "scale"];
        let scale = scales.into_iter().find(|name| self.has(name));
        let is_bytes = |name| self.dtype(name) == Some(Dtype::Uint8);
        let matrix = if self.has("qweight") {
            self.packed_outputs(m)?
        } else if self.has("blocks") {
            self.four_bit_floats(m, "blocks", "scales")?
        } else if is_bytes("weight_packed") {
            self.four_bit_floats(m, "weight_packed", "weight_scale")?
        } else if self.has("weight_packed") {
            self.packed_integers(m)?
        } else if scale == Some("scale") && self.dtype("weight") == Some(Dtype::Int8) {
            self.four_bit_floats(m, "weight", "scale")?
        } else if let Some(scale) = scale.filter(|_| is_bytes("weight")) {
            match self.shape("weight").as_deref() {
                Some([.., columns]) if 2 * columns == m.input => {
                    self.four_bit_floats(m, "weight", scale)?
                }
                Some([.., rows, _]) if 4 * rows == m.output => self.ternary(m)?,
                _ => self.eight_bit_floats(m, scale)?,
            }
        } else {
            return Ok(None);
        };
        Ok(Some(matrix))
    }

    pub(in crate::checkpoint) fn refuse(&self, name: &str, reason: impl Into<String>) -> Error {
        Error::Quantization { path: self.full_name(name), reason: reason.into() }
    }

    /// How many groups of inputs have scales of their own: the length of an axis of the scales. The
    /// size of a group must be a multiple of `unit`.
    pub(in crate::checkpoint) fn groups(
        &self,
        m: &MatrixShape,
        axis: Axis,
        unit: i32,
    ) -> Result<i32> {
        let scales = axis.name;
        let shape = self.shape(scales).ok_or(Error::MissingTensor(self.full_name(scales)))?;
        let groups = shape.iter().rev().nth(axis.from_last).copied().unwrap_or(0);
        if groups > 0 && m.input >= groups && m.input % (groups * unit) == 0 {
            return Ok(groups);
        }
        let inputs = m.input;
        let reason =
            format!("{shape:?} scales do not divide {inputs} inputs into groups of {unit} or more");
        Err(self.refuse(scales, reason))
    }
}
