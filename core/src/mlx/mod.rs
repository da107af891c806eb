//! What mlx-rs lacks: quantized formats, products and convolutions that are fast on a CPU too, compiled
//! functions, parameters that can be replaced, slices at positions on the device, queued results that are
//! checked for failures, memory limits. This room may use mlx-rs, mlx-c and `error`; it must not know
//! checkpoints or models.

pub(crate) mod compiled;
pub(crate) mod convolution;
mod cuda;
pub(crate) mod decode_attention;
mod device;
mod failure;
mod ffi;
pub(crate) mod matrix;
pub(crate) mod memory;
pub(crate) mod parameter;
pub(crate) mod product;
pub(crate) mod quantized;
pub(crate) mod queued;
mod weight_file;

pub(crate) use cuda::{announce_kernels, in_device_memory, uses_cuda};
pub(crate) use device::{check_device, device_memory};
pub(crate) use failure::{has_failed, take_failure};
pub use ffi::{
    bits, is_cpu, node_count, set_fusing, shift_left, slice, slice_update, slice_update_at,
};
pub(crate) use ffi::{initialize, raise_priority, release_memory};
pub(crate) use parameter::detach_indices;
pub(crate) use queued::synchronize;
pub(crate) use weight_file::load_for_cuda;

use crate::error::Result;
use mlx_rs::{Array, ArrayElement, Dtype};

/// A scalar in the type of the arrays that it is combined with, so that it does not widen them.
pub fn scalar(value: f32, dtype: Dtype) -> Result<Array> {
    let value = Array::from_f32(value);
    if dtype == Dtype::Float32 { Ok(value) } else { Ok(value.as_dtype(dtype)?) }
}

/// The elements of an array in row-major order; evaluates it if necessary.
pub fn to_vec<T: ArrayElement + Clone>(x: &Array) -> Result<Vec<T>> {
    Ok(x.flatten(None, None)?.contiguous()?.to_vec_cast()?)
}

/// Whether an array holds 16-bit or 32-bit floats.
pub(crate) fn is_floating(tensor: &Array) -> bool {
    matches!(tensor.dtype(), Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16)
}
