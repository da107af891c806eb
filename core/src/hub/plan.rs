//! What a caller wants of a repository, and how it judges the files while they are downloaded.

use crate::{
    checkpoint::{file_rules::FileRules, files::Files},
    error::Result,
};

/// A download as its caller wants it. The hub knows names and bytes; whether they are a model that
/// runs, the caller knows.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub wanted: Wanted,
    /// Whether a cached snapshot suffices when the hub cannot be asked; for tokenizers and adapters.
    pub is_complete: fn(&Files) -> bool,
    /// Called with the names of all files of the repository once `config.json`, if there is one, is
    /// downloaded and nothing else: which files the model needs. An error ends the download.
    pub check_config: fn(&Files, &[String]) -> Result<&'static FileRules>,
    /// Called before the weights are downloaded: an error ends the download.
    pub check_small: fn(&Files) -> Result<()>,
}

/// Which files of a repository are wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Config, tokenizer and weights.
    Model,
    /// The tokenizer and the chat template.
    Text,
    /// The files of an adapter.
    Adapter,
}
