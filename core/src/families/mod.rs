//! One file a model family. To add one: the file, and its name in the list of its modality.

pub mod text;

use crate::{
    config::Json,
    error::{Error, Result},
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
