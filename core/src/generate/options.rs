//! The options of a generation: its length, sampling, penalties and end.

use crate::answer::{OutputFormat, Reasoning, ToolChoice};
use crate::error::{Error, Result};

/// How many tokens a generation has at most, unless the options say otherwise.
const MAX_TOKENS: usize = 4096;

/// The options of a generation.
///
/// ```
/// use mynah::GenerateOptions;
///
/// let options = GenerateOptions::default().max_tokens(64).temperature(0.7).seed(1);
/// assert_eq!(options.max_tokens, 64);
/// ```
///
/// Each decode step applies the options in this order, which is mlx-lm's where mlx-lm has them. To
/// the logits: [`logit_bias`](Self::logit_bias), [`min_tokens`](Self::min_tokens),
/// [`dry`](Self::dry), then the repetition, presence and frequency penalties. The result of
/// log-softmax is what [`Token::logprob`](crate::Token::logprob) reports. A
/// [`temperature`](Self::temperature) of 0 is greedy decoding. Otherwise filters follow, each on the
/// tokens that the one before kept: [`top_n_sigma`](Self::top_n_sigma),
/// [`typical_p`](Self::typical_p), [`top_p`](Self::top_p), [`min_p`](Self::min_p),
/// [`xtc`](Self::xtc), [`top_k`](Self::top_k); then the temperature, and sampling.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct GenerateOptions {
    /// The maximum number of generated tokens; by default 4,096. The context may end sooner.
    pub max_tokens: usize,
    /// The minimum number of tokens before a token may end the text.
    pub min_tokens: usize,
    /// Divides the log-probabilities before sampling; 0 is greedy decoding.
    pub temperature: f32,
    /// Keeps the `top_k` most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Nucleus sampling: keeps the smallest set of most probable tokens whose probabilities sum to
    /// `top_p`; 1 keeps all ([Holtzman et al. 2019](https://arxiv.org/abs/1904.09751)).
    pub top_p: f32,
    /// Keeps tokens at least `min_p` times as probable as the most probable one; 0 keeps all
    /// ([Nguyen et al. 2024](https://arxiv.org/abs/2407.01082)).
    pub min_p: f32,
    /// Locally typical sampling: keeps tokens of near-average surprise up to a total probability of
    /// `typical_p`; 1 keeps all ([Meister et al. 2022](https://arxiv.org/abs/2202.00666)).
    pub typical_p: f32,
    /// Keeps tokens whose logit is at most this many standard deviations below the largest; 0 keeps
    /// all ([Tang et al. 2024](https://arxiv.org/abs/2411.07641)).
    pub top_n_sigma: f32,
    /// Excludes the most probable tokens at random (XTC).
    pub xtc: Option<Xtc>,
    /// Penalizes repeated sequences (DRY).
    pub dry: Option<Dry>,
    /// Divides the positive logits of recent tokens and multiplies the negative ones; 1 changes
    /// nothing ([Keskar et al. 2019](https://arxiv.org/abs/1909.05858)).
    pub repetition_penalty: f32,
    /// Is subtracted from the logit of each recent token; 0 changes nothing.
    pub presence_penalty: f32,
    /// Is subtracted from the logit of a recent token once for each occurrence; 0 changes nothing.
    pub frequency_penalty: f32,
    /// The number of recent tokens, prompt included, that the three penalties consider.
    pub penalty_context: usize,
    /// Is added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// The seed of the sampler; with a seed, sampling is repeatable on the same machine.
    pub seed: Option<u64>,
    /// The number of most probable tokens that [`Token::top`](crate::Token::top) reports.
    pub top_logprobs: usize,
    /// Texts that end the generation. No part of them is emitted.
    pub stop: Vec<String>,
    /// How much the model thinks before it answers, for prompts with a chat template.
    pub reasoning: Reasoning,
    /// Whether the model calls the tools of the prompt.
    pub tool_choice: ToolChoice,
    /// What the text consists of: any text, or what a JSON schema, a regular expression or a grammar
    /// admits. An answer that reaches [`max_tokens`](Self::max_tokens) may be a part of it.
    pub output: OutputFormat,
    /// Further tokens that end the text.
    pub end_tokens: Vec<u32>,
    /// Continues after a token that ends the text.
    pub ignore_end: bool,
    /// Emits the text of special tokens, which is omitted by default.
    pub special_tokens: bool,
    /// The number of prompt tokens in one prefill step. A cancellation waits for at most one step.
    pub prefill_chunk: usize,
    /// Whether draft tokens are verified, several in one pass. It changes no token, but the last bits of
    /// their log-probabilities.
    pub speculation: Speculation,
}

