//! Sampling of the next token, on the device, in the order that [`GenerateOptions`] states.

use crate::generate::{
    choice::Choice,
    constraint::TokenMask,
    options::{GenerateOptions, Xtc},
    penalties::Penalties,
};
use crate::{error::Result, mlx, text::Tokenizer};
use mlx_rs::{
    Array, Dtype,
    ops::{self, indexing},
    random,
};
use std::rc::Rc;

/// Samples the tokens of one sequence. A clone replays the sequence from where it was made.
#[derive(Clone)]
pub(crate) struct Sampler {
    options: Rc<GenerateOptions>,
    penalties: Penalties,
    key: Array,
    /// Tokens that XTC never excludes.
    spared: Rc<[u32]>,
}

impl Sampler {
    /// The sampler of a sequence that begins with `prompt`; `ends` are the tokens that end it.
    pub(crate) fn new(
        options: &GenerateOptions,
        prompt: &[u32],
        ends: &[u32],
        tokenizer: Option<&Tokenizer>,
    ) -> Result<Self> {
        let mut spared = ends.to_vec();
        if options.xtc.is_some()
            && let Some(tokenizer) = tokenizer
        {
            spared.extend(tokenizer.encode("\n", false)?);
        }
        Ok(Sampler {
            penalties: Penalties::new(options, prompt, ends, tokenizer)?,
            key: random::key(options.seed.unwrap_or_else(random_seed))?,
            spared: spared.into(),
            options: Rc::new(options.clone()),
        })
    }

    /// Whether at least one token of a mask stays possible under the options.
    pub(crate) fn can_choose(&self, mask: &TokenMask, vocabulary: u32) -> bool {
        mask.ids().take_while(|id| *id < vocabulary).any(|id| !self.penalties.forbids(id))
    }

    /// Samples at each position of logits `[1, n, vocabulary]`, as [`Sampler::choose`] would one after
    /// the other, the tokens before it being those that are sampled. Returns the sampler after each
    /// position too; its own state stays as it is.
    pub(crate) fn choose_each(&self, logits: &Array) -> Result<(Choice, Vec<Sampler>)> {
        let count = logits.dim(1);
        if self.options.temperature == 0.0 && self.penalties.are_none() {
            let rows = logits.reshape(&[count, -1])?.as_dtype(Dtype::Float32)?;
            let logprobs = rows.subtract(rows.logsumexp_axis(-1, true)?)?;
            let id = indexing::argmax_axis(&logprobs, -1, true)?;
            return Ok((self.reported(&logprobs, id)?, vec![self.clone(); count as usize]));
        }
        let (mut sampler, mut choices, mut samplers) = (self.clone(), Vec::new(), Vec::new());
        for at in 0..count {
            choices.push(sampler.choose(&mlx::slice(logits, 1, at, at + 1)?, None)?);
            samplers.push(sampler.clone());
        }
        Ok((Choice::join(&choices)?, samplers))
    }

    /// Samples from logits `[1, 1, vocabulary]`, from the tokens of `mask` where there is one.
    pub(crate) fn choose(&mut self, logits: &Array, mask: Option<&TokenMask>) -> Result<Choice> {
        let logits = logits.reshape(&[1, -1])?.as_dtype(Dtype::Float32)?;
        let mut logits = self.penalties.apply(logits)?;
        if let Some(mask) = mask {
            logits = mask.apply(&logits)?;
        }
        let logprobs = logits.subtract(logits.logsumexp_axis(-1, true)?)?;
        let id = if self.options.temperature == 0.0 {
            indexing::argmax_axis(&logprobs, -1, true)?
        } else {
            let temperature = Array::from_f32(1.0 / self.options.temperature);
            let kept = self.filter(logprobs.clone())?.multiply(temperature)?;
            let key = self.next_key()?;
            random::categorical(&kept, -1, None, &key)?.reshape(&[1, 1])?
        };
        self.penalties.push(&id)?;
        self.reported(&logprobs, id)
    }

