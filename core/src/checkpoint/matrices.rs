//! Matrices as checkpoints store them: dense, in the formats of MLX, transposed, or in the formats of
//! other tools.

use crate::{
    checkpoint::{
        foreign::{MODEL_OPT, Shape, transposed},
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
        if self.is_transposed {
            return Scope { is_transposed: false, ..self.clone() }.transposed_matrix(shape);
        }
        match self.foreign_matrix(shape)? {
            Some(matrix) => Ok(matrix),
            None => self.own_matrix(shape),
        }
    }

    /// As [`Scope::matrix`], for rows of which the first half and the second are matrices of their
    /// own, such as gates and values.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn halves(&self, shape: &[i32]) -> Result<[Matrix; 2]> {
        let (stack, rows) = (&shape[..shape.len() - 2], shape[shape.len() - 2]);
        let each = [stack, &[2]].concat();
        let column = |factors: &Array, i| -> Result<Array> {
            Ok(mlx::slice(factors, stack.len(), i, i + 1)?.reshape(stack)?)
        };
        let mut factors = None;
        if self.shape(MODEL_OPT).is_some_and(|shape| shape == each) {
            let own = self.factor(MODEL_OPT, &each)?;
            // One stands for both until the rows are told apart.
            let (name, first) = (self.name(MODEL_OPT), column(&own, 0)?);
            self.store.unread.borrow_mut().insert(name, first);
            factors = Some(own);
        }
        let both = self.matrix(shape)?;
        let half = |i: i32| -> Result<Matrix> {
            let mut half = both.rows(1, i * (rows / 2), (i + 1) * (rows / 2))?;
            if let (Some(factors), Matrix::Quantized(half)) = (&factors, &mut half) {
                half.global_scale = Some(column(factors, i)?);
            }
            Ok(half)
        };
        Ok([half(0)?, half(1)?])
    }

    /// As MLX writes it: quantized if there are `scales`.
    fn own_matrix(&self, shape: &[i32]) -> Result<Matrix> {
        let named = self.store.quantization.of(&self.path);
        if !self.has("scales") {
            if let Some(Some(_)) = named {
                return Err(Error::MissingTensor(self.name("scales")));
            }
            return Ok(Matrix::Dense(self.take("weight", shape)?));
        }
        let contradiction =
            |reason: String| Error::Quantization { path: self.path.clone(), reason };
        let (rows, input) = shape.split_at(shape.len() - 1);
        let packed = |columns: i32| [rows, &[columns]].concat();
        let (weight, scales) = (self.take_any("weight")?, self.take_any("scales")?);
        let (columns, groups) = (weight.dim(-1), scales.dim(-1));
        if weight.dtype() != Dtype::Uint32 {
            let reason = format!("the weight holds {:?}, but there are scales", weight.dtype());
            return Err(contradiction(reason));
        }
        if weight.shape() != packed(columns) {
            return Err(self.misshaped("weight", &weight, shape));
        }
        if scales.shape() != packed(groups) || groups == 0 {
            return Err(self.misshaped("scales", &scales, &packed(groups)));
        }
        let format = Format {
            mode: Mode::Affine,
            bits: (i64::from(columns) * 32 / i64::from(input[0])) as i32,
            group: input[0] / groups,
        };
        let exact = i64::from(format.bits) * i64::from(input[0]) == i64::from(columns) * 32
            && format.group * groups == input[0];
        let is_float = scales.dtype() == Dtype::Uint8;
        if !is_float && !mlx::is_floating(&scales) {
            return Err(self.integers("scales", &scales));
        }
        let mode = match (is_float, format.bits, format.group) {
            (false, 2 | 3 | 4 | 5 | 6 | 8, 32 | 64 | 128) => Some(Mode::Affine),
            (true, 4, 32) => Some(Mode::Mxfp4),
            (true, 8, 32) => Some(Mode::Mxfp8),
            (true, 4, 16) => Some(Mode::Nvfp4),
            _ => None,
        };
        let Some(mode) = mode.filter(|_| exact) else {
            let reason = format!(
                "weight {:?} with {} scales {:?} is no format of MLX for {} inputs",
                weight.shape(),
                if is_float { "8-bit" } else { "wide" },
                scales.shape(),
                input[0]
            );
            return Err(contradiction(reason));
        };
        let format = Format { mode, ..format };
        match named {
            Some(None) => {
                return Err(contradiction("the config says false, but there are scales".into()));
            }
            Some(Some(said)) if said != format => {
                return Err(contradiction(format!(
                    "the config says {said:?}, the tensors {format:?}"
                )));
            }
            _ => {}
        }
        let global_scale = match self.has("global_scale") {
            false => None,
            true if mode == Mode::Nvfp4 => {
                // It is the largest weight; the largest scale times the largest element is 2688.
                let largest = self.factor("global_scale", &rows[..rows.len() - 1])?;
                Some(largest.divide(Array::from_f32(448.0 * 6.0))?)
            }
            true => return Err(contradiction("only nvfp4 has a global scale".into())),
        };
        let biases = match mode {
            Mode::Affine => Some(self.take("biases", &packed(groups))?),
            _ => None,
        };
        Ok(Matrix::Quantized(Quantized { weight, scales, biases, global_scale, format }))
    }

    /// The matrix `weight` here, stored as `[…, input, output]`.
    pub(crate) fn transposed_matrix(&self, shape: &[i32]) -> Result<Matrix> {
        let [stack @ .., output, input] = shape else { return self.matrix(shape) };
        let m = &Shape { stack, output: *output, input: *input };
        let pairs = m.of(&[input / 2, *output]);
        if self.dtype("weight") == Some(Dtype::Uint8)
            && self.shape("weight").is_some_and(|shape| shape == pairs)
        {
            let groups = self.groups(m, ("weight_scale", 1), 16)?;
            let weight = self.take_bytes("weight", &pairs)?;
            let scales = self.take_bytes("weight_scale", &m.of(&[groups, *output]))?;
            return self.pairs(
                m,
                transposed(&weight)?,
                transposed(&scales)?,
                ["weight_scale", MODEL_OPT],
            );
        }
        match self.matrix(&m.of(&[*input, *output]))? {
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
