//! Matrices in the quantization formats of other tools than MLX: AWQ, GPTQ, compressed-tensors,
//! NVIDIA's ModelOpt, ternary weights, and 8-bit floats with scales.
//!
//! Integers and 4-bit floats become formats of MLX that hold the same numbers. 8-bit floats become
//! bfloat16, as in the reference, unless their scales are powers of two, which MLX has too. Each
//! matrix is converted on its own and lazily, so that no model is in memory twice.

use crate::{
    checkpoint::{
        quantization::{Block, PackedLayout},
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

/// The places of the first, second … of the eight outputs that AWQ packs into one integer.
const AWQ_PLACES: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// The names of the global scale of a matrix of 4-bit floats. The elements are divided by that of
/// compressed-tensors, and multiplied by that of ModelOpt.
const COMPRESSED_TENSORS: &str = "weight_global_scale";
pub(crate) const MODEL_OPT: &str = "weight_scale_2";

/// The blocks of 8-bit floats where the config does not say.
const BLOCK: Block = Block { rows: 128, columns: 128 };

/// The shape of a matrix, or of a stack of matrices.
pub(super) struct MatrixShape<'a> {
    pub stack: &'a [i32],
    pub output: i32,
    pub input: i32,
    /// Whether each half of the outputs may have its own global scale.
    pub has_halves: bool,
}

/// An axis of a tensor, counted from the last one.
pub(super) struct Axis<'a> {
    pub name: &'a str,
    pub from_last: usize,
}

