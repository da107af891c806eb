//! Choosing the next token, on the device.
//!
//! The order is that of mlx-lm: repetition penalty; log-probabilities; top-p, min-p, top-k, each on
//! what the one before left; temperature; a draw.

use super::GenerateOptions;
use crate::{error::Result, mlx};
use mlx_rs::{
    Array, Dtype,
    ops::{self, indexing},
    random,
};

/// Chooses tokens for one sequence.
pub(crate) struct Sampler {
    options: GenerateOptions,
    key: Array,
    /// The last tokens, `[1, n]`, for the repetition penalty.
    recent: Option<Array>,
}

/// A token that is on its way through the device.
pub(crate) struct Choice {
    /// The token `[1, 1]`.
    pub id: Array,
    /// Its log-probability `[1, 1]` before anything was filtered.
    pub logprob: Array,
}

impl Sampler {
    pub(crate) fn new(options: &GenerateOptions, prompt: &[u32]) -> Result<Self> {
        let seed = options.seed.unwrap_or_else(random_seed);
        let recent =
            (options.repetition_penalty != 1.0 && options.repetition_context > 0).then(|| {
                let tail = &prompt[prompt.len().saturating_sub(options.repetition_context)..];
                Array::from_slice(tail, &[1, tail.len() as i32])
            });
        Ok(Sampler { options: options.clone(), key: random::key(seed)?, recent })
    }

    /// Chooses from logits `[1, 1, vocabulary]`.
    pub(crate) fn choose(&mut self, logits: &Array) -> Result<Choice> {
        let mut logits = logits.reshape(&[1, -1])?.as_dtype(Dtype::Float32)?;
        if let Some(recent) = &self.recent {
            logits = penalize(&logits, recent, self.options.repetition_penalty)?;
        }
        let logprobs = logits.subtract(logits.logsumexp_axis(-1, true)?)?;
        let id = if self.options.temperature == 0.0 {
            indexing::argmax_axis(&logprobs, -1, true)?
        } else {
            let (key, next) = random::split(&self.key, 2)?;
            self.key = next;
            let temperature = Array::from_f32(1.0 / self.options.temperature);
            let kept = self.filter(logprobs.clone())?.multiply(temperature)?;
            random::categorical(&kept, -1, None, &key)?.reshape(&[1, 1])?
        };
        if let Some(recent) = &mut self.recent {
            let joined = ops::concatenate(&[&*recent, &id.as_dtype(recent.dtype())?], 1)?;
            let excess = (joined.dim(1) - self.options.repetition_context as i32).max(0);
            *recent = mlx::slice(&joined, 1, excess, joined.dim(1))?;
        }
        let logprob = indexing::take_along_axis(&logprobs, &id, -1)?;
        Ok(Choice { id, logprob })
    }

    /// Log-probabilities `[1, vocabulary]` with those of excluded tokens at minus infinity.
    fn filter(&self, mut logprobs: Array) -> Result<Array> {
        let GenerateOptions { top_k, top_p, min_p, .. } = self.options;
        if top_p < 1.0 {
            logprobs = filter_top_p(&logprobs, top_p)?;
        }
        if min_p > 0.0 {
            let best = logprobs.max_axis(-1, true)?;
            logprobs = keep_from(&logprobs, &best.add(Array::from_f32(min_p.ln()))?)?;
        }
        let vocabulary = logprobs.dim(-1);
        if top_k > 0 && (top_k as i32) < vocabulary {
            let rest = vocabulary - top_k as i32;
            let order = ops::argpartition_axis(&logprobs, rest, -1)?;
            let excluded = Array::from_f32(f32::NEG_INFINITY);
            let rest = mlx::slice(&order, 1, 0, rest)?;
            logprobs = logprobs.put_along_axis(rest, excluded, -1)?;
        }
        Ok(logprobs)
    }
}

/// Divides positive and multiplies negative logits of recent tokens
/// ([Keskar et al. 2019](https://arxiv.org/abs/1909.05858)).
fn penalize(logits: &Array, recent: &Array, penalty: f32) -> Result<Array> {
    let chosen = indexing::take_along_axis(logits, recent, -1)?;
    let penalty = Array::from_f32(penalty);
    let (less, more) = (chosen.divide(&penalty)?, chosen.multiply(&penalty)?);
    let penalized = ops::select(chosen.lt(Array::from_f32(0.0))?, more, less)?;
    Ok(logits.put_along_axis(recent, penalized, -1)?)
}

