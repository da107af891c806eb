//! Matrices as checkpoints store them: dense, in the formats of MLX, transposed, or in the formats of
//! other tools.

use crate::{
    checkpoint::{
        foreign::{Axis, FloatNames, MODEL_OPT, MatrixShape, transposed},
        scope::Scope,
    },
    error::{Error, Result},
    mlx::{
        self,
        matrix::Matrix,
        quantized::{Format, Mode, Quantized},
    },
};
use mlx_rs::{Array, Dtype, ops};

impl Scope {
    /// Stacks the matrices of experts.
    pub(crate) fn stack(&self, matrices: Vec<Matrix>) -> Result<Matrix> {
        let mixed = || Error::Quantization {
            path: self.name("experts"),
            reason: "experts of one layer have different formats".into(),
        };
        let stack = |arrays: Vec<Array>| ops::stack(&arrays, 0);
        let (mut dense, mut quantized) = (Vec::new(), Vec::new());
        for matrix in matrices {
            match matrix {
                Matrix::Dense(weight) => dense.push(weight),
                Matrix::Quantized(matrix) => quantized.push(matrix),
            }
        }
        let Some(format) = quantized.first().map(|matrix| matrix.format) else {
            return Ok(Matrix::Dense(stack(dense)?));
        };
        if !dense.is_empty() || quantized.iter().any(|matrix| matrix.format != format) {
            return Err(mixed());
        }
        let biases: Option<Vec<_>> = quantized.iter().map(|matrix| matrix.biases.clone()).collect();
        let scales = quantized.iter().map(|matrix| matrix.scales.clone()).collect();
        let factors: Vec<_> =
            quantized.iter().filter_map(|matrix| matrix.global_scale.clone()).collect();
        if !factors.is_empty() && factors.len() < quantized.len() {
            return Err(mixed());
        }
        let global_scale = (!factors.is_empty()).then(|| stack(factors)).transpose()?;
        Ok(Matrix::Quantized(Quantized {
            weight: stack(quantized.iter().map(|matrix| matrix.weight.clone()).collect())?,
            scales: stack(scales)?,
            biases: biases.map(stack).transpose()?,
            global_scale,
            format,
        }))
    }

