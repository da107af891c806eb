//! Log-probabilities of given tokens under a model, and the logits of the next token.

use crate::{
    error::{Error, Result},
    layers::{cache_plan::CachePlan, embedded::Embedded, feed_forward::router::top_k},
    mlx,
    models::{decode_step::prefill_embedded, language::LanguageModel},
};
use mlx_rs::{Array, Dtype, ops::indexing::take_along_axis};

/// The tokens of one prefill chunk.
const CHUNK: usize = 512;
/// The positions whose logits are in memory at a time.
const ROWS: i32 = 64;

/// Log-probabilities (natural) of a sequence under a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// The log-probability of each token, given those before it; `None` for the first, and
    /// for tokens that the model reads and never writes.
    pub logprobs: Vec<Option<f32>>,
    /// For each position, the most probable next tokens and their log-probabilities, best first.
    pub top: Vec<Vec<(u32, f32)>>,
}

/// Scores `tokens`, with the `count` most probable tokens after each. `chunk` embeds those from a
/// position on, as many as it is asked for where that cuts no span.
pub(crate) fn score(
    model: &dyn LanguageModel,
    tokens: &[u32],
    count: usize,
    chunk: impl Fn(usize, usize) -> Result<Embedded>,
) -> Result<Score> {
    let mut cache = model.cache(&CachePlan::new(tokens.len()));
    cache.expect_length(tokens.len());
    let mut score = Score { logprobs: vec![None], top: Vec::new() };
    let mut done = 0;
    while done < tokens.len() {
        let embedded = chunk(done, CHUNK)?;
        let hidden = prefill_embedded(model, &embedded, &mut cache)?;
        done += embedded.length();
        for start in (0..hidden.dim(1)).step_by(ROWS as usize) {
            let rows = mlx::slice(&hidden, 1, start, hidden.dim(1).min(start + ROWS))?;
            score.extend(&model.logits(&rows)?, tokens, count)?;
        }
    }
    score.logprobs.truncate(tokens.len());
    Ok(score)
}

/// The logits after the last of `length` tokens, which `chunk` embeds as in [`score`].
pub(crate) fn next_logits(
    model: &dyn LanguageModel,
    length: usize,
    chunk: impl Fn(usize, usize) -> Result<Embedded>,
) -> Result<Vec<f32>> {
    let mut cache = model.cache(&CachePlan::new(length));
    cache.expect_length(length);
    let (mut done, mut last) = (0, None);
    while done < length {
        let embedded = chunk(done, CHUNK)?;
        let hidden = prefill_embedded(model, &embedded, &mut cache)?;
        done += embedded.length();
        last = Some(mlx::slice(&hidden, 1, hidden.dim(1) - 1, hidden.dim(1))?);
    }
    let last = last.ok_or(Error::EmptyPrompt)?;
    mlx::to_vec(&model.logits(&last)?.as_dtype(Dtype::Float32)?)
}

/// Scores each of `tokens` by the logits before it, `[1, tokens, vocabulary]`.
pub(crate) fn score_given(logits: &Array, tokens: &[u32], count: usize) -> Result<Score> {
    let mut score = Score { logprobs: Vec::new(), top: Vec::new() };
    let shifted: Vec<u32> = [0].iter().chain(tokens).copied().collect();
    score.extend(logits, &shifted, count)?;
    Ok(score)
}

impl Score {
    /// Adds the positions of logits `[1, rows, vocabulary]`.
    fn extend(&mut self, logits: &Array, tokens: &[u32], count: usize) -> Result<()> {
        let (rows, vocabulary) = (logits.dim(1), logits.dim(2));
        let logits = logits.reshape(&[rows, vocabulary])?.as_dtype(Dtype::Float32)?;
        let logprobs = logits.subtract(logits.logsumexp_axis(-1, true)?)?;
        let done = self.top.len();
        let next: Vec<u32> = (0..rows as usize)
            .map(|row| tokens.get(done + row + 1).copied().unwrap_or(0))
            .collect();
        let is_known = |id: u32| id < vocabulary as u32;
        let known: Vec<u32> = next.iter().map(|id| if is_known(*id) { *id } else { 0 }).collect();
        let found = take_along_axis(&logprobs, Array::from_slice(&known, &[rows, 1]), -1)?;
        for (row, logprob) in mlx::to_vec::<f32>(&found)?.into_iter().enumerate() {
            if logprob.is_nan() {
                return Err(Error::NotANumber { position: done + row });
            }
            self.logprobs.push(is_known(next[row]).then_some(logprob));
        }
        let count = count.min(vocabulary as usize);
        if count == 0 {
            self.top.extend(vec![Vec::new(); rows as usize]);
            return Ok(());
        }
        let ids = if count == vocabulary as usize {
            mlx_rs::ops::argsort_axis(&logprobs, -1)?
        } else {
            top_k(&logprobs, count as i32)?
        };
        let values: Vec<f32> = mlx::to_vec(&take_along_axis(&logprobs, &ids, -1)?)?;
        let ids: Vec<u32> = mlx::to_vec(&ids)?;
        for row in ids.into_iter().zip(values).collect::<Vec<_>>().chunks(count) {
            let mut row = row.to_vec();
            row.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            self.top.push(row);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_the_model_never_writes_has_no_probability() {
        let logits = Array::from_slice(&[0.0_f32; 9], &[1, 3, 3]);
        let score = score_given(&logits, &[2, 3, 1], 0).unwrap();
        let third = Some(-(3.0_f32.ln()));
        let near = |a: &Option<f32>, b: &Option<f32>| match (a, b) {
            (Some(a), Some(b)) => (a - b).abs() < 1e-6,
            (a, b) => a == b,
        };
        assert!(score.logprobs.iter().zip(&[third, None, third]).all(|(a, b)| near(a, b)));
        assert_eq!(score.logprobs.len(), 3);
    }
}
