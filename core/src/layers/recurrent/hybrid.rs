//! The kinds of layers of hybrid models, in every spelling of configs.

use crate::{
    checkpoint::config::{self, Json},
    error::{Error, Result},
};

/// What a layer of a hybrid model computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LayerKind {
    /// Attention.
    Attention,
    /// A recurrence or a state space model.
    Recurrence,
    /// A feed-forward network alone.
    Mlp,
    /// Experts alone.
    Experts,
}

impl LayerKind {
    /// The kind that configs call by this name: that of transformers, an older one, or one character
    /// of a pattern.
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "full_attention" | "sliding_attention" | "attention" | "*" => LayerKind::Attention,
            "linear_attention" | "mamba" | "recurrent" | "conv" | "M" => LayerKind::Recurrence,
            "mlp" | "-" => LayerKind::Mlp,
            "moe" | "E" => LayerKind::Experts,
            _ => return None,
        })
    }

    /// The kinds in the first of these fields that the config has: a list of names, or a pattern with
    /// one character for each layer.
    ///
    /// # Errors
    /// [`Error::Config`] for another type, [`Error::Unsupported`] for a kind that is not among
    /// `known`.
    pub fn of_config(
        config: &Json,
        fields: &[&str],
        known: &[LayerKind],
    ) -> Result<Option<Vec<Self>>> {
        let has = |field: &&&str| config.get(field).is_some_and(|value| !value.is_null());
        let Some(field) = fields.iter().find(has) else { return Ok(None) };
        let names: Vec<String> = match config.get(field).and_then(Json::as_str) {
            Some(pattern) => pattern.chars().map(String::from).collect(),
            None => config::field(config, field)?,
        };
        if names.is_empty() {
            return Err(Error::config(*field, "an empty list"));
        }
        let kind = |(layer, name): (usize, &String)| {
            let kind = Self::named(name).filter(|kind| known.contains(kind));
            kind.ok_or_else(|| {
                let reason = format!("`{name}` is no kind of layer that is supported here");
                Error::unsupported(format!("{field}[{layer}]"), reason)
            })
        };
        names.iter().enumerate().map(kind).collect::<Result<_>>().map(Some)
    }
}
