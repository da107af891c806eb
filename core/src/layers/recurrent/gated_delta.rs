//! The gated delta rule: a linear attention whose state decays and, for each key, replaces what it
//! recalls by the new value. Each head has one decay (Gated DeltaNet, [Yang et al.
//! 2024](https://arxiv.org/abs/2412.06464)) or one for each channel of its keys (Kimi Delta
//! Attention, [Kimi Team 2025](https://arxiv.org/abs/2510.26692)). A prefill computes chunks in the
//! WY form of [Yang et al. 2024](https://arxiv.org/abs/2406.06484).

use crate::{
    error::Result,
    layers::{state::Recurrent, step::Step},
    mlx,
};
use mlx_rs::{Array, Dtype, ops};

/// Tokens that are computed at once; a power of two.
const CHUNK: i32 = 64;

/// What the tokens of a pass ask of the state and do to it. Consecutive value heads share a key
/// head.
pub struct DeltaTokens {
    /// Queries `[batch, length, key_heads, key_dim]`, scaled.
    pub q: Array,
    /// Keys `[batch, length, key_heads, key_dim]` of length 1.
    pub k: Array,
    /// Values `[batch, length, value_heads, value_dim]`.
    pub v: Array,
    /// Logarithms of the decays, `[batch, length, value_heads, 1 or key_dim]`.
    pub log_decay: Array,
    /// How far the state moves towards the value, `[batch, length, value_heads]`.
    pub beta: Array,
}

/// Computes `S ← S·decay`, `S ← S + β (v - S·k) ⊗ k`, `y = S·q` for each token in turn, in float32:
/// `[batch, length, value_heads, value_dim]`. The state is
/// `[batch, value_heads, value_dim, key_dim]`.
///
/// # Errors
/// [`crate::error::Error`].
pub(crate) fn delta_rule(t: &DeltaTokens, state: &mut Recurrent, step: &Step) -> Result<Array> {
    let (batch, length, heads, value_dim) = (t.v.dim(0), t.v.dim(1), t.v.dim(2), t.v.dim(3));
    let (key_heads, key_dim) = (t.k.dim(2), t.k.dim(3));
    let grouped = [batch, key_heads, heads / key_heads, value_dim, key_dim];
    let whole = [batch, heads, value_dim, key_dim];
    let past = match state.get() {
        Some(past) => past.reshape(&grouped)?,
        None => ops::zeros::<f32>(&grouped)?,
    };
    let t = Grouped::of(t)?;
    let y = if step.is_verify() {
        let (mut parts, mut states, mut last) = (Vec::new(), Vec::new(), past);
        for at in 0..length {
            let y = t.map(|a| mlx::slice(a, 3, at, at + 1))?.step(&last)?;
            last = y.1;
            parts.push(y.0);
            states.push(last.reshape(&whole)?);
        }
        state.set_aside(&states)?;
        ops::concatenate(&parts, 3)?
    } else {
        let (y, next) = if length == 1 { t.step(&past)? } else { t.chunks(past)? };
        state.set(next.reshape(&whole)?);
        y
    };
    Ok(y.reshape(&[batch, heads, length, value_dim])?.swap_axes(1, 2)?)
}

/// The same in float32, `[batch, key_heads, value heads of each, length, width]`; what heads share
/// has one of them.
struct Grouped {
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    beta: Array,
}

impl Grouped {
    fn of(t: &DeltaTokens) -> Result<Self> {
        let (batch, length, key_heads) = (t.k.dim(0), t.k.dim(1), t.k.dim(2));
        let grouped = |a: &Array, width: i32| -> Result<Array> {
            let a = a.as_dtype(Dtype::Float32)?.reshape(&[batch, length, key_heads, -1, width])?;
            Ok(a.transpose_axes(&[0, 2, 3, 1, 4])?)
        };
        Ok(Grouped {
            q: grouped(&t.q, t.q.dim(3))?,
            k: grouped(&t.k, t.k.dim(3))?,
            v: grouped(&t.v, t.v.dim(3))?,
            log_decay: grouped(&t.log_decay, t.log_decay.dim(3))?,
            beta: grouped(&t.beta, 1)?,
        })
    }

    fn map(&self, change: impl Fn(&Array) -> Result<Array>) -> Result<Self> {
        Ok(Grouped {
            q: change(&self.q)?,
            k: change(&self.k)?,
            v: change(&self.v)?,
            log_decay: change(&self.log_decay)?,
            beta: change(&self.beta)?,
        })
    }

    /// One token. The state before it answers for key and query in one product:
    /// `y = S·decay·q + δ (k·q)` with `δ = β (v - S·decay·k)`.
    fn step(&self, state: &Array) -> Result<(Array, Array)> {
        let decay = self.log_decay.exp()?;
        let asked = ops::concatenate(&[self.k.multiply(&decay)?, self.q.multiply(&decay)?], 3)?;
        let recalled = asked.matmul(state.swap_axes(-1, -2)?)?;
        let delta = self.v.subtract(mlx::slice(&recalled, 3, 0, 1)?)?.multiply(&self.beta)?;
        let overlap = self.k.multiply(&self.q)?.sum_axis(-1, true)?;
        let y = mlx::slice(&recalled, 3, 1, 2)?.add(delta.multiply(overlap)?)?;
        let written = delta.swap_axes(-1, -2)?.multiply(&self.k)?;
        Ok((y, state.multiply(decay)?.add(written)?))
    }

