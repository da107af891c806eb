//! Relative positions ([Dai et al. 2019](https://arxiv.org/abs/1901.02860)): scores by the distance of a query
//! and a key.

use crate::{error::Result, mlx};
use mlx_rs::{Array, ops};

/// Sines and cosines, alternating, of the distances from `length - 1` down to `1 - length`:
/// `[1, 2 length - 1, width]`.
pub fn relative_positions(length: i32, width: i32) -> Array {
    let step = -(10_000_f64.ln()) / f64::from(width);
    let value = |distance: i32, i: i32| {
        let angle = f64::from(distance) * (step * f64::from(i / 2 * 2)).exp();
        (if i % 2 == 0 { angle.sin() } else { angle.cos() }) as f32
    };
    let distances = (1 - length..length).rev();
    let values: Vec<f32> =
        distances.flat_map(|distance| (0..width).map(move |i| value(distance, i))).collect();
    Array::from_slice(&values, &[1, 2 * length - 1, width])
}

/// Scores of distances `[batch, heads, length, 2 length - 1]` to those of keys
/// `[batch, heads, length, length]`: each row begins one distance earlier than the row before.
///
/// # Errors
/// [`Error::Mlx`](crate::Error::Mlx).
pub fn shifted(x: &Array) -> Result<Array> {
    let (batch, heads, length, distances) = (x.dim(0), x.dim(1), x.dim(2), x.dim(3));
    let x = ops::pad(x, &[(0, 0), (0, 0), (0, 0), (1, 0)], None, None)?;
    let x = x.reshape(&[batch, heads, distances + 1, length])?;
    let x = mlx::slice(&x, 2, 1, distances + 1)?.reshape(&[batch, heads, length, distances])?;
    mlx::slice(&x, 3, 0, length)
}
