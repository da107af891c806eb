//! Which tokens may follow: no annotations, and times in pairs that never go back. The rules are those of
//! the code of OpenAI; ports of it have lost the order of times.

use crate::{error::Result, generate::transcription::vocabulary::Vocabulary};
use mlx_rs::{
    Array, Dtype,
    ops::{self, indexing::take_along_axis},
    random,
};
use std::ops::Range;

/// The last time of the first token, in steps of 20 ms: one second.
const LAST_FIRST_TIME: u32 = 50;

/// The rules of one window.
pub(super) struct Rules<'v> {
    pub vocabulary: &'v Vocabulary,
    pub has_times: bool,
}

/// A token and its log-probability under the rules, still on the device: `[1, 1]` each.
pub(super) struct Chosen {
    pub id: Array,
    pub logprob: Array,
}

impl Rules<'_> {
    /// Chooses a token after those of the window so far, from logits `[vocabulary]`; greedily without
    /// a random `key`.
    pub fn choose(
        &self,
        logits: &Array,
        sampled: &[u32],
        temperature: f32,
        key: Option<&Array>,
    ) -> Result<Chosen> {
        let vocabulary = self.vocabulary;
        let size = vocabulary.size as i32;
        let logits = logits.reshape(&[1, size])?.as_dtype(Dtype::Float32)?;
        let mask = Array::from_slice(&self.mask(sampled), &[1, size]);
        let mut logits = logits.add(mask)?;
        if self.has_times {
            let first = vocabulary.first_timestamp as i32;
            let text = crate::mlx::slice(&logits, 1, 0, first)?;
            let times = crate::mlx::slice(&logits, 1, first, size)?;
            // A time is due when all times together are more probable than any text.
            let is_due = times.logsumexp_axis(-1, true)?.gt(text.max_axis(-1, true)?)?;
            let never = ops::full::<f32>(&[1, first], Array::from_f32(f32::NEG_INFINITY))?;
            logits = ops::concatenate(&[ops::select(is_due, never, text)?, times], 1)?;
        }
        let logprobs = logits.subtract(logits.logsumexp_axis(-1, true)?)?;
        let id = match key {
            Some(key) if temperature > 0.0 => {
                let scaled = logprobs.divide(Array::from_f32(temperature))?;
                random::categorical(&scaled, -1, None, key)?.reshape(&[1, 1])?
            }
            _ => ops::indexing::argmax_axis(&logprobs, -1, true)?,
        };
        let logprob = take_along_axis(&logprobs, &id, -1)?;
        Ok(Chosen { id, logprob })
    }

    /// 0 for each token that may follow, minus infinity for the others.
    fn mask(&self, sampled: &[u32]) -> Vec<f32> {
        let vocabulary = self.vocabulary;
        let mut mask = vec![0.0; vocabulary.size as usize];
        let mut forbid = |ids: Range<u32>| {
            let end = (ids.end as usize).min(mask.len());
            let start = (ids.start as usize).min(end);
            mask[start..end].fill(f32::NEG_INFINITY);
        };
        let is_first = sampled.is_empty();
        let blank = vocabulary.blank.iter().filter(|_| is_first);
        vocabulary.suppressed.iter().chain(blank).for_each(|id| forbid(*id..*id + 1));
        if !self.has_times {
            return mask;
        }
        let (first, all) = (vocabulary.first_timestamp, vocabulary.size);
        forbid(vocabulary.no_timestamps..vocabulary.no_timestamps + 1);
        let is_time = |back: usize| {
            let place = sampled.len().checked_sub(back);
            place.map(|place| vocabulary.is_timestamp(sampled[place]))
        };
        let (was_time, was_time_before) = (is_time(1) == Some(true), is_time(2) != Some(false));
        match (was_time, was_time_before) {
            (true, true) => forbid(first..all),
            (true, false) => forbid(0..vocabulary.end),
            (false, _) => {}
        }
        if let Some(last) = sampled.iter().rev().find(|id| vocabulary.is_timestamp(**id)) {
            // A segment has a length; the time that ends one may also begin the next.
            forbid(first..if was_time && !was_time_before { *last } else { last + 1 });
        }
        if is_first {
            forbid(0..first);
            forbid(first + LAST_FIRST_TIME + 1..all);
        }
        mask
    }
}