    /// All tokens. Within a chunk, the corrections `δ` of its tokens solve a triangular system whose
    /// inverse does not depend on the state; only the products with the state are sequential.
    fn chunks(&self, mut state: Array) -> Result<(Array, Array)> {
        let length = self.v.dim(3);
        let chunk = CHUNK.min((length as u32).next_power_of_two() as i32);
        let count = (length - 1) / chunk + 1;
        let missing = count * chunk - length;
        // Tokens that are added decay nothing and write nothing.
        let t = self.map(|a| {
            let widths = [(0, 0), (0, 0), (0, 0), (0, missing), (0, 0)];
            let a = ops::pad(a, &widths, None, None)?;
            Ok(ops::unflatten(&a, 3, &[count, chunk])?)
        })?;
        let decay = t.log_decay.cumsum(4, None, None)?;
        let products = causal_products(&ops::stack(&[&t.k, &t.q], 0)?, &t.k, &decay)?;
        let half =
            |i| -> Result<Array> { Ok(mlx::slice(&products, 0, i, i + 1)?.squeeze_axes(&[0])?) };
        let solve = unit_inverse(&half(0)?.multiply(&t.beta)?)?;
        let seen = half(1)?;
        let reach = decay.exp()?;
        let last = mlx::slice(&decay, 4, chunk - 1, chunk)?;
        let values = solve.matmul(t.v.multiply(&t.beta)?)?;
        let keys = solve.matmul(t.k.multiply(&reach)?.multiply(&t.beta)?)?;
        let queries = t.q.multiply(&reach)?;
        let writes = t.k.multiply(last.subtract(&decay)?.exp()?)?;
        let total = last.exp()?;
        let mut parts = Vec::new();
        for i in 0..count {
            let at = |a: &Array| -> Result<Array> {
                Ok(mlx::slice(a, 3, i, i + 1)?.squeeze_axes(&[3])?)
            };
            let recalled = state.swap_axes(-1, -2)?;
            let delta = at(&values)?.subtract(at(&keys)?.matmul(&recalled)?)?;
            parts.push(at(&queries)?.matmul(recalled)?.add(at(&seen)?.matmul(&delta)?)?);
            let written = delta.swap_axes(-1, -2)?.matmul(at(&writes)?)?;
            state = state.multiply(at(&total)?)?.add(written)?;
        }
        Ok((mlx::slice(&ops::concatenate(&parts, 3)?, 3, 0, length)?, state))
    }
}

/// The products of rows and columns `[…, chunk, width]` of which the column is not later, each
/// decayed over the tokens from the column to the row: `[…, chunk, chunk]`, lower triangular.
/// `decay` are sums of logarithms up to and including each token.
fn causal_products(rows: &Array, columns: &Array, decay: &Array) -> Result<Array> {
    if decay.dim(-1) == 1 {
        let between = decay.subtract(decay.swap_axes(-1, -2)?)?;
        let products = rows.matmul(columns.swap_axes(-1, -2)?)?;
        return Ok(products.multiply(ops::tril(between.exp()?, None)?)?);
    }
    // A product of two factors, one a token, which must not overflow. Both are at most 1 where they
    // are relative to a token between row and column: blocks are joined around their borders.
    let diagonal = rows.multiply(columns)?.sum_axis(-1, true)?.expand_dims(-1)?;
    let chunk = columns.dim(-2);
    join_blocks(diagonal, chunk, |half, _| {
        let [_, rows] = halves(rows, half)?;
        let [columns, _] = halves(columns, half)?;
        let [before, after] = halves(decay, half)?;
        let border = mlx::slice(&before, before.ndim() - 2, half - 1, half)?;
        let rows = rows.multiply(after.subtract(&border)?.exp()?)?;
        let columns = columns.multiply(border.subtract(before)?.exp()?)?;
        Ok(rows.matmul(columns.swap_axes(-1, -2)?)?)
    })
}

/// The inverse of `1 + a`, where `a` `[…, chunk, chunk]` is taken to be strictly lower triangular:
/// that of `[[P, 0], [B, Q]]` is `[[P⁻¹, 0], [-Q⁻¹·B·P⁻¹, Q⁻¹]]`.
fn unit_inverse(a: &Array) -> Result<Array> {
    let (chunk, axes) = (a.dim(-1), a.ndim() - 2);
    let outer: i32 = a.shape()[..axes].iter().product();
    let mut ones = a.shape()[..axes].to_vec();
    ones.extend([chunk, 1, 1]);
    join_blocks(ops::ones::<f32>(&ones)?, chunk, |half, inverses| {
        // The blocks below the diagonal ones, as they lie in memory.
        let (size, row) = (i64::from(half), i64::from(chunk));
        let strides = [row * row, 2 * size * (row + 1), row, 1];
        let blocks = [outer, chunk / (2 * half), half, half];
        let below = a.as_strided(&blocks[..], &strides[..], (half * chunk) as usize)?;
        let [first, second] = pairs(inverses)?;
        let below = below.reshape(first.shape())?;
        Ok(second.matmul(below)?.matmul(first)?.negative()?)
    })
}

