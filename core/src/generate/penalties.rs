//! Changes of the logits before they become log-probabilities, on the device: biases, forbidden end
//! tokens, DRY, and the repetition, presence and frequency penalties.

use crate::generate::options::{Dry, GenerateOptions};
use crate::{error::Result, mlx, text::Tokenizer};
use mlx_rs::{
    Array, Dtype,
    ops::{self, indexing::take_along_axis},
};

/// DRY measures a repetition up to this length; each token of it costs a row of comparisons.
const LONGEST_REPETITION: i32 = 50;

/// The penalties of one sequence, and the tokens on which they depend. Only [`Penalties::push`]
/// changes them, so a clone replays the sequence from where it was made.
#[derive(Clone)]
pub(super) struct Penalties {
    bias: Option<Bias>,
    /// Present until `min_tokens` tokens have been pushed.
    early_ends: Option<EarlyEnds>,
    /// DRY, and its breakers `[1, n]`.
    dry: Option<(Dry, Array)>,
    repetition: f32,
    presence: f32,
    frequency: f32,
    /// How many of the last tokens the three penalties above look at.
    context: i32,
    /// The last tokens `[1, n]`.
    history: Array,
    /// The length to which `history` is cut.
    kept: i32,
    /// The largest token on which they depend.
    largest: u32,
}

/// `logit_bias`.
#[derive(Clone)]
struct Bias {
    /// `[1, n]`; a token may occur twice.
    ids: Array,
    /// `[1, n]`, added to the logits of `ids`.
    values: Array,
    /// The tokens whose bias is minus infinity.
    forbidden: Vec<u32>,
}

/// The tokens that end the text, while `min_tokens` forbids them.
#[derive(Clone)]
struct EarlyEnds {
    ids: Vec<u32>,
    /// How many more tokens must come first.
    left: usize,
}

impl Bias {
    fn new(biases: &[(u32, f32)]) -> Self {
        let (ids, values): (Vec<u32>, Vec<f32>) = biases.iter().copied().unzip();
        let forbidden = biases.iter().filter(|(_, bias)| *bias == f32::NEG_INFINITY);
        Bias {
            ids: row(&ids),
            values: Array::from_slice(&values, &[1, values.len() as i32]),
            forbidden: forbidden.map(|(id, _)| *id).collect(),
        }
    }
}

impl Penalties {
    /// The penalties of a sequence that begins with `prompt`; `ends` are the tokens that end it.
    pub fn new(
        options: &GenerateOptions,
        prompt: &[u32],
        ends: &[u32],
        tokenizer: Option<&Tokenizer>,
    ) -> Result<Self> {
        let penalizes = options.repetition_penalty != 1.0
            || options.presence_penalty != 0.0
            || options.frequency_penalty != 0.0;
        let context = if penalizes { options.penalty_context } else { 0 };
        let dry = options.dry.clone().filter(|dry| dry.multiplier > 0.0 && dry.context > 0);
        let kept = context.max(dry.as_ref().map_or(0, |dry| dry.context));
        let tail = &prompt[prompt.len().saturating_sub(kept)..];
        let clamp = |count| i32::try_from(count).unwrap_or(i32::MAX);
        let biased = options.logit_bias.iter().map(|(id, _)| id);
        Ok(Penalties {
            largest: tail.iter().chain(ends).chain(biased).copied().max().unwrap_or(0),
            bias: (!options.logit_bias.is_empty()).then(|| Bias::new(&options.logit_bias)),
            early_ends: (options.min_tokens > 0 && !ends.is_empty())
                .then(|| EarlyEnds { ids: ends.to_vec(), left: options.min_tokens }),
            dry: match dry {
                Some(dry) => {
                    let breakers = breakers(&dry, tokenizer)?;
                    Some((dry, breakers))
                }
                None => None,
            },
            repetition: options.repetition_penalty,
            presence: options.presence_penalty,
            frequency: options.frequency_penalty,
            context: clamp(context),
            history: row(tail),
            kept: clamp(kept),
        })
    }

    /// Whether they change no logits, whatever tokens come.
    pub fn are_none(&self) -> bool {
        self.bias.is_none() && self.early_ends.is_none() && self.kept == 0
    }