/// The tensors beside 4-bit floats.
pub(super) struct FloatNames<'a> {
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
    pub(super) fn foreign_matrix(&self, m: &MatrixShape) -> Result<Option<Matrix>> {
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

    pub(super) fn refuse(&self, name: &str, reason: impl Into<String>) -> Error {
        Error::Quantization { path: self.full_name(name), reason: reason.into() }
    }

    /// How many groups of inputs have scales of their own: the length of an axis of the scales. The
    /// size of a group must be a multiple of `unit`.
    pub(super) fn groups(&self, m: &MatrixShape, axis: Axis, unit: i32) -> Result<i32> {
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

    /// The bits of integers of which `length` 32-bit words hold as many as there are inputs.
    fn bits(&self, m: &MatrixShape, name: &str, length: Option<i32>) -> Result<i32> {
        // Integers of other sizes straddle words.
        let fits = |bits: &i32| m.input % (32 / bits) == 0 && length == Some(m.input / (32 / bits));
        [2, 4, 8].into_iter().find(fits).ok_or_else(|| {
            let shape = self.shape(name).unwrap_or_default();
            let reason =
                format!("{shape:?} 32-bit words do not hold {} inputs in 2, 4 or 8 bits", m.input);
            self.refuse(name, reason)
        })
    }

    /// How many 32-bit words hold one integer for each output.
    fn packed_length(&self, m: &MatrixShape, name: &str, bits: i32) -> Result<i32> {
        if m.output % (32 / bits) == 0 {
            return Ok(m.output / (32 / bits));
        }
        Err(self
            .refuse(name, format!("{} outputs of {bits} bits do not fill 32-bit words", m.output)))
    }

    /// An error unless inputs are in the order of their groups, as MLX needs them.
    fn check_order(&self, m: &MatrixShape, name: &str, groups: i32) -> Result<()> {
        if !self.has(name) {
            return Ok(());
        }
        let index = self.take_as(name, &m.with(&[m.input]), Dtype::Int32)?;
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
    fn packed_outputs(&self, m: &MatrixShape) -> Result<Matrix> {
        let said = self.quantization();
        let Some(layout) = said.layout else {
            return Err(self.refuse("qweight", "the config says neither `awq` nor `gptq`"));
        };
        let rows = self.shape("qweight").and_then(|shape| shape.iter().rev().nth(1).copied());
        let bits = if layout == PackedLayout::Awq { 4 } else { self.bits(m, "qweight", rows)? };
        let groups = self.groups(m, Axis { name: "scales", from_last: 1 }, 32)?;
        self.check_order(m, "g_idx", groups)?;
        let length = self.packed_length(m, "qzeros", bits)?;
        let zeros = if self.has("qzeros") || said.has_zeros {
            let zeros = self.take_as("qzeros", &m.with(&[groups, length]), Dtype::Int32)?;
            Some(zeros.view_dtype(Dtype::Uint32)?)
        } else {
            None
        };
        let (weight, zeros) = match layout {
            PackedLayout::Awq => {
                let weight = self.take_as("qweight", &m.with(&[m.input, length]), Dtype::Int32)?;
                let zeros = zeros.map(|zeros| unpack(&zeros, &AWQ_PLACES, 4)).transpose()?;
                (transpose_awq(m, &weight.view_dtype(Dtype::Uint32)?)?, zeros)
            }
            PackedLayout::Gptq | PackedLayout::GptqV2 => {
                let shape = m.with(&[m.input / (32 / bits), m.output]);
                let weight = self.take_as("qweight", &shape, Dtype::Int32)?;
                let zeros = match zeros {
                    // The tool adds one to whole words, with carries from integer to integer.
                    Some(zeros) if layout == PackedLayout::Gptq => {
                        Some(zeros.add(Array::from_slice(&[u32::MAX / ((1 << bits) - 1)], &[]))?)
                    }
                    zeros => zeros,
                };
                let zeros = zeros.map(|zeros| unpack_in_order(&zeros, bits)).transpose()?;
                (transposed(&weight.view_dtype(Dtype::Uint32)?)?, zeros)
            }
        };
        let scales = transposed(&self.take("scales", &m.with(&[groups, m.output]))?)?;
        affine(m, bits, weight, &scales, zeros.map(|zeros| transposed(&zeros)).transpose()?)
    }

    /// Integers of compressed-tensors.
    fn packed_integers(&self, m: &MatrixShape) -> Result<Matrix> {
        let columns = self.shape("weight_packed").and_then(|shape| shape.last().copied());
        let bits = self.bits(m, "weight_packed", columns)?;
        let groups = self.groups(m, Axis { name: "weight_scale", from_last: 0 }, 32)?;
        self.check_order(m, "weight_g_idx", groups)?;
        let shape = m.with(&[m.output, m.input / (32 / bits)]);
        let weight = self.take_as("weight_packed", &shape, Dtype::Int32)?;
        let zeros = if self.has("weight_zero_point") || self.quantization().has_zeros {
            let length = self.packed_length(m, "weight_zero_point", bits)?;
            let shape = m.with(&[length, groups]);
            let zeros = self.take_as("weight_zero_point", &shape, Dtype::Int32)?;
            Some(transposed(&unpack_in_order(
                &transposed(&zeros.view_dtype(Dtype::Uint32)?)?,
                bits,
            )?)?)
        } else {
            None
        };
        let scales = self.take("weight_scale", &m.with(&[m.output, groups]))?;
        affine(m, bits, weight.view_dtype(Dtype::Uint32)?, &scales, zeros)
    }

    /// Ternary weights: -1, 0 and 1, stored plus one in two bits each. A byte holds the elements of the rows
    /// `r`, `r + output / 4` and so on, from its lowest bits up.
    fn ternary(&self, m: &MatrixShape) -> Result<Matrix> {
        let Some(group) = [128, 64, 32].into_iter().find(|group| m.input % group == 0) else {
            return Err(
                self.refuse("weight", format!("{} inputs are not a multiple of 32", m.input))
            );
        };
        let bytes = self.take_bytes("weight", &m.with(&[m.output / 4, m.input]))?;
        let packed = bytes.view_dtype(Dtype::Uint32)?;
        let packed = packed.reshape(&m.with(&[m.output / 4, m.input / 16, 4, 1]))?;
        let places: Vec<u32> = (0..16).map(|input| 2 * input).collect();
        let places = Array::from_slice(&places, &[4, 4]);
        let quarter = |row: u32| -> Result<Array> {
            let shifts = Array::from_slice(&[0, 8, 16, 24].map(|byte| byte + 2 * row), &[4]);
            let codes = mlx::shift_left(&mlx::bits(&packed, &shifts, &mask(2))?, &places)?;
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
            ops::broadcast_to(&scale, &m.with(&[m.output, m.input / group]))?.contiguous()?;
        Ok(Matrix::Quantized(Quantized {
            weight: ops::concatenate(&quarters, -2)?,
            biases: Some(scales.negative()?),
            scales,
            global_scale,
            format: Format { mode: Mode::Affine, bits: 2, group },
        }))
    }

    /// Pairs of 4-bit floats with 8-bit scales: mxfp4, and nvfp4 with a global scale.
    fn four_bit_floats(&self, m: &MatrixShape, name: &str, scale: &str) -> Result<Matrix> {
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
    pub(super) fn pack_four_bit_floats(
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
    fn eight_bit_floats(&self, m: &MatrixShape, scale: &str) -> Result<Matrix> {
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

/// Scales of blocks of 8-bit floats.
struct BlockScales<'a> {
    name: &'a str,
    values: Array,
    block: Block,
}

/// `(weight - zeros) · scales` of integers of `bits` bits, with a scale and a zero point for each
/// group; without zero points the zero is in the middle.
fn affine(
    m: &MatrixShape,
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

/// Packed integers `[…, n]` to the integers `[…, n · places]` at these places.
fn unpack(packed: &Array, places: &[u32], bits: i32) -> Result<Array> {
    let shifts: Vec<u32> = places.iter().map(|place| place * bits as u32).collect();
    let shifts = Array::from_slice(&shifts, &[shifts.len() as i32]);
    let integers = mlx::bits(&packed.expand_dims(-1)?, &shifts, &mask(bits))?;
    let mut shape = packed.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last *= places.len() as i32;
    }
    Ok(integers.reshape(&shape)?)
}

fn unpack_in_order(packed: &Array, bits: i32) -> Result<Array> {
    let places: Vec<u32> = (0..32 / bits as u32).collect();
    unpack(packed, &places, bits)
}

fn mask(bits: i32) -> Array {
    Array::from_slice(&[(1_u32 << bits) - 1], &[])
}

/// Integers packed by eight outputs `[…, input, output / 8]` to the same packed by eight inputs
/// `[…, output, input / 8]`. The device converts one output of each eight at a time, so that the
/// integers never take the memory of unpacked ones.
fn transpose_awq(m: &MatrixShape, packed: &Array) -> Result<Array> {
    let eights = packed.reshape(&m.with(&[m.input / 8, 8, m.output / 8]))?;
    let places: Vec<u32> = (0..8).map(|place| 4 * place).collect();
    let places = Array::from_slice(&places, &[8, 1]);
    let outputs = AWQ_PLACES.map(|place| -> Result<Array> {
        let shift = Array::from_slice(&[4 * place], &[]);
        let integers = mlx::bits(&eights, &shift, &mask(4))?;
        Ok(mlx::shift_left(&integers, &places)?.sum_axis(-2, false)?.as_dtype(Dtype::Uint32)?)
    });
    let outputs = outputs.into_iter().collect::<Result<Vec<_>>>()?;
    transposed(&ops::stack(&outputs, -1)?.reshape(&m.with(&[m.input / 8, m.output]))?)
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
