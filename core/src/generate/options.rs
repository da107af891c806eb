//! How to continue a prompt.

use crate::error::{Error, Result};

/// How to continue.
///
/// Each step goes through the options in this order, which is mlx-lm's where it has them. On the
/// logits: [`logit_bias`](Self::logit_bias), [`min_tokens`](Self::min_tokens), [`dry`](Self::dry),
/// then the repetition, presence and frequency penalties. From here on they are log-probabilities,
/// the ones that are reported. A [`temperature`](Self::temperature) of 0 takes the likeliest.
/// Otherwise filters follow, each on what the one before left:
/// [`top_n_sigma`](Self::top_n_sigma), [`typical_p`](Self::typical_p), [`top_p`](Self::top_p),
/// [`min_p`](Self::min_p), [`xtc`](Self::xtc), [`top_k`](Self::top_k); last the temperature, and a
/// draw.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// The most tokens to generate.
    pub max_tokens: usize,
    /// No token ends the text before so many are generated.
    pub min_tokens: usize,
    /// Flattens the distribution above 1 and sharpens it below; 0 always takes the likeliest token.
    pub temperature: f32,
    /// Draws from that many likeliest tokens; 0 from all.
    pub top_k: usize,
    /// Draws from the smallest set of likeliest tokens with this probability in sum; 1 from all
    /// ([Holtzman et al. 2019](https://arxiv.org/abs/1904.09751)).
    pub top_p: f32,
    /// Excludes tokens less likely than this share of the likeliest one
    /// ([Nguyen et al. 2024](https://arxiv.org/abs/2407.01082)).
    pub min_p: f32,
    /// Draws from the tokens whose information is nearest to the expected one, with this
    /// probability in sum; 1 from all ([Meister et al. 2022](https://arxiv.org/abs/2202.00666)).
    pub typical_p: f32,
    /// Excludes tokens whose logit is more than so many standard deviations below the largest; 0
    /// none ([Tang et al. 2024](https://arxiv.org/abs/2411.07641)).
    pub top_n_sigma: f32,
    /// Now and then excludes the likeliest tokens.
    pub xtc: Option<Xtc>,
    /// Makes it unlikely that sequences repeat.
    pub dry: Option<Dry>,
    /// Divides the logits of recent tokens, or multiplies negative ones; 1 does nothing
    /// ([Keskar et al. 2019](https://arxiv.org/abs/1909.05858)).
    pub repetition_penalty: f32,
    /// Is subtracted from the logits of recent tokens; 0 does nothing.
    pub presence_penalty: f32,
    /// Is subtracted from the logit of a recent token once for each time that it occurs; 0 does
    /// nothing.
    pub frequency_penalty: f32,
    /// How many tokens are recent to the three penalties, those of the prompt included.
    pub penalty_context: usize,
    /// What is added to the logits of tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Makes draws repeatable on the same machine.
    pub seed: Option<u64>,
    /// How many of the likeliest tokens come with each token.
    pub top_logprobs: usize,
    /// Texts that end the generation. Neither they nor a beginning of them is given out.
    pub stop: Vec<String>,
    /// Further tokens that end the text.
    pub end_tokens: Vec<u32>,
    /// Goes on after the model has ended its text.
    pub ignore_end: bool,
    /// Gives the text of special tokens, which is left out otherwise.
    pub special_tokens: bool,
    /// Tokens of the prompt that are computed in one step; a cancellation waits for at most one.
    pub prefill_chunk: usize,
}

/// [Exclude top choices](https://github.com/oobabooga/text-generation-webui/pull/6335): of the
/// tokens above a threshold only the least likely one stays. The end of the text and newlines are
/// never excluded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Xtc {
    /// How often it acts, from 0 to 1.
    pub probability: f32,
    /// The least probability of a top choice, from 0 to 0.5.
    pub threshold: f32,
}