    /// The tokens `[rows, 1]` with what is reported of their log-probabilities `[rows, vocabulary]`.
    fn reported(&self, logprobs: &Array, id: Array) -> Result<Choice> {
        let logprob = indexing::take_along_axis(logprobs, &id, -1)?;
        let top = match self.options.top_logprobs {
            0 => None,
            count => {
                let ids = largest(logprobs, count as i32)?;
                let logprobs = indexing::take_along_axis(logprobs, &ids, -1)?;
                Some((ids, logprobs))
            }
        };
        Ok(Choice { id, logprob, top })
    }

    /// Advances past a token that was sampled before, as if [`Sampler::choose`] had sampled it.
    pub(crate) fn replay(&mut self, id: u32) -> Result<()> {
        if self.options.temperature != 0.0 {
            self.next_key()?;
            self.options.xtc.map(|_| self.next_key()).transpose()?;
        }
        self.penalties.push(&Array::from_slice(&[id], &[1, 1]))
    }

    fn next_key(&mut self) -> Result<Array> {
        let (key, next) = random::split(&self.key, 2)?;
        self.key = next;
        Ok(key)
    }

    /// Log-probabilities `[1, vocabulary]` with those of excluded tokens at minus infinity.
    fn filter(&mut self, mut logprobs: Array) -> Result<Array> {
        let GenerateOptions { top_k, top_p, min_p, typical_p, top_n_sigma, xtc, .. } =
            *self.options;
        if top_n_sigma > 0.0 {
            logprobs = filter_top_n_sigma(&logprobs, top_n_sigma)?;
        }
        if typical_p < 1.0 {
            logprobs = filter_typical(&logprobs, typical_p)?;
        }
        if top_p < 1.0 {
            logprobs = filter_top_p(&logprobs, top_p)?;
        }
        if min_p > 0.0 {
            let best = logprobs.max_axis(-1, true)?;
            logprobs = keep_from(&logprobs, &best.add(Array::from_f32(min_p.ln()))?)?;
        }
        if let Some(xtc) = xtc {
            let draw = random::uniform::<_, f32>(0.0, 1.0, &[1, 1], &self.next_key()?)?;
            logprobs = filter_xtc(&logprobs, xtc, &draw, &self.spared)?;
        }
        let vocabulary = logprobs.dim(-1);
        if top_k > 0 && (top_k as u64) < vocabulary as u64 {
            let best = largest(&logprobs, top_k as i32)?;
            let values = indexing::take_along_axis(&logprobs, &best, -1)?;
            let none = ops::full::<f32>(&[1, vocabulary], Array::from_f32(f32::NEG_INFINITY))?;
            logprobs = none.put_along_axis(&best, values, -1)?;
        }
        Ok(logprobs)
    }
}

/// The ids `[rows, n]` of the largest elements of `[rows, vocabulary]`, in no order.
fn largest(logprobs: &Array, count: i32) -> Result<Array> {
    let vocabulary = logprobs.dim(-1);
    if count == vocabulary {
        let ids = ops::arange::<_, i32>(0, vocabulary, None)?;
        return Ok(ops::broadcast_to(ids, &[logprobs.dim(0), vocabulary])?);
    }
    let order = ops::argpartition_axis(logprobs, vocabulary - count, -1)?;
    mlx::slice(&order, 1, vocabulary - count, vocabulary)
}

/// Keeps the tokens whose log-probability is at most `n` standard deviations below the best.
fn filter_top_n_sigma(logprobs: &Array, n: f32) -> Result<Array> {
    let possible = logprobs.gt(Array::from_f32(f32::NEG_INFINITY))?;
    let count = possible.as_dtype(Dtype::Float32)?.sum_axis(-1, true)?;
    let zero = Array::from_f32(0.0);
    let mean = ops::select(&possible, logprobs, &zero)?.sum_axis(-1, true)?.divide(&count)?;
    let deviation = ops::select(&possible, logprobs.subtract(&mean)?, &zero)?;
    let sigma = deviation.square()?.sum_axis(-1, true)?.divide(&count)?.sqrt()?;
    let best = logprobs.max_axis(-1, true)?;
    keep_from(logprobs, &best.subtract(sigma.multiply(Array::from_f32(n))?)?)
}

