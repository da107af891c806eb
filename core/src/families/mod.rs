//! The model families, one file or folder each, and the list of all. This room may use all rooms
//! below it up to `models`; it must not know generation, the engine or the API. To add a family:
//! its file with a [`Family`], and its name in the list of its modality.

pub mod codec;
pub mod detection;
pub mod embedding;
pub(crate) mod entry;
pub(crate) mod family;
pub(crate) mod multimodal;
pub mod prelude;
pub mod recognition;
pub mod synthesis;
#[cfg(test)]
pub(crate) mod tests;
pub mod text;
pub(crate) mod text_encoders;
pub mod vision;

pub use entry::{Build, Checkpoint, Entry};
pub use family::{Family, Recommended, Sampling, model_type};

use crate::{
    checkpoint::{
        config,
        file_rules::{Contents, MODULES},
        files::Files,
        scope::Scope,
    },
    error::{Error, Result},
    models::language::LanguageModel,
};
use serde_json::Value;
use std::rc::Rc;

/// The families of each modality.
const LISTS: &[&[Entry]] = &[
    text::FAMILIES,
    vision::FAMILIES,
    recognition::FAMILIES,
    synthesis::FAMILIES,
    detection::FAMILIES,
    codec::FAMILIES,
    embedding::FAMILIES,
];

/// All families.
pub fn all() -> impl Iterator<Item = &'static Entry> {
    #[cfg(test)]
    return LISTS.iter().copied().flatten().chain(tests::FAMILIES);
    #[cfg(not(test))]
    LISTS.iter().copied().flatten()
}

/// The modalities that are not supported yet, each with the known values of `model_type`.
const OTHER_MODALITIES: &[(&str, &str)] = &[
    (
        "vision",
        "minicpmv4_6 molmo2 molmo_point moondream3 \
         nemotron_labs_diffusion_vlm phi3_v phi4-siglip phi4_siglip youtu_vl",
    ),
    (
        "multimodal",
        "minicpmo nemotron_h_nano_omni nemotron_h_omni nemotronh_nano_omni_reasoning_v3 \
         phi4mm qwen2_5_omni qwen2_5_omni_thinker qwen3_omni qwen3_omni_moe",
    ),
    ("speech recognition", "voxtral_realtime"),
    ("speech synthesis", "csm marvis qwen3_tts qwen3tts sesame voxtral_tts"),
    ("voice activity detection", "firered-vad firered_vad fireredvad ten-vad ten_vad tenvad"),
    ("diffusion", "diffusion_gemma diffusion_gemma_text nemotron_labs_diffusion"),
    ("draft", "gemma4_assistant gemma4_unified_assistant"),
];

/// The family that reads a `model_type`.
///
/// # Errors
/// [`Error::UnsupportedModality`] for a type that is known not to be a language model, and otherwise
/// [`Error::UnknownModelType`] with the types of similar spelling.
pub fn find(model_type: &str) -> Result<&'static Entry> {
    all().find(|family| family.model_types.contains(&model_type)).ok_or_else(|| {
        let is_known =
            |(_, types): &&(&str, &str)| types.split_whitespace().any(|known| known == model_type);
        if let Some((modality, _)) = OTHER_MODALITIES.iter().find(is_known) {
            return Error::UnsupportedModality { model_type: model_type.into(), modality };
        }
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

/// The family of a checkpoint in `files`, whose `config.json`, if there is one, is `config`.
///
/// # Errors
/// Those of [`recognize`]; [`Error::Io`].
pub fn family(files: &Files, config: Option<&Value>) -> Result<&'static Entry> {
    let modules = files.json(MODULES)?;
    recognize(&Contents { names: &files.list()?, config, modules: modules.as_ref() })
}

/// The family of a checkpoint, by its files or else by its `model_type`.
///
/// # Errors
/// [`Error::CustomCode`], [`Error::Config`] without a `model_type`, and those of [`find`].
pub fn recognize(contents: &Contents) -> Result<&'static Entry> {
    if let Some(file) = contents.config.and_then(|config| config.get("model_file")?.as_str()) {
        return Err(Error::CustomCode(file.into()));
    }
    let matches = |family: &&Entry| family.files.matches.is_some_and(|matches| matches(contents));
    if let Some(family) = all().find(matches) {
        return Ok(family);
    }
    let config = contents.config.ok_or_else(|| Error::config("", "there is no such file"))?;
    find(model_type(config)?)
}

/// Builds the language model of a checkpoint without other files, of the family that its `model_type`
/// names.
///
/// # Errors
/// Those of [`find`] and of [`Entry::language`].
pub fn build(weights: &Scope) -> Result<Rc<dyn LanguageModel>> {
    find(model_type(&weights.config().to_value())?)?.language(weights)
}

/// The fields of a config that a built model does not use and that are not known to be harmless.
///
/// # Errors
/// [`Error::Unsupported`] for a field that changes the numbers.
pub fn ignored_fields(weights: &Scope) -> Result<Vec<String>> {
    config::ignored_fields(weights.config())
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
