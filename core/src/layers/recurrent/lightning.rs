//! Lightning attention ([Qin et al. 2024](https://arxiv.org/abs/2401.04658)): linear attention whose
//! state decays by a constant of each head. A prefill computes chunks as masked attention.

use crate::{
    error::Result,
    layers::{state::Recurrent, step::Step},
    mlx,
};
use mlx_rs::{Array, Dtype, ops};

/// Tokens that are computed as one block of attention.
const CHUNK: i32 = 128;

/// Queries, which are scaled, keys and values of a pass, `[batch, heads, length, width]`.
pub struct Heads {
    /// Queries.
    pub q: Array,
    /// Keys.
    pub k: Array,
    /// Values.
    pub v: Array,
}

/// Computes `S ← S·decay + k ⊗ v`, `y = q·S` for each token in turn, in float32:
/// `[batch, heads, length, width]`. `log_decay` `[heads, 1, 1]` has the logarithm of each head's
/// decay. The state is `[batch, heads, width, width]`.
///
/// # Errors
/// [`crate::error::Error`].
pub fn lightning_attention(
    heads: &Heads,
    log_decay: &Array,
    state: &mut Recurrent,
    step: &Step,
) -> Result<Array> {
    let heads = heads.map(|a| Ok(a.as_dtype(Dtype::Float32)?))?;
    let (k, length) = (&heads.k, heads.k.dim(2));
    let mut past = match state.get() {
        Some(past) => past.clone(),
        None => ops::zeros::<f32>(&[k.dim(0), k.dim(1), k.dim(3), heads.v.dim(3)])?,
    };
    let (mut parts, mut states) = (Vec::new(), Vec::new());
    let chunk = if step.is_verify() { 1 } else { CHUNK };
    for start in (0..length).step_by(chunk as usize) {
        let part = heads.map(|a| mlx::slice(a, 2, start, length.min(start + chunk)))?;
        let (y, next) = part.chunk(log_decay, &past)?;
        past = next;
        parts.push(y);
        if step.is_verify() {
            states.push(past.clone());
        }
    }
    if step.is_verify() {
        state.set_aside(&states)?;
    } else {
        state.set(past);
    }
    Ok(ops::concatenate(&parts, 2)?)
}

/// The logarithms of the decays `[heads, 1, 1]` of a layer: the negative slopes of ALiBi ([Press et
/// al. 2022](https://arxiv.org/abs/2108.12409)) times a factor of the layer.
///
/// # Errors
/// [`crate::error::Error`].
pub fn log_decays(heads: i32, factor: f32) -> Result<Array> {
    let geometric = |heads: i32| {
        (1..=heads).map(move |i| -(-8.0 * f64::from(i) / f64::from(heads)).exp2() as f32 * factor)
    };
    // Between two powers of two, every second slope of the larger one follows.
    let whole = 1 << heads.ilog2();
    let more = geometric(2 * whole).step_by(2).take((heads - whole) as usize);
    let slopes: Vec<f32> = geometric(whole).chain(more).collect();
    Ok(Array::from_slice(&slopes, &[heads, 1, 1]))
}

impl Heads {
    fn map(&self, change: impl Fn(&Array) -> Result<Array>) -> Result<Self> {
        Ok(Heads { q: change(&self.q)?, k: change(&self.k)?, v: change(&self.v)? })
    }

    /// Tokens as masked attention, plus what the state before them contributes.
    fn chunk(&self, log_decay: &Array, state: &Array) -> Result<(Array, Array)> {
        let Heads { q, k, v } = self;
        let length = q.dim(2);
        if length == 1 {
            let written = k.swap_axes(-1, -2)?.multiply(v)?;
            let state = state.multiply(log_decay.exp()?)?.add(written)?;
            return Ok((q.matmul(&state)?, state));
        }
        let decay = |exponent: Array| -> Result<Array> {
            Ok(exponent.as_dtype(Dtype::Float32)?.multiply(log_decay)?.exp()?)
        };
        let at = ops::arange::<_, i32>(0, length, None)?.expand_dims(1)?;
        let between = ops::tril(decay(at.subtract(at.swap_axes(0, 1)?)?)?, None)?;
        let scores = q.matmul(k.swap_axes(-1, -2)?)?.multiply(between)?;
        let reach = decay(at.add(Array::from_int(1))?)?;
        let y = scores.matmul(v)?.add(q.multiply(reach)?.matmul(state)?)?;
        let rest = decay(Array::from_int(length - 1).subtract(&at)?)?;
        let written = k.multiply(rest)?.swap_axes(-1, -2)?.matmul(v)?;
        let total = decay(Array::from_int(length))?;
        Ok((y, state.multiply(total)?.add(written)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlx_rs::random;

    #[test]
    fn chunks_give_what_the_tokens_give_one_by_one() {
        random::seed(7).unwrap();
        let draw = || random::uniform::<_, f32>(-1.0, 1.0, &[2, 6, 300, 8], None).unwrap();
        let heads = Heads { q: draw(), k: draw(), v: draw() };
        let log_decay = log_decays(6, 1.0).unwrap();
        let run = |lengths: &[i32]| {
            let (mut state, mut parts, mut at) = (Recurrent::default(), Vec::new(), 0);
            for length in lengths {
                let part = heads.map(|a| mlx::slice(a, 2, at, at + length)).unwrap();
                let step = Step::prefill(at, *length);
                parts.push(lightning_attention(&part, &log_decay, &mut state, &step).unwrap());
                at += length;
            }
            parts.push(state.get().unwrap().clone());
            ops::concatenate(&parts, 2).unwrap()
        };
        let expected = run(&[1; 300]);
        for cuts in [vec![300], vec![1, 299], vec![7, 128, 165]] {
            let distance =
                run(&cuts).subtract(&expected).unwrap().abs().unwrap().max(None).unwrap();
            let distance: f32 = distance.try_item_cast().unwrap();
            assert!(distance < 1e-4, "{cuts:?}: {distance}");
        }
    }

    /// The expected values are those of the authors' formula for 6 heads.
    #[test]
    fn slopes_between_powers_of_two_are_those_of_the_next() {
        let slopes: Vec<f32> = mlx::to_vec(&log_decays(6, 2.0).unwrap()).unwrap();
        assert_eq!(slopes, [-0.5, -0.125, -0.03125, -0.0078125, -1.0, -0.25]);
    }
}
