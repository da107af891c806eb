//! Linear recurrences `h ← a·h + u`, element by element, as a parallel scan
//! ([Martin and Cundy 2018](https://arxiv.org/abs/1709.04057)): blocks of tokens run side by side, then
//! the states between blocks are a linear recurrence of their own.

use crate::{error::Result, mlx};
use mlx_rs::{Array, ops};

/// Tokens of a block. A verify pass has no more, so that its operations are those of decode steps.
const BLOCK: i32 = 16;

/// The states after each token, `[batch, length, …]`, from the decays and the inputs of the tokens,
/// `[batch, length, …]`, and the state before them, `[batch, …]`; zeros when there is none.
///
/// # Errors
/// [`crate::error::Error::Mlx`].
pub(crate) fn linear_scan(decays: &Array, inputs: &Array, state: Option<&Array>) -> Result<Array> {
    let length = inputs.dim(1);
    if length <= BLOCK {
        return one_by_one(decays, inputs, state);
    }
    let whole = length / BLOCK * BLOCK;
    let cut = |array: &Array, from, to| mlx::slice(array, 1, from, to);
    let states = side_by_side(&cut(decays, 0, whole)?, &cut(inputs, 0, whole)?, state)?;
    if whole == length {
        return Ok(states);
    }
    let last = cut(&states, whole - 1, whole)?.squeeze_axes(&[1])?;
    let rest = one_by_one(&cut(decays, whole, length)?, &cut(inputs, whole, length)?, Some(&last))?;
    Ok(ops::concatenate(&[states, rest], 1)?)
}

fn one_by_one(decays: &Array, inputs: &Array, state: Option<&Array>) -> Result<Array> {
    let at = |array: &Array, token| -> Result<Array> {
        Ok(mlx::slice(array, 1, token, token + 1)?.squeeze_axes(&[1])?)
    };
    let mut states: Vec<Array> = Vec::new();
    for token in 0..inputs.dim(1) {
        let input = at(inputs, token)?;
        states.push(match states.last().or(state) {
            Some(state) => state.multiply(at(decays, token)?)?.add(input)?,
            None => input,
        });
    }
    Ok(ops::stack(&states, 1)?)
}

/// The same for a whole number of blocks.
fn side_by_side(decays: &Array, inputs: &Array, state: Option<&Array>) -> Result<Array> {
    let (shape, blocks) = (inputs.shape(), inputs.dim(1) / BLOCK);
    let tail = &shape[2..];
    let reshaped = |array: &Array, head: &[i32]| array.reshape(&[head, tail].concat());
    let flat = [shape[0] * blocks, BLOCK];
    let decays = reshaped(decays, &flat)?;
    // What each block adds to zeros, and what remains after each token of what was before the block.
    let own = one_by_one(&decays, &reshaped(inputs, &flat)?, None)?;
    let remaining = decays.cumprod(1, None, None)?;
    let last = |array: &Array| -> Result<Array> {
        Ok(reshaped(&mlx::slice(array, 1, BLOCK - 1, BLOCK)?, &[shape[0], blocks])?)
    };
    let ends = linear_scan(&last(&remaining)?, &last(&own)?, state)?;
    let first = match state {
        Some(state) => state.expand_dims(1)?,
        None => ops::zeros_like(mlx::slice(&ends, 1, 0, 1)?)?,
    };
    let starts = ops::concatenate(&[first, mlx::slice(&ends, 1, 0, blocks - 1)?], 1)?;
    let starts = reshaped(&starts, &[shape[0] * blocks, 1])?;
    Ok(own.add(remaining.multiply(starts)?)?.reshape(shape)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(length: i32, from: f32, to: f32) -> Array {
        let phases = ops::arange::<_, f32>(0, length * 6, None).unwrap();
        let unit = ops::sin(phases.multiply(Array::from_f32(1.7)).unwrap()).unwrap();
        let scaled = unit.multiply(Array::from_f32((to - from) / 2.0)).unwrap();
        let values = scaled.add(Array::from_f32((from + to) / 2.0)).unwrap();
        values.reshape(&[2, length, 3]).unwrap()
    }

    /// Lengths below, at and above one block, one block of blocks, and their multiples.
    #[test]
    fn blocks_side_by_side_equal_tokens_one_by_one() {
        for length in [1, 15, 16, 17, 32, 255, 256, 257, 300] {
            let (decays, inputs) = (series(length, 0.2, 1.0), series(length, -2.0, 3.0));
            let state = series(1, -1.0, 1.0).squeeze_axes(&[1]).unwrap();
            for state in [None, Some(&state)] {
                let found = linear_scan(&decays, &inputs, state).unwrap();
                let expected = one_by_one(&decays, &inputs, state).unwrap();
                let apart = found.subtract(expected).unwrap().abs().unwrap();
                let apart: f32 = apart.max(None).unwrap().try_item_cast().unwrap();
                assert!(apart < 1e-5, "{length} tokens: {apart}");
            }
        }
    }
}
