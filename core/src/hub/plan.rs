//! What a caller wants of a repository, and how it judges the files while they are downloaded.

use crate::{
    checkpoint::{file_rules::FileRules, files::Files},
    error::Result,
};
use safetensors::tensor::Metadata;

/// Reads the headers of the weights from the hub.
pub(crate) type ReadHeaders<'a> = dyn Fn() -> Result<Vec<Metadata>> + 'a;

/// Which files to download, and the checks that may end the download early. The hub knows names and
/// bytes; only the caller knows whether the files are a model that it can run.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub wanted: Wanted,
    /// Whether a cached snapshot is enough when the hub cannot be reached; for tokenizers and
    /// adapters.
    pub is_complete: fn(&Files) -> bool,
    /// Called with the names of all files of the repository when `config.json`, `modules.json` and the
    /// index of the shards are on disk, as far as there are any: returns which files the model needs. An error ends the
    /// download.
    pub check_config: fn(&Files, &[String]) -> Result<&'static FileRules>,
    /// Called before the weights are downloaded, with what reads their headers from the hub; an error
    /// ends the download.
    pub check_headers: fn(&Files, &ReadHeaders<'_>) -> Result<()>,
    /// Called when all files but the weights are on disk; an error ends the download.
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
