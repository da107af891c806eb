//! Slices whose start only the device knows, and bits.

use super::call;
use crate::error::Result;
use mlx_rs::Array;
use mlx_sys as sys;
use std::ffi::c_int;

/// `x[…, start..stop, …]` along `axis`.
pub fn slice(x: &Array, axis: usize, start: i32, stop: i32) -> Result<Array> {
    let shape = x.shape();
    let (mut starts, mut stops) = (vec![0; shape.len()], shape.to_vec());
    (starts[axis], stops[axis]) = (start, stop);
    let strides = vec![1; shape.len()];
    // SAFETY: the three slices have as many elements as the lengths say.
    call(|out, stream| unsafe {
        let n = starts.len();
        sys::mlx_slice(
            out,
            x.as_ptr(),
            starts.as_ptr(),
            n,
            stops.as_ptr(),
            n,
            strides.as_ptr(),
            n,
            stream,
        )
    })
}

/// `x` with `update` written at `start` along `axis`; in place if this is the only handle of `x`.
pub fn slice_update(x: &Array, update: &Array, axis: usize, start: i32) -> Result<Array> {
    let shape = x.shape();
    let (mut starts, mut stops) = (vec![0; shape.len()], shape.to_vec());
    (starts[axis], stops[axis]) = (start, start + update.dim(axis as i32));
    let strides = vec![1; shape.len()];
    // SAFETY: the three slices have as many elements as the lengths say.
    call(|out, stream| unsafe {
        let n = starts.len();
        sys::mlx_slice_update(
            out,
            x.as_ptr(),
            update.as_ptr(),
            starts.as_ptr(),
            n,
            stops.as_ptr(),
            n,
            strides.as_ptr(),
            n,
            stream,
        )
    })
}

/// As [`slice_update`], with a start `[1]` on the device.
pub fn slice_update_at(x: &Array, update: &Array, axis: usize, start: &Array) -> Result<Array> {
    let axes = [axis as c_int];
    // SAFETY: `axes` has one element, as the length says.
    call(|out, stream| unsafe {
        sys::mlx_slice_update_dynamic(
            out,
            x.as_ptr(),
            update.as_ptr(),
            start.as_ptr(),
            axes.as_ptr(),
            1,
            stream,
        )
    })
}

/// `x >> shift & mask`, element by element.
pub fn bits(x: &Array, shift: &Array, mask: &Array) -> Result<Array> {
    // SAFETY: the handles are alive during the call.
    let shifted = call(|out, stream| unsafe {
        sys::mlx_right_shift(out, x.as_ptr(), shift.as_ptr(), stream)
    })?;
    // SAFETY: the handles are alive during the call.
    call(|out, stream| unsafe {
        sys::mlx_bitwise_and(out, shifted.as_ptr(), mask.as_ptr(), stream)
    })
}

/// `x << shift`, element by element.
pub fn shift_left(x: &Array, shift: &Array) -> Result<Array> {
    // SAFETY: the handles are alive during the call.
    call(|out, stream| unsafe { sys::mlx_left_shift(out, x.as_ptr(), shift.as_ptr(), stream) })
}