/// [Don't repeat yourself](https://github.com/oobabooga/text-generation-webui/pull/5677): a token
/// that would prolong a repetition of `n` tokens loses `multiplier · base^(n - allowed_length)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Dry {
    /// The penalty of the shortest repetition.
    pub multiplier: f32,
    /// How fast it grows.
    pub base: f32,
    /// Repetitions shorter than this are free.
    pub allowed_length: usize,
    /// How many of the last tokens are looked at.
    pub context: usize,
    /// Texts over which no repetition reaches.
    pub breakers: Vec<String>,
}

impl Default for Dry {
    fn default() -> Self {
        Dry {
            multiplier: 0.8,
            base: 1.75,
            allowed_length: 2,
            context: 1024,
            breakers: ["\n", ":", "\"", "*"].map(String::from).into(),
        }
    }
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions {
            max_tokens: 512,
            min_tokens: 0,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            top_n_sigma: 0.0,
            xtc: None,
            dry: None,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_context: 20,
            logit_bias: Vec::new(),
            seed: None,
            top_logprobs: 0,
            stop: Vec::new(),
            end_tokens: Vec::new(),
            ignore_end: false,
            special_tokens: false,
            prefill_chunk: 512,
        }
    }
}

impl GenerateOptions {
    /// Checks every value for a model with so many tokens.
    ///
    /// # Errors
    /// [`Error::Option`] with the option at fault; [`Error::TokenOutOfVocabulary`].
    pub fn check(&self, vocabulary: u32) -> Result<()> {
        let positive = f32::MIN_POSITIVE..=f32::MAX;
        let mut ranges = vec![
            ("temperature", self.temperature, 0.0..=f32::MAX),
            ("top_p", self.top_p, f32::MIN_POSITIVE..=1.0),
            ("min_p", self.min_p, 0.0..=1.0),
            ("typical_p", self.typical_p, f32::MIN_POSITIVE..=1.0),
            ("top_n_sigma", self.top_n_sigma, 0.0..=f32::MAX),
            ("repetition_penalty", self.repetition_penalty, positive.clone()),
            ("presence_penalty", self.presence_penalty, f32::MIN..=f32::MAX),
            ("frequency_penalty", self.frequency_penalty, f32::MIN..=f32::MAX),
        ];
        if let Some(xtc) = self.xtc {
            ranges.push(("xtc.probability", xtc.probability, 0.0..=1.0));
            ranges.push(("xtc.threshold", xtc.threshold, 0.0..=0.5));
        }
        if let Some(dry) = &self.dry {
            ranges.push(("dry.multiplier", dry.multiplier, 0.0..=f32::MAX));
            ranges.push(("dry.base", dry.base, 1.0..=f32::MAX));
            if dry.allowed_length == 0 {
                return Err(Error::option("dry.allowed_length", "0 is out of range"));
            }
        }
        for (option, value, range) in ranges {
            if !range.contains(&value) {
                return Err(Error::option(option, format!("{value} is out of range")));
            }
        }
        for &(id, bias) in &self.logit_bias {
            if id >= vocabulary {
                return Err(Error::TokenOutOfVocabulary { id, vocabulary });
            }
            // Minus infinity forbids a token; plus infinity would make the others not numbers.
            if bias.is_nan() || bias == f32::INFINITY {
                return Err(Error::option("logit_bias", format!("{bias} for token {id}")));
            }
        }
        if self.top_logprobs > vocabulary as usize {
            let reason = format!("{} of {vocabulary} tokens", self.top_logprobs);
            return Err(Error::option("top_logprobs", reason));
        }
        if self.min_tokens > self.max_tokens {
            let reason = format!("{} is more than max_tokens", self.min_tokens);
            return Err(Error::option("min_tokens", reason));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::option("stop", "an empty text is everywhere"));
        }
        if self.prefill_chunk == 0 {
            return Err(Error::option("prefill_chunk", "0 is out of range"));
        }
        Ok(())
    }
}