    /// Changes logits `[1, vocabulary]`.
    pub fn apply(&self, logits: Array) -> Result<Array> {
        let vocabulary = logits.dim(-1);
        if self.largest < vocabulary as u32 {
            return self.change(logits);
        }
        // Placeholders of images and tokens that were added to a tokenizer may have no logit, and MLX
        // writes wherever an id points. One more logit takes what would go to theirs.
        let wide = ops::concatenate(&[&logits, &ops::zeros::<f32>(&[1, 1])?], -1)?;
        let none = Array::from_slice(&[vocabulary as u32], &[1, 1]);
        let mut inside = self.clone();
        inside.history = ops::minimum(&self.history, &none)?;
        if let Some(bias) = &mut inside.bias {
            bias.ids = ops::minimum(&bias.ids, &none)?;
        }
        if let Some(ends) = &mut inside.early_ends {
            ends.ids.iter_mut().for_each(|id| *id = (*id).min(vocabulary as u32));
        }
        mlx::slice(&inside.change(wide)?, 1, 0, vocabulary)
    }

    /// [`Penalties::apply`] where all tokens have logits.
    fn change(&self, mut logits: Array) -> Result<Array> {
        if let Some(Bias { ids, values, .. }) = &self.bias {
            // A scattered addition, because ids may repeat.
            logits = ops::indexing::scatter_add_single(
                &logits.flatten(None, None)?,
                &ids.flatten(None, None)?,
                &values.reshape(&[-1, 1])?,
                0,
            )?
            .expand_dims(0)?;
        }
        if let Some(ends) = &self.early_ends {
            logits =
                logits.put_along_axis(row(&ends.ids), Array::from_f32(f32::NEG_INFINITY), -1)?;
        }
        if let Some((dry, breakers)) = &self.dry {
            let history = last(&self.history, i32::try_from(dry.context).unwrap_or(i32::MAX))?;
            if history.dim(1) > 1 {
                logits = penalize_repetitions(&logits, &history, dry, breakers)?;
            }
        }
        if self.context > 0 && self.history.dim(1) > 0 {
            logits = self.penalize_recent(&logits, &last(&self.history, self.context)?)?;
        }
        Ok(logits)
    }

    /// Whether the logit of a token becomes minus infinity.
    pub fn forbids(&self, id: u32) -> bool {
        self.bias.as_ref().is_some_and(|bias| bias.forbidden.contains(&id))
            || self.early_ends.as_ref().is_some_and(|ends| ends.ids.contains(&id))
    }

    /// Advances by the token `[1, 1]` that was sampled.
    pub fn push(&mut self, id: &Array) -> Result<()> {
        if let Some(ends) = &mut self.early_ends {
            ends.left -= 1;
            if ends.left == 0 {
                self.early_ends = None;
            }
        }
        if self.kept > 0 {
            let joined = ops::concatenate(&[&self.history, &id.as_dtype(Dtype::Uint32)?], 1)?;
            self.history = last(&joined, self.kept)?;
        }
        Ok(())
    }

    fn penalize_recent(&self, logits: &Array, recent: &Array) -> Result<Array> {
        let mut chosen = take_along_axis(logits, recent, -1)?;
        if self.repetition != 1.0 {
            let penalty = Array::from_f32(self.repetition);
            let (less, more) = (chosen.divide(&penalty)?, chosen.multiply(&penalty)?);
            chosen = ops::select(chosen.lt(Array::from_f32(0.0))?, more, less)?;
        }
        if self.presence != 0.0 {
            chosen = chosen.subtract(Array::from_f32(self.presence))?;
        }
        if self.frequency != 0.0 {
            let same = recent.eq(&recent.reshape(&[-1, 1])?)?.as_dtype(Dtype::Float32)?;
            let counts = same.sum_axis(0, true)?;
            chosen = chosen.subtract(counts.multiply(Array::from_f32(self.frequency))?)?;
        }
        Ok(logits.put_along_axis(recent, chosen, -1)?)
    }
}