/// Makes blocks `[…, chunk, 1, 1]` on a diagonal twice as large, again and again, up to
/// `[…, chunk, chunk]`. `below` gets their size and the blocks, and gives the block below each pair.
fn join_blocks(
    mut blocks: Array,
    chunk: i32,
    below: impl Fn(i32, &Array) -> Result<Array>,
) -> Result<Array> {
    let mut half = 1;
    while half < chunk {
        let below = below(half, &blocks)?;
        let [first, second] = pairs(&blocks)?;
        let above = ops::zeros_like(&below)?;
        let top = ops::concatenate(&[&ops::broadcast_to(first, below.shape())?, &above], -1)?;
        let bottom = ops::concatenate(&[&below, &ops::broadcast_to(second, below.shape())?], -1)?;
        blocks = ops::concatenate(&[top, bottom], -2)?;
        half *= 2;
    }
    Ok(blocks.squeeze_axes(&[-3])?)
}

/// The first and the second of each two blocks `[…, blocks, size, size]`.
fn pairs(blocks: &Array) -> Result<[Array; 2]> {
    let axis = blocks.ndim() - 3;
    both(&ops::unflatten(blocks, axis as i32, &[-1, 2])?, axis + 1)
}

/// The first and the second half of each `2 · half` tokens `[…, length, width]`:
/// `[…, length / (2 · half), half, width]`.
fn halves(x: &Array, half: i32) -> Result<[Array; 2]> {
    let axis = x.ndim() - 2;
    both(&ops::unflatten(x, axis as i32, &[-1, 2, half])?, axis + 1)
}

fn both(x: &Array, axis: usize) -> Result<[Array; 2]> {
    let part =
        |i| -> Result<Array> { Ok(mlx::slice(x, axis, i, i + 1)?.squeeze_axes(&[axis as i32])?) };
    Ok([part(0)?, part(1)?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlx_rs::random;

    fn uniform(low: f32, high: f32, shape: &[i32]) -> Array {
        random::uniform::<_, f32>(low, high, shape, None).unwrap()
    }

    fn unit(x: &Array) -> Array {
        x.divide(x.square().unwrap().sum_axis(-1, true).unwrap().sqrt().unwrap()).unwrap()
    }

    /// Two rows, three key heads, six value heads.
    fn tokens(length: i32, channels: i32, decay: f32) -> DeltaTokens {
        let keys = [2, length, 3, 8];
        DeltaTokens {
            q: unit(&uniform(-1.0, 1.0, &keys)),
            // All keys are near each other, so that each token corrects those before it.
            k: unit(&uniform(0.2, 1.0, &keys)),
            v: uniform(-1.0, 1.0, &[2, length, 6, 4]),
            log_decay: uniform(-decay, 0.0, &[2, length, 6, channels]),
            beta: uniform(0.0, 2.0, &[2, length, 6]),
        }
    }

    fn run(t: &DeltaTokens, lengths: &[i32]) -> (Array, Array) {
        let (mut state, mut parts, mut at) = (Recurrent::default(), Vec::new(), 0);
        for length in lengths {
            let cut = |a: &Array| mlx::slice(a, 1, at, at + length).unwrap();
            let (q, k, v) = (cut(&t.q), cut(&t.k), cut(&t.v));
            let part = DeltaTokens { q, k, v, log_decay: cut(&t.log_decay), beta: cut(&t.beta) };
            parts.push(delta_rule(&part, &mut state, &Step::prefill(at, *length)).unwrap());
            at += length;
        }
        (ops::concatenate(&parts, 1).unwrap(), state.get().unwrap().clone())
    }

    fn distance(a: &Array, b: &Array) -> f32 {
        assert_eq!(a.shape(), b.shape());
        let distance = a.subtract(b).unwrap().abs().unwrap().max(None).unwrap();
        distance.try_item_cast().unwrap()
    }

    #[test]
    fn chunks_give_what_the_tokens_give_one_by_one() {
        random::seed(5).unwrap();
        // The strongest decays are those of a head that forgets everything at once.
        for (channels, decay) in [(1, 0.1), (1, 90.0), (8, 0.1), (8, 5.0), (8, 90.0)] {
            for length in [2, 5, 64, 65, 150] {
                let t = tokens(length, channels, decay);
                let (y, state) = run(&t, &vec![1; length as usize]);
                for cuts in
                    [vec![length], vec![1, length - 1], vec![length / 2, length - length / 2]]
                {
                    let (chunked, last) = run(&t, &cuts);
                    let distances = (distance(&chunked, &y), distance(&last, &state));
                    // The logarithms of 64 tokens add up to thousands.
                    let near = 1e-4;
                    assert!(
                        distances.0 < near && distances.1 < near,
                        "{length} tokens as {cuts:?}, {channels} decays up to {decay}: {distances:?}"
                    );
                }
            }
        }
    }
}
