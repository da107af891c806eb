//! Matrices as other tools than MLX pack them: AWQ, GPTQ, compressed-tensors, NVIDIA's ModelOpt,
//! ternary weights, and 8-bit floats with scales.
//!
//! Integers and 4-bit floats become formats of MLX that hold the same numbers. 8-bit floats become
//! bfloat16, as in the reference, unless their scales are powers of two, which MLX has too. Each
//! matrix is turned on its own and lazily, so that no model is in memory twice.

use crate::{
    checkpoint::{quantization::Words, scope::Scope},
    error::{Error, Result},
    mlx::{
        self,
        matrix::Matrix,
        quantized::{Format, Mode, Quantized},
    },
};
use mlx_rs::{Array, Dtype, ops};

/// Where a word of AWQ has the first, second … of its eight outputs.
const AWQ_PLACES: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// What these tools call the factor of a whole matrix of 4-bit floats: by the first one they are
/// divided, by the second multiplied.
const COMPRESSED_TENSORS: &str = "weight_global_scale";
pub(crate) const MODEL_OPT: &str = "weight_scale_2";

/// The blocks of 8-bit floats where the config does not say.
const BLOCK: (i32, i32) = (128, 128);

/// A matrix, or a stack of them.
pub(super) struct Shape<'a> {
    pub stack: &'a [i32],
    pub output: i32,
    pub input: i32,
}

impl Shape<'_> {
    /// The same stack of other matrices.
    pub fn of(&self, matrix: &[i32]) -> Vec<i32> {
        [self.stack, matrix].concat()
    }
}