/// DRY: penalizes the tokens that followed earlier occurrences of the end of `history` `[1, n]`.
fn penalize_repetitions(
    logits: &Array,
    history: &Array,
    dry: &Dry,
    breakers: &Array,
) -> Result<Array> {
    let n = history.dim(1);
    let history = &history.reshape(&[-1])?;
    let longest = LONGEST_REPETITION.min(n - 1);
    let allowed = i32::try_from(dry.allowed_length).unwrap_or(i32::MAX);

    // Row `back`, column `at`: is the token `back` places before `at` the one that is `back` places
    // before the end? A repetition at `at` is as long as its column is true from the top.
    let at = ops::arange::<_, i32>(0, n - 1, None)?.expand_dims(0)?;
    let back = ops::arange::<_, i32>(0, longest, None)?.expand_dims(1)?;
    let place = at.subtract(&back)?;
    let first = Array::from_int(0);
    let earlier = history.take_axis(&ops::maximum(&place, &first)?, 0)?;
    let ending = history.take_axis(&Array::from_int(n - 1).subtract(&back)?, 0)?;
    let breaks = ending.eq(breakers)?.any_axis(1, true)?;
    let same = earlier.eq(&ending)?.logical_and(place.ge(&first)?)?;
    let same = same.logical_and(breaks.logical_not()?)?.as_dtype(Dtype::Int32)?;
    let length = same.cumprod(0, false, true)?.sum_axis(0, false)?;

    let excess = length.subtract(Array::from_int(allowed))?.as_dtype(Dtype::Float32)?;
    let penalty = Array::from_f32(dry.base).power(&excess)?;
    let penalty = penalty.multiply(Array::from_f32(dry.multiplier))?;
    let none = Array::from_f32(0.0);
    let penalty = ops::select(excess.ge(&none)?, penalty, &none)?;
    let next = mlx::slice(history, 0, 1, n)?;
    let loss = ops::indexing::scatter_max_single(
        &ops::zeros_like(logits.reshape(&[-1])?)?,
        &next,
        &penalty.expand_dims(1)?,
        0,
    )?;
    Ok(logits.subtract(loss.expand_dims(0)?)?)
}

/// The tokens `[1, n]` at which a repetition ends. A text of several tokens breaks at its last one.
fn breakers(dry: &Dry, tokenizer: Option<&Tokenizer>) -> Result<Array> {
    let mut ids = Vec::new();
    for text in tokenizer.map_or(&[][..], |_| &dry.breakers) {
        // Some tokenizers put a token before the beginning of a text; it must not become the breaker.
        ids.extend(
            tokenizer
                .map(|t| t.encode(&format!("a{text}"), false))
                .transpose()?
                .and_then(|ids| ids.last().copied()),
        );
    }
    // No token has this id, and an empty array has no element to compare with.
    ids.push(u32::MAX);
    Ok(row(&ids))
}

fn row(ids: &[u32]) -> Array {
    Array::from_slice(ids, &[1, ids.len() as i32])
}

