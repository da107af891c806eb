//! WKV 7, the recurrence of RWKV-7 ([Peng et al. 2025](https://arxiv.org/abs/2503.14456)): a delta rule
//! with a decay for each channel of the keys. A chunk of tokens is computed at once, in the
//! representation of [Yang et al. 2024](https://arxiv.org/abs/2406.06484). Follows the authors' kernels,
//! which keep the state in float32.

use crate::{
    error::Result,
    layers::{state::Recurrent, step::Step},
    mlx,
};
use mlx_rs::{Array, Dtype, ops};

/// Tokens that are computed at once. A decay is never below `exp(-exp(-1/2))`, so the decay over a
/// chunk is above `1e-5`, and what is divided by it keeps its precision.
const CHUNK: i32 = 16;

/// What the recurrence `S ← S·diag(w) + (S·a)⊗b + v⊗k` computes from for a number of tokens: each is
/// `[batch, heads, length, head_dim]`, in float32.
pub struct Wkv7Inputs {
    /// Reads the state: `y = S·r`.
    pub receptance: Array,
    /// The decay `w` of each channel of the keys, between `exp(-exp(-1/2))` and 1.
    pub decay: Array,
    /// The keys `k`.
    pub key: Array,
    /// The values `v`.
    pub value: Array,
    /// What is taken out of the state, `a`.
    pub removal: Array,
    /// Where it is put back, `b`.
    pub replacement: Array,
}

impl Wkv7Inputs {
    /// Splits heads of `[batch, length, heads, head_dim]` and converts to float32.
    ///
    /// # Errors
    /// [`crate::error::Error::Mlx`].
    pub fn of_heads(self) -> Result<Self> {
        self.map(|x| Ok(x.as_dtype(Dtype::Float32)?.swap_axes(1, 2)?))
    }

    fn map(&self, change: impl Fn(&Array) -> Result<Array>) -> Result<Self> {
        Ok(Wkv7Inputs {
            receptance: change(&self.receptance)?,
            decay: change(&self.decay)?,
            key: change(&self.key)?,
            value: change(&self.value)?,
            removal: change(&self.removal)?,
            replacement: change(&self.replacement)?,
        })
    }

    fn slice(&self, start: i32, end: i32) -> Result<Self> {
        self.map(|x| mlx::slice(x, 2, start, end))
    }
}

/// All tokens of a pass, to `[batch, heads, length, head_dim]`. The state is
/// `[batch, heads, head_dim, head_dim]`, values by keys.
///
/// # Errors
/// [`crate::error::Error::Mlx`].
pub fn wkv7(inputs: &Wkv7Inputs, state: &mut Recurrent, step: &Step) -> Result<Array> {
    let key = &inputs.key;
    let (batch, heads, length, head_dim) = (key.dim(0), key.dim(1), key.dim(2), key.dim(3));
    let mut matrix = match state.get() {
        Some(matrix) => matrix.clone(),
        None => ops::zeros::<f32>(&[batch, heads, head_dim, head_dim])?,
    };
    let (mut parts, mut states) = (Vec::new(), Vec::new());
    // The tokens of a verify pass are computed as decode steps are.
    let size = if step.is_verify() { 1 } else { CHUNK };
    for start in (0..length).step_by(size as usize) {
        let end = length.min(start + size);
        let tokens = inputs.slice(start, end)?;
        let (y, next) =
            if end - start == 1 { one(&tokens, &matrix) } else { chunk(&tokens, &matrix) }?;
        matrix = next;
        parts.push(y);
        states.push(matrix.clone());
    }
    if step.is_verify() {
        state.set_aside(&states)?;
    } else {
        state.set(matrix);
    }
    Ok(if parts.len() == 1 { parts.remove(0) } else { ops::concatenate(&parts, 2)? })
}

/// One token by the recurrence itself: `y` and the state after it.
fn one(t: &Wkv7Inputs, state: &Array) -> Result<(Array, Array)> {
    let column = |x: &Array| x.swap_axes(-1, -2);
    let removed = state.matmul(column(&t.removal)?)?;
    let state = state.multiply(&t.decay)?;
    let state = state.add(removed.multiply(&t.replacement)?)?;
    let state = state.add(column(&t.value)?.multiply(&t.key)?)?;
    Ok((column(&state.matmul(column(&t.receptance)?)?)?, state))
}

/// A chunk of tokens: `y` and the state after it. With the decays divided out of the state, what each
/// token takes out of it is the solution of a triangular system.
fn chunk(t: &Wkv7Inputs, state: &Array) -> Result<(Array, Array)> {
    let length = t.key.dim(2);
    let transposed = |x: &Array| x.swap_axes(-1, -2);
    let total = t.decay.cumprod(2, None, None)?;
    let removal = t.removal.multiply(total.divide(&t.decay)?)?;
    let receptance = t.receptance.multiply(&total)?;
    let (keys, replacements) = (t.key.divide(&total)?, t.replacement.divide(&total)?);
    let reads = transposed(state)?;
    let before = ops::tri::<f32>(length, None, Some(-1))?;
    let so_far = ops::tri::<f32>(length, None, None)?;
    let between = |left: &Array, right: &Array, mask: &Array| -> Result<Array> {
        Ok(left.matmul(transposed(right)?)?.multiply(mask)?)
    };
    let from_keys = between(&removal, &keys, &before)?.matmul(&t.value)?;
    let removed = removal.matmul(&reads)?.add(from_keys)?;
    let removed = solve(between(&removal, &replacements, &before)?, removed)?;
    let y = receptance.matmul(&reads)?;
    let y = y.add(between(&receptance, &keys, &so_far)?.matmul(&t.value)?)?;
    let y = y.add(between(&receptance, &replacements, &so_far)?.matmul(&removed)?)?;
    let next = state.add(transposed(&t.value)?.matmul(keys)?)?;
    let next = next.add(transposed(&removed)?.matmul(replacements)?)?;
    Ok((y, next.multiply(mlx::slice(&total, 2, length - 1, length)?)?))
}

/// The `x` of `x = l·x + y` with `l` strictly lower triangular, `[…, length, length]`: the sum of all
/// powers of `l`, which ends at its size, as the product of `1 + l`, `1 + l²`, `1 + l⁴` and so on.
fn solve(mut l: Array, y: Array) -> Result<Array> {
    let (mut x, mut power) = (y, 1);
    while power < l.dim(-1) {
        x = x.add(l.matmul(&x)?)?;
        l = l.matmul(&l)?;
        power *= 2;
    }
    Ok(x)
}
