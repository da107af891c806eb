//! Rounding of keys to the microscaled formats of MLX (MXFP8, MXFP4, NVFP4) and back, for models
//! trained with such keys. Computes in float32; if blocks do not divide the last axis, the values
//! stay unchanged. Follows `deepseek_v41` of mlx-lm.

use crate::error::Result;
use mlx_rs::{Array, Dtype, ops};

/// Rounds to 8-bit floats (e4m3), of which 32 share a power of two.
pub fn mxfp8(x: &Array) -> Result<Array> {
    by_block(
        x,
        32,
        1e-4,
        |largest| power_of_two(&largest.divide(constant(448.0))?),
        |x| {
            let within = ops::clip(x, (constant(-448.0), constant(448.0)))?;
            Ok(within.to_fp8()?.from_fp8(Dtype::Float32)?)
        },
    )
}

/// Rounds to 4-bit floats (e2m1), of which 32 share a power of two.
pub fn mxfp4(x: &Array) -> Result<Array> {
    let least = 6.0 * f32::MIN_POSITIVE;
    by_block(x, 32, least, |largest| power_of_two(&largest.divide(constant(6.0))?), four_bits)
}

/// Rounds to 4-bit floats (e2m1), of which 16 share an 8-bit float (e4m3).
pub fn nvfp4(x: &Array) -> Result<Array> {
    // The smallest scale above zero is 2⁻⁹.
    let scale = |largest: &Array| -> Result<Array> {
        Ok(largest.divide(constant(6.0))?.to_fp8()?.from_fp8(Dtype::Float32)?)
    };
    by_block(x, 16, 6.0 / 512.0, scale, four_bits)
}

fn constant(value: f32) -> Array {
    Array::from_f32(value)
}

fn by_block(
    x: &Array,
    size: i32,
    least: f32,
    scale: impl FnOnce(&Array) -> Result<Array>,
    round: impl FnOnce(&Array) -> Result<Array>,
) -> Result<Array> {
    if x.dim(-1) % size != 0 {
        return Ok(x.clone());
    }
    let blocks = ops::unflatten(x.as_dtype(Dtype::Float32)?, -1, &[-1, size])?;
    let scale = scale(&ops::maximum(blocks.abs()?.max_axis(-1, true)?, constant(least))?)?;
    let rounded = round(&blocks.divide(&scale)?)?.multiply(scale)?;
    Ok(rounded.flatten(-2, -1)?.as_dtype(x.dtype())?)
}

/// The smallest power of two that is at least `x`.
fn power_of_two(x: &Array) -> Result<Array> {
    Ok(constant(2.0).power(ops::ceil(x.log2()?)?)?)
}

/// Rounds to 0, 0.5, 1, 1.5, 2, 3, 4 or 6 and their negatives.
fn four_bits(x: &Array) -> Result<Array> {
    let within = ops::clip(x, (constant(-6.0), constant(6.0)))?;
    let size = within.abs()?;
    let large = ops::select(size.lt(constant(4.0))?, constant(1.0), constant(2.0))?;
    let distance = ops::select(size.lt(constant(2.0))?, constant(0.5), large)?;
    Ok(within.divide(&distance)?.round(None)?.multiply(distance)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mlx;
    use mlx_rs::random;

    const FOUR_BITS: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

    /// All floats with a 4-bit exponent and a 3-bit mantissa, in order.
    fn eight_bits() -> Vec<f32> {
        let normal = |code: i32| (1.0 + (code % 8) as f32 / 8.0) * f32::powi(2.0, code / 8 - 7);
        let value = |code: i32| if code < 8 { code as f32 / 512.0 } else { normal(code) };
        (0..127).map(value).collect()
    }

    /// The nearest of `values`; of two equally near ones, the one with the even index.
    fn nearest(x: f32, values: &[f32]) -> f32 {
        let mut best = 0;
        for (i, value) in values.iter().enumerate() {
            let (old, new) = ((x.abs() - values[best]).abs(), (x.abs() - value).abs());
            if new < old || new == old && i % 2 == 0 {
                best = i;
            }
        }
        values[best].copysign(x)
    }

    fn check(
        size: usize,
        rounded: fn(&Array) -> Result<Array>,
        naive: impl Fn(&[f32]) -> Vec<f32>,
    ) {
        let x = random::normal::<f32>(&[40 * size as i32], None, None, None).unwrap();
        let mut x: Vec<f32> = mlx::to_vec(&x).unwrap();
        // Ties, values too small for their block, and zeros.
        x[..10].copy_from_slice(&[6.0, 5.0, -3.5, 2.5, 1.75, -1.25, 0.75, 0.25, 1e-9, 0.0]);
        x[size..2 * size].fill(0.0);
        x[2 * size..3 * size].fill(1e-5);
        x[3 * size] = 1e4;
        let expected: Vec<f32> = x.chunks(size).flat_map(naive).collect();
        let x = Array::from_slice(&x, &[5, 8 * size as i32]);
        let found: Vec<f32> = mlx::to_vec(&rounded(&x).unwrap()).unwrap();
        assert_eq!(found, expected);
    }

    #[test]
    fn numbers_become_the_nearest_of_their_format() {
        random::seed(3).unwrap();
        let largest = |block: &[f32]| block.iter().fold(0.0, |m: f32, x| m.max(x.abs()));
        let power = |x: f32| f32::powi(2.0, x.log2().ceil() as i32);
        let scaled = |block: &[f32], scale: f32, values: &[f32]| -> Vec<f32> {
            block.iter().map(|x| nearest(x / scale, values) * scale).collect()
        };
        let bytes = eight_bits();
        check(32, mxfp8, |b| scaled(b, power(largest(b).max(1e-4) / 448.0), &bytes));
        check(32, mxfp4, |b| {
            scaled(b, power(largest(b).max(6.0 * f32::MIN_POSITIVE) / 6.0), &FOUR_BITS)
        });
        check(16, nvfp4, |b| {
            scaled(b, nearest(largest(b).max(6.0 / 512.0) / 6.0, &bytes), &FOUR_BITS)
        });
    }

    #[test]
    fn what_makes_no_blocks_stays() {
        let x = Array::from_slice(&[0.1f32; 24], &[24]);
        for rounded in [mxfp8, mxfp4, nvfp4] {
            let same: Vec<f32> = mlx::to_vec(&rounded(&x).unwrap()).unwrap();
            assert_eq!(same, [0.1; 24]);
        }
    }
}
