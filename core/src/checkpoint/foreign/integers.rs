//! Integers of a few bits: AWQ, GPTQ, compressed-tensors and ternary weights.

use super::{Axis, MatrixShape};
use crate::{
    checkpoint::{quantization::PackedLayout, scope::Scope},
    error::Result,
    mlx::{
        self,
        matrix::Matrix,
        quantized::{Format, Mode, Quantized},
    },
};
use mlx_rs::{Array, Dtype, ops};

impl Scope {
    /// The bits of integers of which `length` 32-bit words hold as many as there are inputs.
    pub(super) fn bits(&self, m: &MatrixShape, name: &str, length: Option<i32>) -> Result<i32> {
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
    pub(super) fn packed_length(&self, m: &MatrixShape, name: &str, bits: i32) -> Result<i32> {
        if m.output % (32 / bits) == 0 {
            return Ok(m.output / (32 / bits));
        }
        Err(self
            .refuse(name, format!("{} outputs of {bits} bits do not fill 32-bit words", m.output)))
    }

    /// An error unless inputs are in the order of their groups, as MLX needs them.
    pub(super) fn check_order(&self, m: &MatrixShape, name: &str, groups: i32) -> Result<()> {
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
    pub(super) fn packed_outputs(&self, m: &MatrixShape) -> Result<Matrix> {
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
    pub(super) fn packed_integers(&self, m: &MatrixShape) -> Result<Matrix> {
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
    pub(super) fn ternary(&self, m: &MatrixShape) -> Result<Matrix> {
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
}

/// The places of the first, second … of the eight outputs that AWQ packs into one integer.
const AWQ_PLACES: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

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
pub(in crate::checkpoint) fn transposed(a: &Array) -> Result<Array> {
    Ok(a.swap_axes(-1, -2)?.contiguous()?)
}

/// Every element of an axis `count` times.
pub(super) fn repeat(a: &Array, axis: usize, count: i32) -> Result<Array> {
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