/// The last `count` of tokens `[1, n]`.
fn last(tokens: &Array, count: i32) -> Result<Array> {
    let n = tokens.dim(1);
    mlx::slice(tokens, 1, (n - count).max(0), n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value as Json;
    use std::collections::HashMap;

    fn penalize(options: &GenerateOptions, tokens: &[u32], logits: &[f32]) -> Vec<f32> {
        let penalties = Penalties::new(options, tokens, &[], None).unwrap();
        let logits = Array::from_slice(logits, &[1, logits.len() as i32]);
        mlx::to_vec(&penalties.apply(logits).unwrap()).unwrap()
    }

    #[test]
    fn penalties_are_those_of_mlx_lm() {
        let fixture = include_str!("../../../tests/fixtures/sampling.json");
        let fixture: Json = serde_json::from_str(fixture).unwrap();
        let numbers = |json: &Json| -> Option<Vec<f32>> {
            json.as_array()?.iter().map(|x| Some(x.as_f64()? as f32)).collect()
        };
        let tokens: Vec<u32> = serde_json::from_value(fixture["tokens"].clone()).unwrap();
        let mut compared = 0;
        for case in fixture["cases"].as_array().unwrap() {
            let Some(expected) = numbers(&case["penalized"]) else { continue };
            let mut options = GenerateOptions::default();
            for (name, value) in case["options"].as_object().unwrap() {
                let number = value.as_f64().unwrap_or_default() as f32;
                match name.as_str() {
                    "repetition_penalty" => options.repetition_penalty = number,
                    "presence_penalty" => options.presence_penalty = number,
                    "frequency_penalty" => options.frequency_penalty = number,
                    "logit_bias" => {
                        options.logit_bias = serde_json::from_value(value.clone()).unwrap()
                    }
                    _ => options.penalty_context = number as usize,
                }
            }
            let logits = numbers(&case["logits"]).unwrap();
            let penalized = penalize(&options, &tokens, &logits);
            for (ours, theirs) in penalized.iter().zip(&expected) {
                assert!((ours - theirs).abs() < 1e-5, "{}: {ours} {theirs}", case["options"]);
            }
            compared += 1;
        }
        assert_eq!(compared, 8);
    }

    /// The loss of each token, by comparing every earlier place with the end.
    fn naive(tokens: &[u32], dry: &Dry, breakers: &[u32]) -> HashMap<u32, f32> {
        let tokens = &tokens[tokens.len().saturating_sub(dry.context)..];
        let mut losses = HashMap::new();
        for at in 0..tokens.len().saturating_sub(1) {
            let ending = tokens.iter().rev();
            let length = tokens[..=at]
                .iter()
                .rev()
                .zip(ending)
                .take_while(|(a, b)| a == b && !breakers.contains(b))
                .count()
                .min(LONGEST_REPETITION as usize);
            if length >= dry.allowed_length {
                let exponent = (length - dry.allowed_length) as i32;
                let loss = losses.entry(tokens[at + 1]).or_insert(0.0f32);
                *loss = loss.max(dry.multiplier * dry.base.powi(exponent));
            }
        }
        losses
    }

    #[test]
    fn tokens_without_a_logit_change_nothing() {
        let options = GenerateOptions {
            repetition_penalty: 1.5,
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            min_tokens: 3,
            dry: Some(Dry { multiplier: 0.8, allowed_length: 1, ..Dry::default() }),
            ..GenerateOptions::default()
        };
        let changed = |options: &GenerateOptions, prompt: &[u32], ends: &[u32]| -> Vec<f32> {
            let penalties = Penalties::new(options, prompt, ends, None).unwrap();
            mlx::to_vec(&penalties.apply(row_of(&[0.5, 1.0, -1.0, 2.0])).unwrap()).unwrap()
        };
        let expected = changed(&options, &[1, 2, 1], &[3]);
        assert!(expected[1] < 1.0 && expected[3] == f32::NEG_INFINITY, "{expected:?}");
        let mut biased = options.clone();
        biased.logit_bias = vec![(700, 9.0)];
        assert_eq!(changed(&biased, &[900, 1, 2, 1], &[3, 4, 1 << 20]), expected);
    }

    fn row_of(values: &[f32]) -> Array {
        Array::from_slice(values, &[1, values.len() as i32])
    }

    #[test]
    fn dry_penalizes_as_a_plain_search_for_repetitions_does() {
        let dry = |allowed_length, context| Dry {
            multiplier: 0.8,
            base: 1.5,
            allowed_length,
            context,
            breakers: Vec::new(),
        };
        let mut state = 5u32;
        let mut random = |bound: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) % bound
        };
        let mut lost = 0;
        for round in 0..200 {
            let length = 1 + random(90) as usize;
            let kinds = 1 + random(4);
            let tokens: Vec<_> = (0..length).map(|_| random(kinds)).collect();
            let dry = dry(1 + random(4) as usize, [1024, 1024, 20, 2][round % 4]);
            let breakers: &[u32] = if round % 3 == 0 { &[1] } else { &[] };
            let rows = row(&[breakers, &[u32::MAX]].concat());
            let mut penalties = Penalties::new(
                &GenerateOptions { dry: Some(dry.clone()), ..GenerateOptions::default() },
                &tokens,
                &[],
                None,
            )
            .unwrap();
            penalties.dry = Some((dry.clone(), rows));
            let logits = Array::from_slice(&[1.0f32; 6], &[1, 6]);
            let penalized: Vec<f32> = mlx::to_vec(&penalties.apply(logits).unwrap()).unwrap();
            let losses = naive(&tokens, &dry, breakers);
            lost += losses.len();
            for (id, logit) in penalized.iter().enumerate() {
                let expected = 1.0 - losses.get(&(id as u32)).copied().unwrap_or(0.0);
                let close = (logit - expected).abs() <= 1e-4 * expected.abs().max(1.0);
                assert!(close, "{tokens:?} {dry:?}: {id} {logit} {expected}");
            }
        }
        assert!(lost > 50);
    }

    #[test]
    fn a_pushed_token_is_penalized_until_it_leaves_the_context() {
        let options = GenerateOptions {
            presence_penalty: 1.0,
            penalty_context: 2,
            ..GenerateOptions::default()
        };
        let mut penalties = Penalties::new(&options, &[0], &[], None).unwrap();
        let mut apply = |chosen: u32| -> Vec<f32> {
            penalties.push(&row(&[chosen])).unwrap();
            mlx::to_vec(&penalties.apply(Array::from_slice(&[0.0f32; 4], &[1, 4])).unwrap())
                .unwrap()
        };
        assert_eq!(apply(2), [-1.0, 0.0, -1.0, 0.0]);
        assert_eq!(apply(3), [0.0, 0.0, -1.0, -1.0]);
        assert_eq!(apply(3), [0.0, 0.0, 0.0, -1.0]);
    }
}