setters! {
    GenerateOptions:
    max_tokens: usize,
    min_tokens: usize,
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    typical_p: f32,
    top_n_sigma: f32,
    repetition_penalty: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    penalty_context: usize,
    logit_bias: Vec<(u32, f32)>,
    top_logprobs: usize,
    reasoning: Reasoning,
    tool_choice: ToolChoice,
    output: OutputFormat,
    end_tokens: Vec<u32>,
    ignore_end: bool,
    special_tokens: bool,
    prefill_chunk: usize,
    speculation: Speculation;
    optional
    xtc: Xtc,
    dry: Dry,
    seed: u64,
}

/// Speculative decoding: draft tokens are verified in one pass of the model, which keeps those that it
/// would have sampled itself. Drafts come from what followed the same tokens earlier, in the prompt or
/// in the answer, and from a draft model where there is one
/// ([`Model::with_draft`](crate::Model::with_draft)).
///
/// An answer under a constraint is not speculated, because the mask of each token needs the tokens
/// before it: structured outputs, required calls of tools, a budget of thoughts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Speculation {
    /// Computes one token a pass.
    #[default]
    Off,
    /// Speculates while it is measured to be faster.
    Auto,
    /// Speculates wherever there is a draft, for measurements.
    Always,
}

/// [Exclude top choices](https://github.com/oobabooga/text-generation-webui/pull/6335): of the
/// tokens above a threshold only the least probable one stays. Tokens that end the text and newlines
/// are never excluded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Xtc {
    /// The share of steps at which tokens are excluded, from 0 to 1.
    pub probability: f32,
    /// The minimum probability of a top choice, from 0 to 0.5.
    pub threshold: f32,
}

/// [Don't repeat yourself](https://github.com/oobabooga/text-generation-webui/pull/5677): the logit
/// of a token that would extend a repetition of `n` tokens loses
/// `multiplier · base^(n - allowed_length)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Dry {
    /// The penalty of the shortest repetition.
    pub multiplier: f32,
    /// The factor by which the penalty grows with each token.
    pub base: f32,
    /// Shorter repetitions have no penalty.
    pub allowed_length: usize,
    /// The number of recent tokens that are searched for repetitions.
    pub context: usize,
    /// Texts that interrupt a repetition.
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
            max_tokens: MAX_TOKENS,
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
            reasoning: Reasoning::default(),
            tool_choice: ToolChoice::Auto,
            output: OutputFormat::Text,
            end_tokens: Vec::new(),
            ignore_end: false,
            special_tokens: false,
            prefill_chunk: 512,
            speculation: Speculation::default(),
        }
    }
}

impl GenerateOptions {
    /// Sets [`stop`](Self#structfield.stop).
    #[must_use]
    pub fn stop(mut self, texts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.stop = texts.into_iter().map(Into::into).collect();
        self
    }

    /// Checks every value for a model with this size of the vocabulary.
    ///
    /// # Errors
    /// [`Error::Option`] names the option; [`Error::TokenOutOfVocabulary`].
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
                return Err(Error::option("dry.allowed_length", "must be at least 1"));
            }
        }
        for (option, value, range) in ranges {
            if !range.contains(&value) {
                let (least, most) = (range.start(), range.end());
                let reason = match (*least, *most) {
                    (f32::MIN, _) => format!("{value} is not a finite number"),
                    (f32::MIN_POSITIVE, f32::MAX) => format!("{value} is not a positive number"),
                    (f32::MIN_POSITIVE, _) => format!("{value} is not above 0 and at most {most}"),
                    (_, f32::MAX) => format!("{value} is not a number of at least {least}"),
                    _ => format!("{value} is not between {least} and {most}"),
                };
                return Err(Error::option(option, reason));
            }
        }
        for &(id, bias) in &self.logit_bias {
            if id >= vocabulary {
                return Err(Error::TokenOutOfVocabulary { id, vocabulary });
            }
            // Minus infinity forbids a token. Plus infinity would turn the softmax into NaN.
            if bias.is_nan() || bias == f32::INFINITY {
                let reason = format!("{bias} for token {id} is neither a number nor -inf");
                return Err(Error::option("logit_bias", reason));
            }
        }
        if self.top_logprobs > vocabulary as usize {
            let reason = format!(
                "{} is more than the {vocabulary} tokens of the vocabulary",
                self.top_logprobs
            );
            return Err(Error::option("top_logprobs", reason));
        }
        if self.min_tokens > self.max_tokens {
            let reason =
                format!("{} is more than `max_tokens`, {}", self.min_tokens, self.max_tokens);
            return Err(Error::option("min_tokens", reason));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::option("stop", "stop texts must not be empty"));
        }
        if self.prefill_chunk == 0 {
            return Err(Error::option("prefill_chunk", "must be at least 1"));
        }
        Ok(())
    }
}
