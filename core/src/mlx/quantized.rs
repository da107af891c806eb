//! Quantized matrices in the formats of MLX.

use super::{
    ffi::{self, Packing, Parts, slice},
    is_floating,
    product::pays_as_float32,
};
use crate::error::{Error, Result};
use mlx_rs::{Array, Dtype, ops};
use std::ffi::CStr;

/// A quantization format: scheme, bits and group size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Format {
    /// The scheme.
    pub mode: Mode,
    /// Bits of one element.
    pub bits: i32,
    /// Elements along the input that share a scale.
    pub group: i32,
}

impl Format {
    fn packing(self) -> Packing {
        Packing { group_size: self.group, bits: self.bits, mode: self.mode.c_name() }
    }
}

/// The quantization schemes of MLX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Unsigned integers with a scale and a bias for each group.
    Affine,
    /// The OCP microscaling format with 4-bit floats.
    Mxfp4,
    /// The OCP microscaling format with 8-bit floats.
    Mxfp8,
    /// NVIDIA's 4-bit floats with 8-bit float scales.
    Nvfp4,
}

impl Mode {
    /// The name that config files and MLX use.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Affine => "affine",
            Mode::Mxfp4 => "mxfp4",
            Mode::Mxfp8 => "mxfp8",
            Mode::Nvfp4 => "nvfp4",
        }
    }

    fn c_name(self) -> &'static CStr {
        match self {
            Mode::Affine => c"affine",
            Mode::Mxfp4 => c"mxfp4",
            Mode::Mxfp8 => c"mxfp8",
            Mode::Nvfp4 => c"nvfp4",
        }
    }
}

/// A quantized matrix `[…, output, input]`, packed along its input.
#[derive(Clone, Debug)]
pub struct Quantized {
    /// Packed 32-bit integers, `[…, output, input · bits / 32]`.
    pub weight: Array,
    /// Scales, `[…, output, input / group size]`.
    pub scales: Array,
    /// Biases in the shape of the scales, for [`Mode::Affine`] only.
    pub biases: Option<Array>,
    /// A float32 factor of the whole matrix `[]` or of each expert `[experts]`, such as the second
    /// scale of [`Mode::Nvfp4`].
    pub global_scale: Option<Array>,
    /// The format of the packed elements.
    pub format: Format,
}

impl Quantized {
    /// Quantizes a matrix.
    ///
    /// # Errors
    /// [`Error::Mlx`] when MLX has no such format.
    pub fn of(matrix: &Array, format: Format) -> Result<Self> {
        let mut parts = ffi::quantize(matrix, format.packing())?.into_iter();
        let (Some(weight), Some(scales)) = (parts.next(), parts.next()) else {
            return Err(Error::Internal("a quantized matrix has at least two parts".into()));
        };
        Ok(Quantized { weight, scales, biases: parts.next(), global_scale: None, format })
    }

    /// Applies a function to all arrays; it must not change the input axis.
    pub(crate) fn map(&self, change: impl Fn(&Array) -> Result<Array>) -> Result<Self> {
        Ok(Quantized {
            weight: change(&self.weight)?,
            scales: change(&self.scales)?,
            biases: self.biases.as_ref().map(&change).transpose()?,
            global_scale: self.global_scale.clone(),
            format: self.format,
        })
    }

    /// `x · selfᵀ`: `[…, input]` to `[…, output]`.
    pub(crate) fn matmul(&self, x: &Array) -> Result<Array> {
        let Some(factor) = &self.global_scale else { return self.multiply(x, true) };
        scaled(x, factor, |x| self.multiply(x, true))
    }

    /// `x · self`: `[…, output]` to `[…, input]`.
    pub(crate) fn sum_rows(&self, x: &Array) -> Result<Array> {
        let Some(factor) = &self.global_scale else { return self.multiply(x, false) };
        scaled(x, factor, |x| self.multiply(x, false))
    }

