//! The model families, one file or folder each, and the list of all. This room may use all rooms
//! below it up to `models`; it must not know generation, the engine or the API. To add a family:
//! its file with a [`Family`], and its name in the list of its modality.

pub(crate) mod entry;
pub(crate) mod family;
pub mod prelude;
#[cfg(test)]
pub(crate) mod tests;
pub mod text;

pub use entry::{Build, Checkpoint, Entry};
pub use family::{Family, Recommended, Sampling, model_type};

use crate::{
    checkpoint::{config::Json, file_rules::Contents, files::Files},
    error::{Error, Result},
};

/// All families.
pub fn all() -> impl Iterator<Item = &'static Entry> {
    #[cfg(test)]
    return text::FAMILIES.iter().chain(tests::FAMILIES);
    #[cfg(not(test))]
    text::FAMILIES.iter()
}

/// The family that reads a `model_type`.
///
/// # Errors
/// [`Error::UnknownModelType`] with the similarly spelled types.
pub fn find(model_type: &str) -> Result<&'static Entry> {
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

/// The family of a checkpoint in `files`, whose `config.json`, if there is one, is `config`.
///
/// # Errors
/// Those of [`recognize`]; [`Error::Io`].
pub fn family(files: &Files, config: Option<&Json>) -> Result<&'static Entry> {
    recognize(&Contents { names: &files.list()?, config })
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
