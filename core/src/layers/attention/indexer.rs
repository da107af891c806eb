//! The parts that indexers share: small attentions that choose the visible keys of a large one.

use crate::layers::feed_forward::router::first_top_k;
use crate::{error::Result, mlx};
use mlx_rs::{Array, Dtype, ops};

/// The sum over heads of the scores `[batch, heads, length, keys]` that `weigh` computes from some or
/// all of the queries `[batch, heads, length, dims]` and of the weights `[batch, heads, length, 1]`;
/// `weights` are `[batch, length, heads]`. Returns `[batch, 1, length, keys]`.
pub(crate) fn sum_over_heads(
    q: &Array,
    weights: &Array,
    weigh: impl Fn(&Array, &Array) -> Result<Array>,
) -> Result<Array> {
    let weights = weights.swap_axes(1, 2)?.expand_dims(-1)?;
    if q.dim(2) == 1 {
        return Ok(weigh(q, &weights)?.sum_axis(1, true)?);
    }
    // The scores of all heads together would take too much memory.
    let head = |i| weigh(&mlx::slice(q, 1, i, i + 1)?, &mlx::slice(&weights, 1, i, i + 1)?);
    (1..q.dim(1)).try_fold(head(0)?, |sum, i| Ok(sum.add(head(i)?)?))
}

/// The best of each block of `size` scores `[…, keys]`, as `[…, blocks]`; the last block may not be
/// full.
pub(crate) fn best_of_blocks(scores: &Array, size: i32) -> Result<Array> {
    let count = scores.dim(-1);
    let blocks = (count - 1) / size + 1;
    let mut padding = vec![(0, 0); scores.ndim()];
    if let Some((_, after)) = padding.last_mut() {
        *after = blocks * size - count;
    }
    let never = mlx::scalar(f32::NEG_INFINITY, scores.dtype())?;
    let whole = ops::pad(scores, padding.as_slice(), never, None)?;
    Ok(ops::unflatten(&whole, -1, &[blocks, size])?.max_axis(-1, false)?)
}

/// A mask `[…, count]` of the keys in the top `most` blocks of `size` keys, by the scores
/// `[…, blocks]`; there are more blocks than `most`.
pub(crate) fn keys_of_best(scores: &Array, most: i32, [size, count]: [i32; 2]) -> Result<Array> {
    let ids = first_top_k(scores, most)?;
    let none = ops::zeros_dtype(scores.shape(), Dtype::Bool)?;
    let chosen = none.put_along_axis(&ids, Array::from_bool(true), -1)?.expand_dims(-1)?;
    let wide = [scores.shape(), &[size]].concat();
    let keys = ops::broadcast_to(&chosen, &wide)?.flatten(-2, -1)?;
    mlx::slice(&keys, scores.ndim() - 1, 0, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_the_best_blocks_are_chosen() {
        mlx_rs::random::seed(11).unwrap();
        for (count, size, most) in [(7, 1, 3), (12, 4, 2), (13, 4, 3), (9, 5, 1), (20, 3, 6)] {
            let scores = mlx_rs::random::normal::<f32>(&[2, 3, count], None, None, None).unwrap();
            let blocks = best_of_blocks(&scores, size).unwrap();
            let found = keys_of_best(&blocks, most, [size, count]).unwrap();
            assert_eq!(found.shape(), [2, 3, count]);
            let found: Vec<bool> = mlx::to_vec(&found).unwrap();
            let scores: Vec<f32> = mlx::to_vec(&scores).unwrap();
            let rows = scores.chunks(count as usize).zip(found.chunks(count as usize));
            for (scores, found) in rows {
                let best = |block: &[f32]| block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let blocks: Vec<f32> = scores.chunks(size as usize).map(best).collect();
                let better = |i: usize| blocks.iter().filter(|other| **other > blocks[i]).count();
                let expected: Vec<bool> = (0..scores.len())
                    .map(|key| better(key / size as usize) < most as usize)
                    .collect();
                assert_eq!(found, expected, "{most} blocks of {size} in {count} keys");
            }
        }
    }

    #[test]
    fn heads_are_summed_all_at_once_or_one_by_one() {
        mlx_rs::random::seed(13).unwrap();
        let random =
            |shape: &[i32]| mlx_rs::random::normal::<f32>(shape, None, None, None).unwrap();
        for length in [1, 4] {
            let (q, keys) = (random(&[2, 3, length, 5]), random(&[2, 1, 5, 6]));
            let weights = random(&[2, length, 3]);
            let sum = sum_over_heads(&q, &weights, |q, weights| {
                Ok(q.matmul(&keys)?.multiply(weights)?)
            });
            let sum = sum.unwrap();
            assert_eq!(sum.shape(), [2, 1, length, 6]);
            let values = |x: &Array| -> Vec<f32> { mlx::to_vec(x).unwrap() };
            let (q, keys, weights, sum) =
                (values(&q), values(&keys), values(&weights), values(&sum));
            let at = |row: i32, columns: i32, column: i32| (row * columns + column) as usize;
            for (i, found) in (0..).zip(sum) {
                let (batch, token, key) = (i / 6 / length, i / 6 % length, i % 6);
                let product = |head: i32, d: i32| {
                    q[at((batch * 3 + head) * length + token, 5, d)]
                        * keys[at(batch * 5 + d, 6, key)]
                };
                let weight = |head| weights[at(batch * length + token, 3, head)];
                let expected: f32 = (0..3)
                    .map(|head| weight(head) * (0..5).map(|d| product(head, d)).sum::<f32>())
                    .sum();
                assert!((found - expected).abs() < 1e-4, "{found}, not {expected}");
            }
        }
    }
}