/// Keeps the smallest set of tokens, nearest to the expected information first, that holds a share
/// `typical_p` of the remaining probability.
fn filter_typical(logprobs: &Array, typical_p: f32) -> Result<Array> {
    let logprobs_left = logprobs.subtract(logprobs.logsumexp_axis(-1, true)?)?;
    let probabilities = logprobs_left.exp()?;
    let possible = probabilities.gt(Array::from_f32(0.0))?;
    let information = logprobs_left.negative()?;
    let expected =
        ops::select(&possible, probabilities.multiply(&information)?, Array::from_f32(0.0))?
            .sum_axis(-1, true)?;
    let distance = information.subtract(expected)?.abs()?;
    let order = ops::argsort_axis(&distance, -1)?;
    let sum = indexing::take_along_axis(&probabilities, &order, -1)?.cumsum(-1, false, true)?;
    let before = sum.lt(Array::from_f32(typical_p))?.as_dtype(Dtype::Int32)?.sum_axis(-1, true)?;
    let last = ops::minimum(before, Array::from_int(logprobs.dim(-1) - 1))?;
    let farthest = indexing::take_along_axis(&order, &last, -1)?;
    let farthest = indexing::take_along_axis(&distance, &farthest, -1)?;
    let excluded = Array::from_f32(f32::NEG_INFINITY);
    Ok(ops::select(distance.le(farthest)?, logprobs, excluded)?)
}

/// Excludes all tokens above the threshold but the least likely of them, if `draw` `[1, 1]` is at
/// most the probability of XTC.
fn filter_xtc(logprobs: &Array, xtc: Xtc, draw: &Array, spared: &[u32]) -> Result<Array> {
    let probabilities = ops::softmax_axis(logprobs, -1, true)?;
    let above = probabilities.gt(Array::from_f32(xtc.threshold))?;
    let least = ops::select(above, &probabilities, Array::from_f32(f32::INFINITY))?;
    let mut out = probabilities.gt(least.min_axis(-1, true)?)?;
    // A token that was added to the tokenizer may have no logit.
    let vocabulary = logprobs.dim(-1) as u32;
    let spared: Vec<_> = spared.iter().copied().filter(|id| *id < vocabulary).collect();
    if !spared.is_empty() {
        let spared = Array::from_slice(&spared, &[1, spared.len() as i32]);
        out = out.put_along_axis(spared, Array::from_bool(false), -1)?;
    }
    let acts = draw.le(Array::from_f32(xtc.probability))?;
    let excluded = Array::from_f32(f32::NEG_INFINITY);
    Ok(ops::select(out.logical_and(acts)?, excluded, logprobs)?)
}

/// Keeps the smallest set of most probable tokens that holds a share `top_p` of the remaining
/// probability.
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