    /// The matrix `weight` here, `[…, output, input]`, dense or quantized; the family
    /// [`Scope::keep_matrix`]s what it makes of it.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn matrix(&self, shape: &[i32]) -> Result<Matrix> {
        self.read_matrix(&MatrixShape::of(shape)?)
    }

    /// As [`Scope::matrix`], for rows of which the first half and the second are matrices of their
    /// own, such as gate and up projections. ModelOpt may give each half its own global scale.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn halves(&self, shape: &[i32]) -> Result<[Matrix; 2]> {
        let m = MatrixShape { has_halves: true, ..MatrixShape::of(shape)? };
        let (both, rows, axis) = (self.read_matrix(&m)?, m.output / 2, m.stack.len());
        let half = |i: i32| -> Result<Matrix> {
            let mut half = both.rows(1, i * rows, (i + 1) * rows)?;
            if let Matrix::Quantized(Quantized { global_scale: Some(scales), .. }) = &mut half
                && scales.ndim() > axis
            {
                *scales = mlx::slice(scales, axis, i, i + 1)?.reshape(m.stack)?;
            }
            Ok(half)
        };
        Ok([half(0)?, half(1)?])
    }

    fn read_matrix(&self, m: &MatrixShape) -> Result<Matrix> {
        self.recorded(m.elements(), || {
            if self.is_transposed {
                return Scope { is_transposed: false, ..self.clone() }.transposed_matrix(m);
            }
            match self.foreign_matrix(m)? {
                Some(matrix) => Ok(matrix),
                None => self.own_matrix(m),
            }
        })
    }

    /// A matrix as MLX stores it: quantized if there are `scales`.
    fn own_matrix(&self, m: &MatrixShape) -> Result<Matrix> {
        let stated = self.store.quantization.of(&self.path);
        if !self.has("scales") {
            if let Some(Some(_)) = stated {
                return Err(Error::MissingTensor(self.name("scales")));
            }
            return Ok(Matrix::Dense(self.take("weight", &m.with(&[m.output, m.input]))?));
        }
        let (weight, scales) = (self.take_any("weight")?, self.take_any("scales")?);
        let format = self.own_format(m, &weight, &scales)?;
        match stated {
            Some(None) => {
                return Err(self.contradiction("the config says false, but there are scales"));
            }
            Some(Some(stated)) if stated != format => {
                let reason = format!("the config says {stated:?}, the tensors {format:?}");
                return Err(self.contradiction(reason));
            }
            _ => {}
        }
        let global_scale = match self.has("global_scale") {
            false => None,
            true if format.mode == Mode::Nvfp4 => {
                // The tensor holds the largest weight. The largest scale is 448, the largest element 6.
                let largest = self.factor("global_scale", m.stack)?;
                Some(largest.divide(Array::from_f32(448.0 * 6.0))?)
            }
            true => return Err(self.contradiction("only nvfp4 has a global scale")),
        };
        let biases = match format.mode {
            Mode::Affine => Some(self.take("biases", scales.shape())?),
            _ => None,
        };
        Ok(Matrix::Quantized(Quantized { weight, scales, biases, global_scale, format }))
    }

    /// The format of MLX that follows from the shapes and types of packed integers and their scales.
    fn own_format(&self, m: &MatrixShape, weight: &Array, scales: &Array) -> Result<Format> {
        let (columns, groups) = (weight.dim(-1), scales.dim(-1));
        if weight.dtype() != Dtype::Uint32 {
            let reason = format!("the weight holds {:?}, but there are scales", weight.dtype());
            return Err(self.contradiction(reason));
        }
        if weight.shape() != m.with(&[m.output, columns]) {
            return Err(self.misshaped("weight", weight, &m.with(&[m.output, m.input])));
        }
        let expected = m.with(&[m.output, groups]);
        if scales.shape() != expected || groups == 0 {
            return Err(self.misshaped("scales", scales, &expected));
        }
        let has_byte_scales = scales.dtype() == Dtype::Uint8;
        if !has_byte_scales && !mlx::is_floating(scales) {
            return Err(self.integers("scales", scales));
        }
        let (packed, input) = (i64::from(columns) * 32, i64::from(m.input));
        let (bits, group) = ((packed / input) as i32, m.input / groups);
        let is_exact = i64::from(bits) * input == packed && group * groups == m.input;
        let mode = match (has_byte_scales, bits, group) {
            (false, 2 | 3 | 4 | 5 | 6 | 8, 32 | 64 | 128) => Some(Mode::Affine),
            (true, 4, 32) => Some(Mode::Mxfp4),
            (true, 8, 32) => Some(Mode::Mxfp8),
            (true, 4, 16) => Some(Mode::Nvfp4),
            _ => None,
        };
        let format = mode.filter(|_| is_exact).map(|mode| Format { mode, bits, group });
        format.ok_or_else(|| {
            let (weight, kind) = (weight.shape(), if has_byte_scales { "8-bit" } else { "wide" });
            self.contradiction(format!(
                "weight {weight:?} with {kind} scales {:?} is no format of MLX for {input} inputs",
                scales.shape()
            ))
        })
    }

    fn contradiction(&self, reason: impl Into<String>) -> Error {
        Error::Quantization { path: self.path.clone(), reason: reason.into() }
    }

    /// The matrix `weight` here, stored as `[…, input, output]`.
    fn transposed_matrix(&self, m: &MatrixShape) -> Result<Matrix> {
        let pairs = m.with(&[m.input / 2, m.output]);
        if self.dtype("weight") == Some(Dtype::Uint8)
            && self.shape("weight").is_some_and(|shape| shape == pairs)
        {
            let groups = self.groups(m, Axis { name: "weight_scale", from_last: 1 }, 16)?;
            let bytes = transposed(&self.take_bytes("weight", &pairs)?)?;
            let scales = self.take_bytes("weight_scale", &m.with(&[groups, m.output]))?;
            let names = FloatNames { scales: "weight_scale", global_scale: MODEL_OPT };
            return self.pack_four_bit_floats(m, bytes, transposed(&scales)?, names);
        }
        match self.matrix(&m.with(&[m.input, m.output]))? {
            Matrix::Dense(weight) => Ok(Matrix::Dense(weight.swap_axes(-1, -2)?)),
            Matrix::Quantized(_) => {
                Err(self.refuse("weight", "groups of outputs, where MLX has groups of inputs"))
            }
        }
    }

    /// As [`Scope::keep`], for the arrays of a matrix.
    pub fn keep_matrix(&self, matrix: Matrix) -> Matrix {
        match &matrix {
            Matrix::Dense(weight) => drop(self.keep(weight.clone())),
            Matrix::Quantized(Quantized { weight, scales, biases, global_scale, .. }) => {
                let parts = [Some(weight), Some(scales), biases.as_ref(), global_scale.as_ref()];
                for part in parts.into_iter().flatten() {
                    self.keep(part.clone());
                }
            }
        }
        matrix
    }
}
