//! One file a model family. To add one: the file, and its name in the list of its modality.

pub mod prelude;
pub mod text;

use crate::{
    checkpoint::{
        config::{self, Json},
        scope::Scope,
    },
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
}

impl Recommended {
    /// Greedy decoding, no further end tokens, no chat template.
    pub const NOTHING: Recommended =
        Recommended { end_tokens: &[], sampling: Sampling::GREEDY, chat_template: None };
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

macro_rules! families {
    ($($name:ident),* $(,)?) => {
                /// The families of this modality.
        pub const FAMILIES: &[crate::families::Family] = &[$($name::FAMILY),*];
    };
}
pub(crate) use families;

/// All families.
pub fn all() -> impl Iterator<Item = &'static Family> {
    text::FAMILIES.iter()
}

/// The family that reads a `model_type`.
///
/// # Errors
/// [`Error::UnknownModelType`] with the types that are spelt alike.
pub fn find(model_type: &str) -> Result<&'static Family> {
    all().find(|family| family.model_types.contains(&model_type)).ok_or_else(|| {
        let mut known: Vec<_> = all()
            .flat_map(|family| family.model_types)
            .map(|known| (edit_distance(model_type, known), *known))
            .filter(|(distance, known)| *distance * 2 <= known.len().max(model_type.len()))
            .collect();
        known.sort();
        let nearest = known.into_iter().map(|(_, known)| known).take(3).collect();
        Error::UnknownModelType { model_type: model_type.chars().take(80).collect(), nearest }
    })
}

/// The family that reads a checkpoint with this config.
///
/// # Errors
/// [`Error::CustomCode`], [`Error::Config`] without a `model_type`, and those of [`find`].
pub fn family(config: &Value) -> Result<&'static Family> {
    if let Some(file) = config.get("model_file").and_then(Value::as_str) {
        return Err(Error::CustomCode(file.into()));
    }
    find(model_type(config)?)
}

/// Builds the model of a checkpoint.
///
/// # Errors
/// Those of [`family`] and of the family; [`Error::Config`] for a field that the family does not use
/// and that changes the numbers.
pub fn build(w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let model = (family(&w.config().to_value())?.build)(w.config(), w)?;
    ignored_fields(w)?;
    Ok(model)
}

/// The fields of a config that a [built](build) model does not use and that are not known to be
/// harmless.
///
/// # Errors
/// [`Error::Config`] for a field that changes the numbers.
pub fn ignored_fields(w: &Scope) -> Result<Vec<String>> {
    config::ignored_fields(w.config())
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

/// Levenshtein's distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(80).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
