//! What a family's file says of it.

use crate::{
    checkpoint::{config::Json, scope::Scope},
    error::{Error, Result},
    models::language::LanguageModel,
};
use serde_json::Value;

/// How a checkpoint becomes a model.
pub struct Family {
    /// The values of `model_type` that it reads.
    pub model_types: &'static [&'static str],
    /// Builds the model from `config.json` and the weights.
    pub build: fn(&Json, &Scope) -> Result<Box<dyn LanguageModel>>,
    /// What the authors recommend where the files of a checkpoint say nothing.
    pub recommended: Recommended,
}

/// What a model's authors recommend; it holds where the files of a checkpoint say nothing. The
/// numbers are those of the model cards.
#[derive(Clone, Copy, Debug)]
pub struct Recommended {
    /// Texts of special tokens that end a turn, beside those that the files name.
    pub end_tokens: &'static [&'static str],
    /// Sampling, where `generation_config.json` recommends none.
    pub sampling: Sampling,
    /// The chat template of a checkpoint that has none.
    pub chat_template: Option<&'static str>,
    /// Whether `max_position_embeddings` counts the scaling of rotary positions where the config does
    /// not give the length before it; with most families it is that length.
    pub context_is_scaled: bool,
}

impl Recommended {
    /// Greedy decoding, no further end tokens, no chat template.
    pub const NOTHING: Recommended = Recommended {
        end_tokens: &[],
        sampling: Sampling::GREEDY,
        chat_template: None,
        context_is_scaled: false,
    };
}

/// Recommended sampling.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// Divides the logits; 0 is greedy decoding.
    pub temperature: f32,
    /// Only the `top_k` most probable tokens are sampled; 0 is no limit.
    pub top_k: usize,
    /// Only the most probable tokens that make up this probability are sampled.
    pub top_p: f32,
    /// Only tokens at least this probable, relative to the most probable one, are sampled.
    pub min_p: f32,
    /// Divides the logits of tokens that occurred; 1 leaves them alone.
    pub repetition_penalty: f32,
}

impl Sampling {
    /// The most probable token, always.
    pub const GREEDY: Sampling =
        Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0 };

    /// Nucleus sampling ([Holtzman et al. 2019](https://arxiv.org/abs/1904.09751)).
    pub const fn nucleus(temperature: f32, top_p: f32) -> Self {
        Sampling { temperature, top_p, ..Self::GREEDY }
    }
}

/// The `model_type` of a config.
///
/// # Errors
/// [`Error::Config`] when it is missing or no string.
pub fn model_type(config: &Value) -> Result<&str> {
    let model_type =
        config.get("model_type").ok_or_else(|| Error::config("model_type", "missing"))?;
    model_type.as_str().ok_or_else(|| Error::config("model_type", "not a string"))
}
