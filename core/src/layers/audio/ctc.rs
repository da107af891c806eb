//! Greedy decoding of connectionist temporal classification
//! ([Graves et al. 2006](https://doi.org/10.1145/1143844.1143891)).

use crate::{error::Result, mlx};
use mlx_rs::{
    Array, Dtype,
    ops::indexing::{argmax_axis, take_along_axis},
};

/// A token, and the positions where it stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CtcToken {
    /// The token.
    pub id: u32,
    /// Its log-probability at its first position.
    pub logprob: f32,
    /// Its first position.
    pub start: usize,
    /// The position after its last one.
    pub end: usize,
}

/// The most probable token of each position of logits `[1, positions, vocabulary]`, blanks included.
/// Equal neighbours are one token; a blank between them makes them two.
///
/// # Errors
/// [`Error::Mlx`](crate::Error::Mlx).
pub fn greedy(logits: &Array) -> Result<Vec<CtcToken>> {
    let logits = logits.as_dtype(Dtype::Float32)?;
    let logprobs = logits.subtract(logits.logsumexp_axis(-1, true)?)?;
    let ids = argmax_axis(&logprobs, -1, true)?;
    let best: Vec<f32> = mlx::to_vec(&take_along_axis(&logprobs, &ids, -1)?)?;
    let ids: Vec<u32> = mlx::to_vec(&ids)?;
    let mut tokens: Vec<CtcToken> = Vec::new();
    for (at, (id, logprob)) in ids.into_iter().zip(best).enumerate() {
        match tokens.last_mut() {
            Some(last) if last.id == id => last.end = at + 1,
            _ => tokens.push(CtcToken { id, logprob, start: at, end: at + 1 }),
        }
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blank_between_equal_tokens_makes_two_of_them() {
        let places = [1, 1, 0, 1, 2];
        let logits: Vec<f32> = places
            .iter()
            .flat_map(|best| (0..3).map(move |id| f32::from(u8::from(id == *best))))
            .collect();
        let tokens = greedy(&Array::from_slice(&logits, &[1, 5, 3])).unwrap();
        let spans: Vec<_> = tokens.iter().map(|token| (token.id, token.start, token.end)).collect();
        assert_eq!(spans, [(1, 0, 2), (0, 2, 3), (1, 3, 4), (2, 4, 5)]);
    }
}
