//! Convolutions of sequences `[batch, length, channels]` with kernels `[output, taps, input / groups]`.
//! MLX's CPU gives the plain ones to BLAS and computes all others, those of single channels, dilated
//! and transposed ones, one element at a time. There, these are sums of shifted products, in float32.

use crate::{
    error::Result,
    mlx::{
        ffi::is_cpu,
        product::{is_half, matmul, single},
        slice,
    },
};
use mlx_rs::{Array, ops};

/// How a kernel moves.
#[derive(Clone, Copy)]
pub(crate) struct Moves {
    /// Steps of the input, or of the output of a transposed convolution, from one place to the next.
    pub stride: i32,
    /// Zeros on both sides, or what the output of a transposed convolution loses there.
    pub padding: i32,
    /// Steps between taps.
    pub dilation: i32,
    /// Groups of channels that see nothing of each other.
    pub groups: i32,
}

impl Moves {
    /// One step at a time, each channel by itself, without padding.
    pub(crate) fn by_channel(channels: i32) -> Self {
        Moves { stride: 1, padding: 0, dilation: 1, groups: channels }
    }

    fn is_by_channel(self, x: &Array, kernel: &Array) -> bool {
        self.groups > 1 && self.groups == x.dim(-1) && self.groups == kernel.dim(0)
    }
}

/// The convolution of a sequence.
pub(crate) fn convolve(x: &Array, kernel: &Array, moves: Moves) -> Result<Array> {
    let Moves { stride, padding, dilation, groups } = moves;
    let by_channel = moves.is_by_channel(x, kernel);
    let taps = kernel.dim(1);
    let output = (x.dim(1) + 2 * padding - dilation * (taps - 1) - 1).div_euclid(stride) + 1;
    let is_slow = by_channel || groups == 1 && dilation > 1;
    // A few steps take no longer than making the graph of the sum.
    if !is_slow || output < taps || !is_cpu()? {
        return Ok(ops::conv1d(x, kernel, stride, padding, dilation, groups)?);
    }
    if is_half(x) {
        return Ok(convolve(&single(x)?, &single(kernel)?, moves)?.as_dtype(x.dtype())?);
    }
    let (batch, channels) = (x.dim(0), x.dim(2));
    // Whole strides, so that what a tap meets is a column of them.
    let strides = (x.dim(1) + 2 * padding + stride - 1) / stride;
    let after = strides * stride - x.dim(1) - padding;
    let padded = ops::pad(x, &[(0, 0), (padding, after), (0, 0)], None, None)?;
    let padded = padded.reshape(&[batch, strides, stride, channels])?;
    let met = |tap: i32| -> Result<Array> {
        let (place, column) = (tap * dilation / stride, tap * dilation % stride);
        let column = slice(&padded, 2, column, column + 1)?.squeeze_axes(&[2])?;
        slice(&column, 1, place, place + output)
    };
    if by_channel {
        return sum((0..taps).map(|tap| {
            let weight = slice(kernel, 1, tap, tap + 1)?.reshape(&[channels])?;
            Ok(met(tap)?.multiply(weight)?)
        }));
    }
    let met = (0..taps).map(met).collect::<Result<Vec<_>>>()?;
    let rows = ops::concatenate(&met, -1)?;
    matmul(&rows, &kernel.reshape(&[kernel.dim(0), taps * channels])?.t())
}

