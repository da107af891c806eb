//! Products of matrices, and attention. On the CPU, MLX multiplies 16-bit floats and quantized matrices
//! one element at a time, but gives float32 to BLAS, which is many times faster. There, products of
//! enough rows to pay for the conversion, and attention, are computed in float32 and rounded once at
//! the end.

use crate::{
    error::Result,
    mlx::{ffi::is_cpu, is_floating},
};
use mlx_rs::{
    Array, Dtype,
    fast::{ScaledDotProductAttentionMask as Mask, scaled_dot_product_attention},
    ops,
};

/// With fewer rows, converting a matrix takes longer than multiplying by it.
const ROWS_THAT_PAY: i32 = 4;

/// The scale of attention scores, and how they are masked.
pub(crate) struct Weighting<'a> {
    pub scale: f32,
    pub mask: Option<Mask<'a>>,
    /// A score of each head that takes part in the softmax and has no value.
    pub sinks: Option<&'a Array>,
}

impl<'a> Weighting<'a> {
    /// Without a mask or sinks.
    pub(crate) fn plain(scale: f32) -> Self {
        Weighting { scale, mask: None, sinks: None }
    }

    /// With a mask that is added to the scores, or says which keys are seen.
    pub(crate) fn masked(scale: f32, mask: &'a Array) -> Self {
        Weighting { scale, mask: Some(Mask::Array(mask)), sinks: None }
    }
}

/// Whether a matrix that is multiplied by `x` `[…, rows, input]` should be converted to float32.
pub(super) fn pays_as_float32(x: &Array, matrix: &Array) -> Result<bool> {
    // A matrix that all share is converted once, one of each entry of a batch only for its own rows.
    let rows = match matrix.ndim() {
        0..=2 => x.shape().iter().rev().skip(1).product(),
        _ => x.dim(-2),
    };
    Ok(rows >= ROWS_THAT_PAY && is_cpu()?)
}

pub(super) fn is_half(x: &Array) -> bool {
    is_floating(x) && x.dtype() != Dtype::Float32
}

/// `x · matrix`: `[…, input]` times `[…, input, output]`.
pub(crate) fn matmul(x: &Array, matrix: &Array) -> Result<Array> {
    if is_half(x) && is_half(matrix) && pays_as_float32(x, matrix)? {
        let product = ops::matmul(single(x)?, single(matrix)?)?;
        return Ok(product.as_dtype(x.dtype())?);
    }
    Ok(ops::matmul(x, matrix)?)
}

/// `x · matrix + bias`.
pub(crate) fn matmul_add(x: &Array, matrix: &Array, bias: &Array) -> Result<Array> {
    if is_half(x) && is_half(matrix) && pays_as_float32(x, matrix)? {
        let sum = ops::addmm(single(bias)?, single(x)?, single(matrix)?, None, None)?;
        return Ok(sum.as_dtype(x.dtype())?);
    }
    Ok(ops::addmm(bias, x, matrix, None, None)?)
}

/// Attention of queries `[batch, heads, length, dims]` to keys and values `[batch, groups, keys, dims]`.
pub(crate) fn attend(
    q: &Array,
    keys: &Array,
    values: &Array,
    Weighting { scale, mask, sinks }: Weighting,
) -> Result<Array> {
    if is_half(q) && is_cpu()? {
        let (wide, keys, values) = (single(q)?, single(keys)?, single(values)?);
        let y = scaled_dot_product_attention(wide, keys, values, scale, mask, sinks)?;
        return Ok(y.as_dtype(q.dtype())?);
    }
    Ok(scaled_dot_product_attention(q, keys, values, scale, mask, sinks)?)
}

pub(super) fn single(x: &Array) -> Result<Array> {
    Ok(x.as_dtype(Dtype::Float32)?)
}