    fn parts(&self) -> Parts<'_> {
        Parts { weight: &self.weight, scales: &self.scales, biases: self.biases.as_ref() }
    }

    fn multiply(&self, x: &Array, transposed: bool) -> Result<Array> {
        if !ffi::is_cpu()? {
            return ffi::quantized_matmul(x, self.parts(), transposed, self.format.packing());
        }
        let (wide, matrix) = (x.as_dtype(Dtype::Float32)?, self.single()?);
        let y = match pays_as_float32(x, &self.weight)? {
            true if transposed => matrix.blocks_times(&wide)?,
            true => wide.matmul(matrix.unpack(Some(Dtype::Float32))?)?,
            false => {
                ffi::quantized_matmul(&wide, matrix.parts(), transposed, self.format.packing())?
            }
        };
        Ok(y.as_dtype(x.dtype())?)
    }

    /// The same matrix with the scales and biases in float32, for the CPU, where MLX computes in
    /// their type, one element at a time in half precision.
    fn single(&self) -> Result<Self> {
        let single = |x: &Array| -> Result<Array> {
            Ok(if is_floating(x) { x.as_dtype(Dtype::Float32)? } else { x.clone() })
        };
        self.map(single)
    }

    /// `x · selfᵀ` of blocks of the matrix, each of which is dequantized and freed again.
    fn blocks_times(&self, x: &Array) -> Result<Array> {
        const BLOCK: i32 = 1 << 24;
        let block = |matrix: &Self| -> Result<Array> {
            Ok(x.matmul(matrix.unpack(Some(Dtype::Float32))?.swap_axes(-1, -2)?)?)
        };
        let output = self.weight.dim(-2);
        let rows = (BLOCK / x.dim(-1).max(1)).max(1);
        if rows >= output || self.weight.ndim() > 2 {
            return block(self);
        }
        let starts = (0..output).step_by(rows as usize);
        let parts = starts.map(|start| {
            let stop = (start + rows).min(output);
            block(&self.map(|part| slice(part, 0, start, stop))?)
        });
        Ok(ops::concatenate(&parts.collect::<Result<Vec<_>>>()?, -1)?)
    }

    /// Multiplies by the matrices with these `ids`: `[…, 1, input]` to `[…, 1, output]`.
    pub(crate) fn gather_matmul(&self, x: &Array, ids: &Array, sorted: bool) -> Result<Array> {
        let Some(factors) = &self.global_scale else { return self.gather(x, ids, sorted) };
        let factor = factors.take_axis(ids, 0)?.expand_dims_axes(&[-1, -2])?;
        scaled(x, &factor, |x| self.gather(x, ids, sorted))
    }

    fn gather(&self, x: &Array, ids: &Array, sorted: bool) -> Result<Array> {
        if !ffi::is_cpu()? {
            return ffi::gather_qmm(x, self.parts(), ids, sorted, self.format.packing());
        }
        let (wide, matrix) = (x.as_dtype(Dtype::Float32)?, self.single()?);
        let y = ffi::gather_qmm(&wide, matrix.parts(), ids, sorted, self.format.packing())?;
        Ok(y.as_dtype(x.dtype())?)
    }

    /// Dequantizes the matrix, as `dtype` if given.
    pub(crate) fn dequantize(&self, dtype: Option<Dtype>) -> Result<Array> {
        let Some(factor) = &self.global_scale else { return self.unpack(dtype) };
        let factor = match factor.ndim() {
            0 => factor.clone(),
            _ => factor.expand_dims_axes(&[-1, -2])?,
        };
        let dense = self.unpack(Some(Dtype::Float32))?.multiply(factor)?;
        let inferred = match self.scales.dtype() {
            Dtype::Uint8 => Dtype::Bfloat16,
            dtype => dtype,
        };
        Ok(dense.as_dtype(dtype.unwrap_or(inferred))?)
    }

    fn unpack(&self, dtype: Option<Dtype>) -> Result<Array> {
        ffi::dequantize(self.parts(), dtype, self.format.packing())
    }
}

/// Multiplies a product by a factor. The product without the factor may exceed the range of half
/// precision.
fn scaled(
    x: &Array,
    factor: &Array,
    product: impl FnOnce(&Array) -> Result<Array>,
) -> Result<Array> {
    let y = match x.dtype() {
        Dtype::Float16 => product(&x.as_dtype(Dtype::Float32)?)?,
        _ => product(x)?,
    };
    Ok(y.multiply(factor)?.as_dtype(x.dtype())?)
}
