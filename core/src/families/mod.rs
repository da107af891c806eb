//! One file a model family. To add one: the file, and its name in the list of its modality.

pub mod text;

use crate::{
    config::Json,
    error::{Error, Result},
    generate::GenerateOptions,
    model::LanguageModel,
    weights::Scope,
};

/// How a checkpoint becomes a model.
pub struct Family {
    /// The values of `model_type` that it reads.
    pub model_types: &'static [&'static str],
    /// Builds the model from `config.json` and the weights.
    pub build: fn(&Json, &Scope) -> Result<Box<dyn LanguageModel>>,
}

macro_rules! families {
    ($($name:ident),* $(,)?) => {
        $(mod $name;)*
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

/// How models of a family are used unless the files of a checkpoint say otherwise.
#[derive(Default)]
pub(crate) struct Convention {
    /// Texts of tokens that end a turn, beside those that files name.
    pub end_tokens: &'static [&'static str],
    /// For a checkpoint whose `generation_config.json` recommends no sampling.
    pub sampling: GenerateOptions,
    /// The chat template of a checkpoint that has none.
    pub chat_template: Option<&'static str>,
}

/// What holds for a `model_type`; numbers are those of the model cards.
pub(crate) fn convention(model_type: &str) -> Convention {
    let none = Convention::default();
    match model_type {
        "gemma" | "gemma2" => Convention { end_tokens: &["<end_of_turn>"], ..none },
        "gemma3" | "gemma3_text" | "gemma3n" | "gemma3n_text" => Convention {
            end_tokens: &["<end_of_turn>"],
            sampling: GenerateOptions { top_k: 64, ..nucleus(1.0, 0.95) },
            ..none
        },
        "gpt_oss" => Convention { sampling: nucleus(1.0, 1.0), ..none },
        "lfm2" => {
            let sampling = GenerateOptions {
                temperature: 0.3,
                min_p: 0.15,
                repetition_penalty: 1.05,
                ..GenerateOptions::default()
            };
            Convention { sampling, ..none }
        }
        "minimax" | "minimax_m2" => {
            let sampling = GenerateOptions { top_k: 40, ..nucleus(1.0, 0.95) };
            Convention { sampling, ..none }
        }
        "phi3" => Convention { end_tokens: &["<|end|>"], ..none },
        "qwen" => Convention {
            end_tokens: &["<|im_end|>"],
            chat_template: Some(include_str!("text/qwen.jinja")),
            ..none
        },
        "qwen3" | "qwen3_moe" => {
            let sampling = GenerateOptions { top_k: 20, ..nucleus(0.6, 0.95) };
            Convention { sampling, ..none }
        }
        "smollm3" => Convention { sampling: nucleus(0.6, 0.95), ..none },
        "deepseek_v32" | "deepseek_v3.2" => {
            Convention { chat_template: Some(include_str!("../text/deepseek_v32.jinja")), ..none }
        }
        _ => none,
    }
}

fn nucleus(temperature: f32, top_p: f32) -> GenerateOptions {
    GenerateOptions { temperature, top_p, ..GenerateOptions::default() }
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