/// Keeps the smallest set of most likely tokens that holds a share `top_p` of what is left.
fn filter_top_p(logprobs: &Array, top_p: f32) -> Result<Array> {
    let sorted = ops::sort_axis(logprobs, -1)?;
    let probabilities = sorted.exp()?;
    let above = probabilities.cumsum(-1, true, false)?;
    let first = |a: &Array| mlx::slice(a, 1, 0, 1);
    let total = first(&above)?.add(first(&probabilities)?)?;
    let dropped = above.ge(total.multiply(Array::from_f32(top_p))?)?.sum_axis(-1, true)?;
    let threshold = indexing::take_along_axis(&sorted, &dropped, -1)?;
    keep_from(logprobs, &threshold)
}

fn keep_from(logprobs: &Array, threshold: &Array) -> Result<Array> {
    let excluded = Array::from_f32(f32::NEG_INFINITY);
    Ok(ops::select(logprobs.lt(threshold)?, excluded, logprobs)?)
}

fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(edit: impl FnOnce(&mut GenerateOptions)) -> Sampler {
        let mut options =
            GenerateOptions { temperature: 1.0, seed: Some(7), ..GenerateOptions::default() };
        edit(&mut options);
        Sampler::new(&options, &[0, 3]).unwrap()
    }

    fn kept(edit: impl FnOnce(&mut GenerateOptions), probabilities: &[f32]) -> Vec<usize> {
        let logprobs: Vec<_> = probabilities.iter().map(|p| p.ln()).collect();
        let logprobs = Array::from_slice(&logprobs, &[1, logprobs.len() as i32]);
        let filtered: Vec<f32> = mlx::to_vec(&sampler(edit).filter(logprobs).unwrap()).unwrap();
        (0..filtered.len()).filter(|i| filtered[*i].is_finite()).collect()
    }

    const SKEWED: [f32; 5] = [0.05, 0.4, 0.1, 0.3, 0.15];

    #[test]
    fn filters_keep_what_they_say() {
        assert_eq!(kept(|o| o.top_k = 2, &SKEWED), [1, 3]);
        assert_eq!(kept(|o| o.top_p = 0.69, &SKEWED), [1, 3]);
        assert_eq!(kept(|o| o.top_p = 0.71, &SKEWED), [1, 3, 4]);
        assert_eq!(kept(|o| o.min_p = 0.3, &SKEWED), [1, 3, 4]);
        assert_eq!(kept(|o| (o.top_p, o.top_k) = (0.9, 1), &SKEWED), [1]);
        assert_eq!(kept(|o| o.top_k = 50, &SKEWED), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn recent_tokens_are_penalized_whatever_the_sign_of_their_logit() {
        let logits = Array::from_slice(&[2.0f32, 1.0, 0.5, -3.0], &[1, 4]);
        let recent = Array::from_slice(&[0u32, 3], &[1, 2]);
        let penalized = penalize(&logits, &recent, 2.0).unwrap();
        assert_eq!(mlx::to_vec::<f32>(&penalized).unwrap(), [1.0, 1.0, 0.5, -6.0]);
    }

    #[test]
    fn draws_follow_the_distribution_and_the_seed() {
        let logprobs: Vec<f32> = SKEWED.iter().map(|p| p.ln()).collect();
        let logits = Array::from_slice(&logprobs, &[1, 1, 5]);
        let draw = || {
            let mut sampler = sampler(|_| {});
            let id = |_| sampler.choose(&logits).unwrap().id.try_item_cast::<u32>().unwrap();
            (0..2000).map(id).collect::<Vec<_>>()
        };
        let ids = draw();
        assert_eq!(ids, draw());
        for (id, probability) in SKEWED.iter().enumerate() {
            let share = ids.iter().filter(|drawn| **drawn == id as u32).count() as f32 / 2000.0;
            // Four standard deviations.
            let bound = 4.0 * (probability * (1.0 - probability) / 2000.0).sqrt();
            assert!((share - probability).abs() < bound, "{id}: {share} instead of {probability}");
        }
    }
}