impl Scope {
    /// The matrix `weight` here, if another tool packed it.
    pub(super) fn foreign_matrix(&self, shape: &[i32]) -> Result<Option<Matrix>> {
        let [stack @ .., output, input] = shape else { return Ok(None) };
        let m = &Shape { stack, output: *output, input: *input };
        let scales = ["weight_scale_inv", "weight_scale", "scale"];
        let scale = scales.into_iter().find(|name| self.has(name));
        let is_bytes = |name| self.dtype(name) == Some(Dtype::Uint8);
        let matrix = if self.has("qweight") {
            self.words(m)?
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

    pub(super) fn refuse(&self, name: &str, reason: impl Into<String>) -> Error {
        Error::Quantization { path: self.full_name(name), reason: reason.into() }
    }

    /// How many groups of inputs have scales of their own: the length of an axis that is counted
    /// from the last one. A group must be a multiple of `unit`.
    pub(super) fn groups(
        &self,
        m: &Shape,
        (scales, axis): (&str, usize),
        unit: i32,
    ) -> Result<i32> {
        let shape = self.shape(scales).ok_or(Error::MissingTensor(self.full_name(scales)))?;
        let groups = shape.iter().rev().nth(axis).copied().unwrap_or(0);
        if groups > 0 && m.input >= groups && m.input % (groups * unit) == 0 {
            return Ok(groups);
        }
        let inputs = m.input;
        let reason =
            format!("{shape:?} scales do not divide {inputs} inputs into groups of {unit} or more");
        Err(self.refuse(scales, reason))
    }

    /// The bits of integers of which `length` words hold as many as there are inputs.
    fn bits(&self, m: &Shape, name: &str, length: Option<i32>) -> Result<i32> {
        // Others straddle words.
        let fits = |bits: &i32| m.input % (32 / bits) == 0 && length == Some(m.input / (32 / bits));
        [2, 4, 8].into_iter().find(fits).ok_or_else(|| {
            let shape = self.shape(name).unwrap_or_default();
            let reason =
                format!("{shape:?} words do not hold {} inputs in 2, 4 or 8 bits", m.input);
            self.refuse(name, reason)
        })
    }

    /// How many words hold an integer for each output.
    fn narrow(&self, m: &Shape, name: &str, bits: i32) -> Result<i32> {
        if m.output % (32 / bits) == 0 {
            return Ok(m.output / (32 / bits));
        }
        Err(self.refuse(name, format!("{} outputs of {bits} bits fill no words", m.output)))
    }

    /// An error if inputs are not in the order of their groups: MLX could not multiply them.
    fn check_order(&self, m: &Shape, name: &str, groups: i32) -> Result<()> {
        if !self.has(name) {
            return Ok(());
        }
        let index = self.take_as(name, &m.of(&[m.input]), Dtype::Int32)?;
        let group = m.input / groups;
        let in_order = (0..m.input).map(move |input| input / group).cycle();
        let reordered =
            self.refuse(name, "inputs that were reordered (`desc_act`) are not supported");
        self.check_later(move || {
            let index: Vec<i32> = mlx::to_vec(&index)?;
            let is_ordered = index.iter().copied().eq(in_order.take(index.len()));
            if is_ordered { Ok(()) } else { Err(reordered) }
        });
        Ok(())
    }

    /// AWQ and GPTQ.
    fn words(&self, m: &Shape) -> Result<Matrix> {
        let said = self.quantization();
        let Some(words) = said.words else {
            return Err(self.refuse("qweight", "the config says neither `awq` nor `gptq`"));
        };
        let length = self.shape("qweight").and_then(|shape| shape.iter().rev().nth(1).copied());
        let bits = if words == Words::Awq { 4 } else { self.bits(m, "qweight", length)? };
        let groups = self.groups(m, ("scales", 1), 32)?;
        self.check_order(m, "g_idx", groups)?;
        let narrow = self.narrow(m, "qzeros", bits)?;
        let zeros = if self.has("qzeros") || said.has_zeros {
            let zeros = self.take_as("qzeros", &m.of(&[groups, narrow]), Dtype::Int32)?;
            Some(zeros.view_dtype(Dtype::Uint32)?)
        } else {
            None
        };
        let (weight, zeros) = match words {
            Words::Awq => {
                let weight = self.take_as("qweight", &m.of(&[m.input, narrow]), Dtype::Int32)?;
                let zeros = zeros.map(|zeros| unpack(&zeros, &AWQ_PLACES, 4)).transpose()?;
                (transpose_awq(m, &weight.view_dtype(Dtype::Uint32)?)?, zeros)
            }
            Words::Gptq | Words::GptqV2 => {
                let shape = m.of(&[m.input / (32 / bits), m.output]);
                let weight = self.take_as("qweight", &shape, Dtype::Int32)?;
                let zeros = match zeros {
                    // Whole words, as the tool itself does it, and so with what it carries over.
                    Some(zeros) if words == Words::Gptq => {
                        Some(zeros.add(Array::from_slice(&[u32::MAX / ((1 << bits) - 1)], &[]))?)
                    }
                    zeros => zeros,
                };
                let zeros = zeros.map(|zeros| unpack_in_order(&zeros, bits)).transpose()?;
                (transposed(&weight.view_dtype(Dtype::Uint32)?)?, zeros)
            }
        };
        let scales = transposed(&self.take("scales", &m.of(&[groups, m.output]))?)?;
        affine(m, bits, weight, &scales, zeros.map(|zeros| transposed(&zeros)).transpose()?)
    }

    /// Integers of compressed-tensors.
    fn packed_integers(&self, m: &Shape) -> Result<Matrix> {
        let length = self.shape("weight_packed").and_then(|shape| shape.last().copied());
        let bits = self.bits(m, "weight_packed", length)?;
        let groups = self.groups(m, ("weight_scale", 0), 32)?;
        self.check_order(m, "weight_g_idx", groups)?;
        let shape = m.of(&[m.output, m.input / (32 / bits)]);
        let weight = self.take_as("weight_packed", &shape, Dtype::Int32)?;
        let zeros = if self.has("weight_zero_point") || self.quantization().has_zeros {
            let narrow = self.narrow(m, "weight_zero_point", bits)?;
            let shape = m.of(&[narrow, groups]);
            let zeros = self.take_as("weight_zero_point", &shape, Dtype::Int32)?;
            Some(transposed(&unpack_in_order(
                &transposed(&zeros.view_dtype(Dtype::Uint32)?)?,
                bits,
            )?)?)
        } else {
            None
        };
        let scales = self.take("weight_scale", &m.of(&[m.output, groups]))?;
        affine(m, bits, weight.view_dtype(Dtype::Uint32)?, &scales, zeros)
    }

    /// -1, 0 and 1, each plus one: a byte has those of rows `r`, `r + output / 4` and so on, from its
    /// lowest bits up.
    fn ternary(&self, m: &Shape) -> Result<Matrix> {
        let Some(group) = [128, 64, 32].into_iter().find(|group| m.input % group == 0) else {
            return Err(self.refuse("weight", format!("{} inputs make no groups of 32", m.input)));
        };
        let bytes = self.take_bytes("weight", &m.of(&[m.output / 4, m.input]))?;
        let words = bytes.view_dtype(Dtype::Uint32)?;
        let words = words.reshape(&m.of(&[m.output / 4, m.input / 16, 4, 1]))?;
        let places: Vec<u32> = (0..16).map(|input| 2 * input).collect();
        let places = Array::from_slice(&places, &[4, 4]);
        let quarter = |row: u32| -> Result<Array> {
            let shifts = Array::from_slice(&[0, 8, 16, 24].map(|byte| byte + 2 * row), &[4]);
            let codes = mlx::shift_left(&mlx::bits(&words, &shifts, &mask(2))?, &places)?;
            Ok(codes.sum_axes(&[-1, -2], false)?.as_dtype(Dtype::Uint32)?)
        };
        let quarters = (0..4).map(quarter).collect::<Result<Vec<_>>>()?;
        let scale = self.take("weight_scale", &[1])?;
        let (scale, global_scale) = if self.quantization().divides_ternary {
            let divisor = scale.as_dtype(Dtype::Float32)?.reshape(&[])?;
            let factor = Array::from_f32(1.0).divide(divisor)?;
            let factor = ops::broadcast_to(factor, m.stack)?;
            (mlx::scalar(1.0, scale.dtype())?, Some(factor))
        } else {
            (scale, None)
        };
        let scales =
            ops::broadcast_to(&scale, &m.of(&[m.output, m.input / group]))?.contiguous()?;
        Ok(Matrix::Quantized(Quantized {
            weight: ops::concatenate(&quarters, -2)?,
            biases: Some(scales.negative()?),
            scales,
            global_scale,
            format: Format { mode: Mode::Affine, bits: 2, group },
        }))
    }

    /// Pairs of 4-bit floats with 8-bit scales; those of 16 with a factor of the whole matrix.
    fn four_bit_floats(&self, m: &Shape, name: &str, scale: &str) -> Result<Matrix> {
        let groups = self.groups(m, (scale, 0), 16)?;
        let shape = m.of(&[m.output, m.input / 2]);
        let bytes = match name {
            "blocks" => {
                let blocks = m.of(&[m.output, groups, m.input / groups / 2]);
                self.take_bytes(name, &blocks)?.reshape(&shape)?
            }
            // Some tools call any byte a signed one.
            _ if self.dtype(name) == Some(Dtype::Int8) => {
                self.take_as(name, &shape, Dtype::Int8)?.view_dtype(Dtype::Uint8)?
            }
            _ => self.take_bytes(name, &shape)?,
        };
        let scales = self.take_bytes(scale, &m.of(&[m.output, groups]))?;
        let factor = if name == "weight_packed" { COMPRESSED_TENSORS } else { MODEL_OPT };
        self.pairs(m, bytes, scales, [scale, factor])
    }

    /// Those pairs `[…, output, input / 2]` with their scales `[…, output, groups]`; the names are
    /// those of the scales and of the factor.
    pub(super) fn pairs(
        &self,
        m: &Shape,
        bytes: Array,
        scales: Array,
        [name, factor]: [&str; 2],
    ) -> Result<Matrix> {
        let format = match m.input / scales.dim(-1) {
            16 => Format { mode: Mode::Nvfp4, bits: 4, group: 16 },
            32 => Format { mode: Mode::Mxfp4, bits: 4, group: 32 },
            group => {
                let reason = format!("4-bit floats in groups of {group} are no format of MLX");
                return Err(self.refuse(name, reason));
            }
        };
        let global_scale = match format.mode {
            Mode::Mxfp4 => None,
            _ if factor == COMPRESSED_TENSORS => {
                Some(Array::from_f32(1.0).divide(self.factor(factor, m.stack)?)?)
            }
            _ => Some(self.factor(factor, m.stack)?),
        };
        let weight = bytes.view_dtype(Dtype::Uint32)?;
        Ok(Matrix::Quantized(Quantized { weight, scales, biases: None, global_scale, format }))
    }

    /// A factor of a matrix as `[]`, or of each matrix of a stack as `[stack]`, in float32; one may
    /// stand for all.
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
    fn eight_bit_floats(&self, m: &Shape, scale: &str) -> Result<Matrix> {
        let whole = m.of(&[m.output, m.input]);
        let weight = self.take_bytes("weight", &whole)?;
        let scales = self.take_any(scale)?;
        let block = self.quantization().block.unwrap_or(BLOCK);
        let powers_of_two = self.quantization().powers_of_two && block == (32, 32);
        let block = (block.0.min(m.output).max(1), block.1.min(m.input).max(1));
        let blocks = m.of(&[(m.output - 1) / block.0 + 1, (m.input - 1) / block.1 + 1]);
        if scales.dtype() == Dtype::Uint8 {
            return self.microscaled(m, weight, scales, (scale, block));
        }
        if !mlx::is_floating(&scales) {
            return Err(self.refuse(scale, format!("holds {:?}, no scales", scales.dtype())));
        }
        if powers_of_two && scales.shape() == blocks {
            let exponents = scales.as_dtype(Dtype::Float32)?.log2()?.add(Array::from_f32(127.0))?;
            return self.microscaled(m, weight, exponents.as_dtype(Dtype::Uint8)?, (scale, block));
        }
        let weight = weight.from_fp8(Dtype::Bfloat16)?;
        let stack: i32 = m.stack.iter().product();
        let dense = if scales.size() == 1 {
            weight.multiply(scales.reshape(&[])?)?
        } else if scales.size() == stack as usize {
            weight.multiply(scales.reshape(&m.of(&[1, 1]))?)?
        } else if scales.shape() == m.of(&[m.output, 1]) {
            weight.multiply(scales)?
        } else if scales.shape() == blocks {
            by_block(m, &weight, &scales, block)?
        } else {
            return Err(self.misshaped(scale, &scales, &blocks));
        };
        Ok(Matrix::Dense(dense.as_dtype(Dtype::Bfloat16)?))
    }

    /// 8-bit floats with the exponents of their scales, for 32 inputs or for a block, in MLX's format.
    fn microscaled(
        &self,
        m: &Shape,
        weight: Array,
        exponents: Array,
        (name, block): (&str, (i32, i32)),
    ) -> Result<Matrix> {
        let expected = m.of(&[m.output, m.input / 32]);
        let blocks = m.of(&[(m.output - 1) / block.0 + 1, (m.input - 1) / block.1 + 1]);
        let fits = m.input % 32 == 0;
        let scales = if fits && exponents.shape() == expected {
            exponents
        } else if fits && block.1 % 32 == 0 && exponents.shape() == blocks {
            let axis = m.stack.len();
            let rows = mlx::slice(&repeat(&exponents, axis, block.0)?, axis, 0, m.output)?;
            let columns = repeat(&rows, axis + 1, block.1 / 32)?;
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

/// `(weight - zeros) · scales` of integers of so many bits, with a scale and a zero for each group;
/// the zero is in the middle if there are none.
fn affine(
    m: &Shape,
    bits: i32,
    weight: Array,
    scales: &Array,
    zeros: Option<Array>,
) -> Result<Matrix> {
    let large = m.input / scales.dim(-1);
    let group = [128, 64].into_iter().find(|group| large % group == 0).unwrap_or(32);
    let zeros = match zeros {
        Some(zeros) => zeros.as_dtype(Dtype::Float32)?,
        None => Array::from_f32((1 << (bits - 1)) as f32),
    };
    let biases = zeros.negative()?.multiply(scales)?.as_dtype(scales.dtype())?;
    let repeated = |a: &Array| repeat(a, a.ndim() - 1, large / group);
    Ok(Matrix::Quantized(Quantized {
        weight,
        scales: repeated(scales)?,
        biases: Some(repeated(&biases)?),
        global_scale: None,
        format: Format { mode: Mode::Affine, bits, group },
    }))
}

/// The last two axes swapped.
pub(super) fn transposed(a: &Array) -> Result<Array> {
    Ok(a.swap_axes(-1, -2)?.contiguous()?)
}

/// Every element of an axis `count` times.
fn repeat(a: &Array, axis: usize, count: i32) -> Result<Array> {
    if count == 1 {
        return Ok(a.clone());
    }
    let (mut wide, mut joined) = (a.shape().to_vec(), a.shape().to_vec());
    wide.insert(axis + 1, count);
    joined[axis] *= count;
    Ok(ops::broadcast_to(a.expand_dims(axis as i32 + 1)?, &wide)?.reshape(&joined)?)
}

/// Words `[…, n]` to the integers `[…, n · places]` at these places.
fn unpack(words: &Array, places: &[u32], bits: i32) -> Result<Array> {
    let shifts: Vec<u32> = places.iter().map(|place| place * bits as u32).collect();
    let shifts = Array::from_slice(&shifts, &[shifts.len() as i32]);
    let integers = mlx::bits(&words.expand_dims(-1)?, &shifts, &mask(bits))?;
    let mut shape = words.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last *= places.len() as i32;
    }
    Ok(integers.reshape(&shape)?)
}

fn unpack_in_order(words: &Array, bits: i32) -> Result<Array> {
    let places: Vec<u32> = (0..32 / bits as u32).collect();
    unpack(words, &places, bits)
}

fn mask(bits: i32) -> Array {
    Array::from_slice(&[(1_u32 << bits) - 1], &[])
}

/// Words of eight outputs `[…, input, output / 8]` to words of eight inputs `[…, output, input / 8]`.
/// One output of all words at a time, so that the integers never stand unpacked in memory.
fn transpose_awq(m: &Shape, words: &Array) -> Result<Array> {
    let eights = words.reshape(&m.of(&[m.input / 8, 8, m.output / 8]))?;
    let places: Vec<u32> = (0..8).map(|place| 4 * place).collect();
    let places = Array::from_slice(&places, &[8, 1]);
    let outputs = AWQ_PLACES.map(|place| -> Result<Array> {
        let shift = Array::from_slice(&[4 * place], &[]);
        let integers = mlx::bits(&eights, &shift, &mask(4))?;
        Ok(mlx::shift_left(&integers, &places)?.sum_axis(-2, false)?.as_dtype(Dtype::Uint32)?)
    });
    let outputs = outputs.into_iter().collect::<Result<Vec<_>>>()?;
    transposed(&ops::stack(&outputs, -1)?.reshape(&m.of(&[m.input / 8, m.output]))?)
}

/// Blocks of a matrix times their scales; the last ones may be partial.
fn by_block(m: &Shape, weight: &Array, scales: &Array, block: (i32, i32)) -> Result<Array> {
    let (rows, columns) = (scales.dim(-2), scales.dim(-1));
    let (height, width) = (rows * block.0, columns * block.1);
    let is_partial = (height, width) != (m.output, m.input);
    let padded = if is_partial {
        let mut pads = vec![(0, 0); m.stack.len()];
        pads.extend([(0, height - m.output), (0, width - m.input)]);
        ops::pad(weight, pads.as_slice(), None, None)?
    } else {
        weight.clone()
    };
    let scaled = padded
        .reshape(&m.of(&[rows, block.0, columns, block.1]))?
        .multiply(scales.reshape(&m.of(&[rows, 1, columns, 1]))?)?
        .reshape(&m.of(&[height, width]))?;
    if !is_partial {
        return Ok(scaled);
    }
    let axis = m.stack.len();
    let scaled = mlx::slice(&scaled, axis, 0, m.output)?;
    Ok(mlx::slice(&scaled, axis + 1, 0, m.input)?.contiguous()?)
}
