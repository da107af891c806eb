//! Floats of 4 and of 8 bits with scales: compressed-tensors, ModelOpt, block scales.

use super::{Axis, COMPRESSED_TENSORS, FloatNames, MODEL_OPT, MatrixShape, integers::repeat};
use crate::{
    checkpoint::{quantization::Block, scope::Scope},
    error::Result,
    mlx::{
        self,
        matrix::Matrix,
        quantized::{Format, Mode, Quantized},
    },
};
use mlx_rs::{Array, Dtype, ops};

impl Scope {
    /// Pairs of 4-bit floats with 8-bit scales: mxfp4, and nvfp4 with a global scale.
    pub(super) fn four_bit_floats(
        &self,
        m: &MatrixShape,
        name: &str,
        scale: &str,
    ) -> Result<Matrix> {
        let groups = self.groups(m, Axis { name: scale, from_last: 0 }, 16)?;
        let shape = m.with(&[m.output, m.input / 2]);
        let bytes = match name {
            "blocks" => {
                let blocks = m.with(&[m.output, groups, m.input / groups / 2]);
                self.take_bytes(name, &blocks)?.reshape(&shape)?
            }
            // Some tools give every byte a signed type.
            _ if self.dtype(name) == Some(Dtype::Int8) => {
                self.take_as(name, &shape, Dtype::Int8)?.view_dtype(Dtype::Uint8)?
            }
            _ => self.take_bytes(name, &shape)?,
        };
        let scales = self.take_bytes(scale, &m.with(&[m.output, groups]))?;
        let global_scale = if name == "weight_packed" { COMPRESSED_TENSORS } else { MODEL_OPT };
        self.pack_four_bit_floats(m, bytes, scales, FloatNames { scales: scale, global_scale })
    }

    /// A matrix of pairs `[…, output, input / 2]` of 4-bit floats and scales `[…, output, groups]`.
    pub(in crate::checkpoint) fn pack_four_bit_floats(
        &self,
        m: &MatrixShape,
        bytes: Array,
        scales: Array,
        names: FloatNames,
    ) -> Result<Matrix> {
        let format = match m.input / scales.dim(-1) {
            16 => Format { mode: Mode::Nvfp4, bits: 4, group: 16 },
            32 => Format { mode: Mode::Mxfp4, bits: 4, group: 32 },
            group => {
                let reason = format!("4-bit floats in groups of {group} are no format of MLX");
                return Err(self.refuse(names.scales, reason));
            }
        };
        let global_scale = match format.mode {
            Mode::Mxfp4 => None,
            _ if names.global_scale == COMPRESSED_TENSORS => {
                let divisor = self.factor(COMPRESSED_TENSORS, m.stack)?;
                Some(Array::from_f32(1.0).divide(divisor)?)
            }
            _ => {
                let halves = m.with(&[]).into_iter().chain([2]).collect::<Vec<_>>();
                let has_two = m.has_halves && self.shape(MODEL_OPT).as_ref() == Some(&halves);
                Some(self.factor(MODEL_OPT, if has_two { &halves } else { m.stack })?)
            }
        };
        let weight = bytes.view_dtype(Dtype::Uint32)?;
        Ok(Matrix::Quantized(Quantized { weight, scales, biases: None, global_scale, format }))
    }

    /// A factor of a matrix as `[]`, or of each matrix of a stack as `[stack]`, in float32; the file
    /// may have one for all of them.
    pub(crate) fn factor(&self, name: &str, stack: &[i32]) -> Result<Array> {
        let tensor = self.take_any(name)?;
        let ones = tensor.shape().len().saturating_sub(stack.len());
        if tensor.size() != 1 && tensor.shape() != [stack, &vec![1; ones]].concat() {
            return Err(self.misshaped(name, &tensor, stack));
        }
        if !mlx::is_floating(&tensor) {
            let reason = format!("holds {:?}, no factor", tensor.dtype());
            return Err(self.refuse(name, reason));
        }
        let tensor = tensor.as_dtype(Dtype::Float32)?;
        if tensor.size() == 1 {
            return Ok(ops::broadcast_to(tensor.reshape(&[])?, stack)?);
        }
        Ok(tensor.reshape(stack)?)
    }

