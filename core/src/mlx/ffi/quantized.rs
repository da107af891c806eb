//! Quantized matrices in every mode of MLX.

use super::{call, check};
use crate::error::Result;
use mlx_rs::{Array, Dtype, Stream};
use mlx_sys as sys;
use std::ffi::CStr;

/// Calls `f` with the handle of an optional array; mlx-c uses an empty handle for "none".
fn with_optional<T>(array: Option<&Array>, f: impl FnOnce(sys::mlx_array) -> T) -> T {
    // SAFETY: the empty handle is made and freed here and is valid in between.
    unsafe {
        let empty = sys::mlx_array_new();
        let out = f(array.map_or(empty, Array::as_ptr));
        sys::mlx_array_free(empty);
        out
    }
}

fn some_int(value: i32) -> sys::mlx_optional_int {
    sys::mlx_optional_int { value, has_value: true }
}

/// The bits, group size and mode of a quantized matrix, as mlx-c takes them.
#[derive(Clone, Copy)]
pub(in crate::mlx) struct Packing {
    pub group_size: i32,
    pub bits: i32,
    pub mode: &'static CStr,
}

/// The arrays of a quantized matrix: packed elements, scales, and biases where the mode has them.
#[derive(Clone, Copy)]
pub(in crate::mlx) struct Parts<'a> {
    pub weight: &'a Array,
    pub scales: &'a Array,
    pub biases: Option<&'a Array>,
}

/// Quantizes a matrix. Returns packed elements, scales and, for affine quantization, biases.
pub(in crate::mlx) fn quantize(matrix: &Array, packing: Packing) -> Result<Vec<Array>> {
    let stream = Stream::thread_local_or_default();
    // SAFETY: `parts` is made and freed here; the arrays taken from it own their handles.
    unsafe {
        let mut parts = sys::mlx_vector_array_new();
        let status = with_optional(None, |none| {
            let (group, bits) = (some_int(packing.group_size), some_int(packing.bits));
            let (matrix, mode) = (matrix.as_ptr(), packing.mode.as_ptr());
            sys::mlx_quantize(&mut parts, matrix, group, bits, mode, none, stream.as_ptr())
        });
        let part = |i| call(|out, _| sys::mlx_vector_array_get(out, parts, i));
        let quantized =
            check(status).and_then(|()| (0..sys::mlx_vector_array_size(parts)).map(part).collect());
        sys::mlx_vector_array_free(parts);
        quantized
    }
}

/// The quantized product `x · wᵀ` if `transposed`, else `x · w`.
pub(in crate::mlx) fn quantized_matmul(
    x: &Array,
    w: Parts,
    transposed: bool,
    packing: Packing,
) -> Result<Array> {
    let (group, bits) = (some_int(packing.group_size), some_int(packing.bits));
    let (mode, x) = (packing.mode.as_ptr(), x.as_ptr());
    let (weight, scales) = (w.weight.as_ptr(), w.scales.as_ptr());
    with_optional(w.biases, |biases| {
        // SAFETY: all handles are alive during the call.
        call(|out, stream| unsafe {
            sys::mlx_quantized_matmul(
                out, x, weight, scales, biases, transposed, group, bits, mode, stream,
            )
        })
    })
}

/// The quantized product `x · w[ids]ᵀ`; `sorted` says that the ids never decrease.
pub(in crate::mlx) fn gather_qmm(
    x: &Array,
    w: Parts,
    ids: &Array,
    sorted: bool,
    packing: Packing,
) -> Result<Array> {
    let (group, bits) = (some_int(packing.group_size), some_int(packing.bits));
    let (mode, x, ids) = (packing.mode.as_ptr(), x.as_ptr(), ids.as_ptr());
    let (weight, scales) = (w.weight.as_ptr(), w.scales.as_ptr());
    with_optional(w.biases, |biases| {
        with_optional(None, |none| {
            // SAFETY: all handles are alive during the call.
            call(|out, stream| unsafe {
                sys::mlx_gather_qmm(
                    out, x, weight, scales, biases, none, ids, true, group, bits, mode, sorted,
                    stream,
                )
            })
        })
    })
}

/// Dequantizes a matrix, as `dtype` if given.
pub(in crate::mlx) fn dequantize(
    w: Parts,
    dtype: Option<Dtype>,
    packing: Packing,
) -> Result<Array> {
    let (group, bits) = (some_int(packing.group_size), some_int(packing.bits));
    let mode = packing.mode.as_ptr();
    let (weight, scales) = (w.weight.as_ptr(), w.scales.as_ptr());
    let dtype = sys::mlx_optional_dtype {
        value: dtype.unwrap_or(Dtype::Float32).into(),
        has_value: dtype.is_some(),
    };
    with_optional(w.biases, |biases| {
        with_optional(None, |none| {
            // SAFETY: all handles are alive during the call.
            call(|out, stream| unsafe {
                sys::mlx_dequantize(
                    out, weight, scales, biases, group, bits, mode, none, dtype, stream,
                )
            })
        })
    })
}