/// A seed that no other generation has.
pub(crate) fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value as Json;

    fn sampler(edit: impl FnOnce(&mut GenerateOptions)) -> Sampler {
        let mut options =
            GenerateOptions { temperature: 1.0, seed: Some(7), ..GenerateOptions::default() };
        edit(&mut options);
        Sampler::new(&options, &[0, 3], &[1, 23], None).unwrap()
    }

    /// What is kept of these probabilities, which sum to 1.
    fn kept(edit: impl FnOnce(&mut GenerateOptions), probabilities: &[f32]) -> Vec<usize> {
        let logprobs: Vec<_> = probabilities.iter().map(|p| p.ln()).collect();
        let filtered = sampler(edit).filter(row(&logprobs)).unwrap();
        let filtered: Vec<f32> = mlx::to_vec(&filtered).unwrap();
        (0..filtered.len()).filter(|i| filtered[*i].is_finite()).collect()
    }

    fn row(values: &[f32]) -> Array {
        Array::from_slice(values, &[1, values.len() as i32])
    }

    /// Log-probabilities of 300 tokens, no two alike, some of them impossible.
    fn noise(seed: u32) -> Vec<f32> {
        let bits = |i: u32| (i * 7919 + seed * 104_729 + 13) % 300;
        let logits: Vec<_> = (0..300u32)
            .map(|i| if i % 41 == 7 { f64::NEG_INFINITY } else { f64::from(bits(i)) / 40.0 })
            .collect();
        let sum: f64 = logits.iter().map(|x| x.exp()).sum();
        logits.iter().map(|x| (x - sum.ln()) as f32).collect()
    }

    const SKEWED: [f32; 5] = [0.05, 0.4, 0.1, 0.3, 0.15];

    #[test]
    fn each_filter_keeps_the_tokens_of_its_definition() {
        assert_eq!(kept(|o| o.top_k = 2, &SKEWED), [1, 3]);
        assert_eq!(kept(|o| o.top_p = 0.69, &SKEWED), [1, 3]);
        assert_eq!(kept(|o| o.top_p = 0.71, &SKEWED), [1, 3, 4]);
        assert_eq!(kept(|o| o.min_p = 0.3, &SKEWED), [1, 3, 4]);
        assert_eq!(kept(|o| (o.top_p, o.top_k) = (0.9, 1), &SKEWED), [1]);
        assert_eq!(kept(|o| o.top_k = 50, &SKEWED), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn filters_keep_what_mlx_lm_keeps() {
        let fixture = include_str!("../../../tests/fixtures/sampling.json");
        let fixture: Json = serde_json::from_str(fixture).unwrap();
        let number = |json: &Json| json.as_f64().map_or(f32::NEG_INFINITY, |x| x as f32);
        let mut compared = 0;
        for case in fixture["cases"].as_array().unwrap() {
            let Some(expected) = case["filtered"].as_array() else { continue };
            let (mut options, mut spared) = (GenerateOptions::default(), &[][..]);
            for (name, value) in case["options"].as_object().unwrap() {
                let value = value.as_f64().unwrap() as f32;
                match name.as_str() {
                    "top_p" => options.top_p = value,
                    "min_p" => options.min_p = value,
                    "top_k" => options.top_k = value as usize,
                    _ => options.xtc = Some(Xtc { probability: 1.0, threshold: value }),
                }
                if name == "xtc_spared" {
                    spared = &[1, 23];
                }
            }
            let mut sampler = Sampler::new(&options, &[], spared, None).unwrap();
            let logits: Vec<_> = case["logits"].as_array().unwrap().iter().map(number).collect();
            let logits = row(&logits);
            let logprobs = logits.subtract(logits.logsumexp_axis(-1, true).unwrap()).unwrap();
            let filtered: Vec<f32> = mlx::to_vec(&sampler.filter(logprobs).unwrap()).unwrap();
            let expected: Vec<_> = expected.iter().map(number).collect();
            for (ours, theirs) in filtered.iter().zip(&expected) {
                assert!(ours == theirs || (ours - theirs).abs() < 1e-5, "{}", case["options"]);
            }
            compared += 1;
        }
        assert_eq!(compared, 15);
    }

    #[test]
    fn typical_tokens_are_those_of_a_plain_computation() {
        for (seed, typical_p) in [(1, 0.2), (2, 0.5), (3, 0.9), (4, 0.999)] {
            let logprobs = noise(seed);
            let information = |i: usize| -f64::from(logprobs[i]);
            let probability = |i: usize| f64::from(logprobs[i]).exp();
            let mut order: Vec<_> = (0..300).filter(|i| logprobs[*i].is_finite()).collect();
            let expected: f64 = order.iter().map(|i| probability(*i) * information(*i)).sum();
            let distance = |i: usize| (information(i) - expected).abs();
            order.sort_by(|a, b| distance(*a).total_cmp(&distance(*b)));
            let mut sum = 0.0;
            let mut typical: Vec<_> = order
                .into_iter()
                .take_while(|i| {
                    let before = sum;
                    sum += probability(*i);
                    before < f64::from(typical_p)
                })
                .collect();
            typical.sort_unstable();
            let probabilities: Vec<_> = logprobs.iter().map(|x| x.exp()).collect();
            assert_eq!(kept(|o| o.typical_p = typical_p, &probabilities), typical, "{typical_p}");
        }
    }

    #[test]
    fn the_best_tokens_within_n_sigma_are_those_of_a_plain_computation() {
        for (seed, n) in [(1, 0.1), (2, 1.0), (3, 2.0), (4, 9.0)] {
            let logprobs = noise(seed);
            let possible: Vec<_> =
                logprobs.iter().filter(|x| x.is_finite()).map(|x| f64::from(*x)).collect();
            let count = possible.len() as f64;
            let mean = possible.iter().sum::<f64>() / count;
            let variance = possible.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
            let best = possible.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let least = best - f64::from(n) * variance.sqrt();
            let within: Vec<_> = (0..300).filter(|i| f64::from(logprobs[*i]) >= least).collect();
            let probabilities: Vec<_> = logprobs.iter().map(|x| x.exp()).collect();
            let of_possible: Vec<_> =
                within.into_iter().filter(|i| logprobs[*i].is_finite()).collect();
            assert_eq!(kept(|o| o.top_n_sigma = n, &probabilities), of_possible, "{n}");
        }
    }

    #[test]
    fn xtc_acts_as_often_as_it_says_and_spares_the_end() {
        let logprobs = row(&SKEWED.map(f32::ln));
        let xtc = Xtc { probability: 0.25, threshold: 0.12 };
        let mut sampler = sampler(|o| o.xtc = Some(xtc));
        // Of tokens 1, 3 and 4 the last stays; token 1 is an end.
        let count = (0..1000)
            .filter(|_| {
                let kept: Vec<f32> =
                    mlx::to_vec(&sampler.filter(logprobs.clone()).unwrap()).unwrap();
                let excluded = kept[3].is_infinite();
                assert!(kept[1].is_finite() && kept[4].is_finite());
                excluded
            })
            .count();
        // Four standard deviations.
        assert!((195..=305).contains(&count), "{count}");
    }

    #[test]
    fn draws_follow_the_distribution_and_the_seed() {
        let logits = row(&SKEWED.map(f32::ln)).expand_dims(0).unwrap();
        let draws = || {
            let mut sampler = sampler(|_| {});
            (0..2000).map(|_| draw(&mut sampler, &logits)).collect::<Vec<_>>()
        };
        let ids = draws();
        assert_eq!(ids, draws());
        for (id, probability) in SKEWED.iter().enumerate() {
            let share = ids.iter().filter(|drawn| **drawn == id as u32).count() as f32 / 2000.0;
            // Four standard deviations.
            let bound = 4.0 * (probability * (1.0 - probability) / 2000.0).sqrt();
            assert!((share - probability).abs() < bound, "{id}: {share} instead of {probability}");
        }
    }

    #[test]
    fn top_logprobs_come_best_first() {
        let logits = row(&SKEWED.map(f32::ln)).expand_dims(0).unwrap();
        for (count, expected) in [(2, &[1, 3][..]), (5, &[1, 3, 4, 2, 0])] {
            let mut sampler = sampler(|o| o.top_logprobs = count);
            let choice = sampler.choose(&logits, None).unwrap();
            let top = choice.queue([].into_iter()).unwrap().read().unwrap().top;
            assert_eq!(top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), expected);
            assert!(top.iter().all(|(id, p)| (p.exp() - SKEWED[*id as usize]).abs() < 1e-6));
        }
    }

    #[test]
    fn min_tokens_forbids_an_early_end() {
        let logits = row(&[0.0, 9.0, 1.0]).expand_dims(0).unwrap();
        let options = GenerateOptions { min_tokens: 2, ..GenerateOptions::default() };
        let mut sampler = Sampler::new(&options, &[0], &[1], None).unwrap();
        assert_eq!([(); 4].map(|()| draw(&mut sampler, &logits)), [2, 2, 1, 1]);
    }

    fn draw(sampler: &mut Sampler, logits: &Array) -> u32 {
        sampler.choose(logits, None).unwrap().id.try_item_cast().unwrap()
    }

    /// The positions of a verify pass give what single steps give, whatever depends on the tokens.
    #[test]
    fn positions_are_sampled_as_one_after_the_other() {
        type Edit = fn(&mut GenerateOptions);
        let edits: [Edit; 5] = [
            |o| (o.temperature, o.top_logprobs) = (0.0, 3),
            |o| (o.temperature, o.top_logprobs) = (0.0, 12),
            |o| o.top_logprobs = 2,
            |o| (o.repetition_penalty, o.min_tokens) = (1.7, 4),
            |o| o.xtc = Some(Xtc { probability: 0.5, threshold: 0.01 }),
        ];
        let values: Vec<f32> = (0..72).map(|i| ((i * 7 + i / 12 * 5) % 11) as f32 / 8.0).collect();
        let logits = Array::from_slice(&values, &[1, 6, 12]);
        for edit in edits {
            let mut one = sampler(edit);
            let (each, samplers) = one.choose_each(&logits).unwrap();
            let each = each.queue([].into_iter()).unwrap().read_all().unwrap();
            assert_eq!((each.len(), samplers.len()), (6, 6));
            for (at, (found, mut after)) in (0..).zip(each.into_iter().zip(samplers)) {
                let logits = mlx::slice(&logits, 1, at, at + 1).unwrap();
                let choice = one.choose(&logits, None).unwrap();
                let expected = choice.queue([].into_iter()).unwrap().read().unwrap();
                assert_eq!((found.id, found.top), (expected.id, expected.top));
                assert_eq!(found.logprob, expected.logprob);
                assert_eq!(draw(&mut after, &logits), draw(&mut one.clone(), &logits));
            }
        }
    }

    /// Every option that depends on the tokens so far, each alone and all together.
    #[test]
    fn a_clone_replays_the_tokens_that_follow() {
        type Edit = fn(&mut GenerateOptions);
        let edits: [Edit; 8] = [
            |_| {},
            |o| o.min_tokens = 9,
            |o| o.repetition_penalty = 1.7,
            |o| (o.presence_penalty, o.frequency_penalty) = (0.9, 0.4),
            |o| o.dry = Some(crate::generate::Dry { allowed_length: 1, ..Default::default() }),
            |o| o.xtc = Some(Xtc { probability: 0.5, threshold: 0.01 }),
            |o| (o.top_k, o.top_p, o.typical_p) = (40, 0.95, 0.98),
            |o| (o.temperature, o.min_tokens) = (0.0, 5),
        ];
        let all: &dyn Fn(&mut GenerateOptions) = &|o| edits[1..7].iter().for_each(|edit| edit(o));
        let each = edits.iter().map(|edit| edit as &dyn Fn(&mut GenerateOptions));
        // Few tokens with near probabilities, so that each draw and each penalty decides.
        let logits = |step: u32| {
            let logits: Vec<f32> =
                (0..12).map(|id| ((id * 7 + step * 5) % 11) as f32 / 8.0).collect();
            row(&logits).expand_dims(0).unwrap()
        };
        for (which, edit) in each.chain([all]).enumerate() {
            for before in [0, 1, 6, 13] {
                let mut options =
                    GenerateOptions { temperature: 1.0, seed: Some(3), ..Default::default() };
                edit(&mut options);
                let mut sampler = Sampler::new(&options, &[0, 3, 4], &[1, 8], None).unwrap();
                for step in 0..before {
                    draw(&mut sampler, &logits(step));
                }
                let mut clones = [sampler.clone(), sampler.clone()];
                let go_on = |sampler: &mut Sampler| -> Vec<u32> {
                    (before..before + 12).map(|step| draw(sampler, &logits(step))).collect()
                };
                let expected = go_on(&mut sampler);
                for clone in &mut clones {
                    assert_eq!(go_on(clone), expected, "options {which}, after {before} tokens");
                }
            }
        }
    }

    #[test]
    fn a_mask_restricts_every_draw() {
        let logits = row(&SKEWED.map(f32::ln)).expand_dims(0).unwrap();
        let mut sampler =
            sampler(|o| (o.top_p, o.logit_bias) = (0.9, vec![(2, f32::NEG_INFINITY)]));
        let mask: TokenMask = [0, 2, 4].into_iter().collect();
        let drawn: std::collections::BTreeSet<u32> = (0..50)
            .map(|_| sampler.choose(&logits, Some(&mask)).unwrap().id.try_item_cast().unwrap())
            .collect();
        assert_eq!(drawn, [0, 4].into());
        assert!(sampler.can_choose(&mask, 5));
        for nothing in [vec![], vec![2], vec![5, 40]] {
            assert!(!sampler.can_choose(&nothing.into_iter().collect(), 5));
        }
    }
}