    /// 8-bit floats with scales of whole matrices, of rows, of blocks, or of 32 elements.
    pub(super) fn eight_bit_floats(&self, m: &MatrixShape, scale: &str) -> Result<Matrix> {
        let whole = m.with(&[m.output, m.input]);
        let weight = self.take_bytes("weight", &whole)?;
        let scales = self.take_any(scale)?;
        let block = self.quantization().block.unwrap_or(BLOCK);
        let powers_of_two =
            self.quantization().powers_of_two && block == Block { rows: 32, columns: 32 };
        let block = block.within(m.output, m.input);
        let blocks = m.with(&block.counts(m.output, m.input));
        if scales.dtype() == Dtype::Uint8 {
            return self.microscaled(m, weight, BlockScales { name: scale, values: scales, block });
        }
        if !mlx::is_floating(&scales) {
            return Err(self.refuse(scale, format!("holds {:?}, no scales", scales.dtype())));
        }
        if powers_of_two && scales.shape() == blocks {
            let exponents = scales.as_dtype(Dtype::Float32)?.log2()?.add(Array::from_f32(127.0))?;
            let values = exponents.as_dtype(Dtype::Uint8)?;
            return self.microscaled(m, weight, BlockScales { name: scale, values, block });
        }
        let weight = weight.from_fp8(Dtype::Bfloat16)?;
        let stack: i32 = m.stack.iter().product();
        let dense = if scales.size() == 1 {
            weight.multiply(scales.reshape(&[])?)?
        } else if scales.size() == stack as usize {
            weight.multiply(scales.reshape(&m.with(&[1, 1]))?)?
        } else if scales.shape() == m.with(&[m.output, 1]) {
            weight.multiply(scales)?
        } else if scales.shape() == blocks {
            by_block(m, &weight, &scales, block)?
        } else {
            return Err(self.misshaped(scale, &scales, &blocks));
        };
        Ok(Matrix::Dense(dense.as_dtype(Dtype::Bfloat16)?))
    }

    /// mxfp8: 8-bit floats with the exponents of their scales, one for 32 inputs or for a block.
    fn microscaled(&self, m: &MatrixShape, weight: Array, scales: BlockScales) -> Result<Matrix> {
        let BlockScales { name, values: exponents, block } = scales;
        let expected = m.with(&[m.output, m.input / 32]);
        let blocks = m.with(&block.counts(m.output, m.input));
        let fits = m.input % 32 == 0;
        let scales = if fits && exponents.shape() == expected {
            exponents
        } else if fits && block.columns % 32 == 0 && exponents.shape() == blocks {
            let axis = m.stack.len();
            let rows = mlx::slice(&repeat(&exponents, axis, block.rows)?, axis, 0, m.output)?;
            let columns = repeat(&rows, axis + 1, block.columns / 32)?;
            mlx::slice(&columns, axis + 1, 0, m.input / 32)?.contiguous()?
        } else {
            return Err(self.misshaped(name, &exponents, &expected));
        };
        Ok(Matrix::Quantized(Quantized {
            weight: weight.view_dtype(Dtype::Uint32)?,
            scales,
            biases: None,
            global_scale: None,
            format: Format { mode: Mode::Mxfp8, bits: 8, group: 32 },
        }))
    }
}

/// The blocks of 8-bit floats where the config does not say.
const BLOCK: Block = Block { rows: 128, columns: 128 };

/// Scales of blocks of 8-bit floats.
struct BlockScales<'a> {
    name: &'a str,
    values: Array,
    block: Block,
}

/// Blocks of a matrix times their scales; the last ones may be partial.
fn by_block(m: &MatrixShape, weight: &Array, scales: &Array, block: Block) -> Result<Array> {
    let (rows, columns) = (scales.dim(-2), scales.dim(-1));
    let (height, width) = (rows * block.rows, columns * block.columns);
    let is_partial = (height, width) != (m.output, m.input);
    let padded = if is_partial {
        let mut pads = vec![(0, 0); m.stack.len()];
        pads.extend([(0, height - m.output), (0, width - m.input)]);
        ops::pad(weight, pads.as_slice(), None, None)?
    } else {
        weight.clone()
    };
    let scaled = padded
        .reshape(&m.with(&[rows, block.rows, columns, block.columns]))?
        .multiply(scales.reshape(&m.with(&[rows, 1, columns, 1]))?)?
        .reshape(&m.with(&[height, width]))?;
    if !is_partial {
        return Ok(scaled);
    }
    let axis = m.stack.len();
    let scaled = mlx::slice(&scaled, axis, 0, m.output)?;
    Ok(mlx::slice(&scaled, axis + 1, 0, m.input)?.contiguous()?)
}
