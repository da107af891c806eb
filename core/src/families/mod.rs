//! The model families, one file or folder each, and the list of all. This room may use all rooms
//! below it up to `models`; it must not know generation, the engine or the API. To add a family:
//! its file, and its name in the list of its modality.

pub(crate) mod family;
pub mod prelude;
pub mod text;

pub use family::{Family, Recommended, Sampling};

use crate::{
    checkpoint::config::Json,
    error::{Error, Result},
};

/// All families.
pub fn all() -> impl Iterator<Item = &'static Family> {
    text::FAMILIES.iter()
}

/// The family that reads a `model_type`.
///
/// # Errors
/// [`Error::UnknownModelType`] with similarly spelled types.
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
pub fn family(config: &Json) -> Result<&'static Family> {
    if let Some(file) = config.get("model_file").and_then(Json::as_str) {
        return Err(Error::CustomCode(file.into()));
    }
    find(model_type(config)?)
}

/// The `model_type` of a config.
///
/// # Errors
/// [`Error::Config`] when it is missing or not a string.
pub fn model_type(config: &Json) -> Result<&str> {
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