/// The transposed convolution of a sequence, which gains `extra` steps on the right.
pub(crate) fn convolve_transposed(
    x: &Array,
    kernel: &Array,
    moves: Moves,
    extra: i32,
) -> Result<Array> {
    let Moves { stride, padding, dilation, groups } = moves;
    let by_channel = moves.is_by_channel(x, kernel);
    if dilation > 1 || !(by_channel || groups == 1) || !is_cpu()? {
        let y = ops::conv_transpose1d(x, kernel, stride, padding, dilation, extra, groups)?;
        return Ok(y);
    }
    if is_half(x) {
        let y = convolve_transposed(&single(x)?, &single(kernel)?, moves, extra)?;
        return Ok(y.as_dtype(x.dtype())?);
    }
    let [batch, length, channels] = [0, 1, 2].map(|axis| x.dim(axis));
    let (output, taps) = (kernel.dim(0), kernel.dim(1));
    // What each step adds to each of the steps that its taps reach.
    let added = if by_channel {
        x.expand_dims(2)?.multiply(kernel.squeeze_axes(&[2])?.t())?
    } else {
        let weight = kernel.transpose_axes(&[2, 1, 0])?.reshape(&[channels, taps * output])?;
        matmul(x, &weight)?.reshape(&[batch, length, taps, output])?
    };
    let reached = (taps + stride - 1) / stride;
    let missing = (0, reached * stride - taps);
    let added = ops::pad(&added, &[(0, 0), (0, 0), missing, (0, 0)], None, None)?;
    let added = added.reshape(&[batch, length, reached, stride * output])?;
    let whole = sum((0..reached).map(|place| {
        let part = slice(&added, 2, place, place + 1)?.squeeze_axes(&[2])?;
        let around = (place, reached - 1 - place);
        Ok(ops::pad(&part, &[(0, 0), around, (0, 0)], None, None)?)
    }))?;
    let whole = whole.reshape(&[batch, (length + reached - 1) * stride, output])?;
    let end = (length - 1) * stride + taps - padding + extra;
    let missing = (0, (end - whole.dim(1)).max(0));
    let whole = ops::pad(&whole, &[(0, 0), missing, (0, 0)], None, None)?;
    slice(&whole, 1, padding, end)
}

fn sum(mut parts: impl Iterator<Item = Result<Array>>) -> Result<Array> {
    let first = parts.next().expect("a kernel has a tap")?;
    parts.try_fold(first, |sum, part| Ok(sum.add(part?)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mlx::to_vec;
    use mlx_rs::random;

    fn close(found: &Array, expected: &Array, what: &str) {
        assert_eq!(found.shape(), expected.shape(), "{what}");
        let [found, expected] = [found, expected].map(|x| to_vec::<f32>(x).unwrap());
        for (found, expected) in found.iter().zip(&expected) {
            assert!(
                (found - expected).abs() < 1e-5 * (1.0 + expected.abs()),
                "{what}: {found} instead of {expected}"
            );
        }
    }

    /// As MLX convolves, at all kinds of sizes.
    #[test]
    fn sums_of_shifted_products_are_convolutions() {
        let x = random::normal::<f32>(&[2, 23, 6], None, None, None).unwrap();
        let kernel = |output: i32, taps: i32, input: i32| {
            random::normal::<f32>(&[output, taps, input], None, None, None).unwrap()
        };
        for taps in [1, 2, 3, 4, 7] {
            for (stride, padding, dilation) in
                [(1, 0, 1), (2, 3, 1), (1, 2, 3), (3, 1, 2), (2, 0, 2), (5, 4, 1)]
            {
                for groups in [1, 6, 2] {
                    let moves = Moves { stride, padding, dilation, groups };
                    let what = format!("{taps} taps, {stride} {padding} {dilation} {groups}");
                    let w = kernel(6, taps, 6 / groups);
                    let expected = ops::conv1d(&x, &w, stride, padding, dilation, groups).unwrap();
                    close(&convolve(&x, &w, moves).unwrap(), &expected, &what);
                    for extra in [0, 1, stride - 1] {
                        // MLX takes no more away than the taps reach.
                        if padding > dilation * (taps - 1) {
                            continue;
                        }
                        let expected =
                            ops::conv_transpose1d(&x, &w, stride, padding, dilation, extra, groups);
                        let found = convolve_transposed(&x, &w, moves, extra).unwrap();
                        close(&found, &expected.unwrap(), &format!("{what}, transposed, {extra}"));
                    }
                }
            }
        }
    }
}
