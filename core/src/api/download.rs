//! Downloading models, tokenizers and adapters without loading them.

use crate::{
    checkpoint::{adapter, files::Files, quantization::Quantization},
    error::{Error, Result},
    families,
    hub::{self, Plan, Progress, Source, Wanted},
    text::{ChatTemplate, Tokenizer},
};
use serde_json::Value;
use std::path::PathBuf;

const MODEL: Plan = Plan {
    wanted: Wanted::Model,
    is_complete: |_| true,
    check_config: |files| {
        let config = config(files)?;
        families::family(&config)?;
        Quantization::read(&config).map(drop)
    },
    check_small: |files| ChatTemplate::load(files).map(drop),
};

const TEXT: Plan = Plan {
    wanted: Wanted::Text,
    is_complete: |files| matches!(Tokenizer::file(files), Ok(Some(_))),
    ..MODEL
};

const ADAPTER: Plan = Plan {
    wanted: Wanted::Adapter,
    is_complete: |files| adapter::fingerprint(files).is_ok(),
    ..MODEL
};

/// The config of a model.
pub(super) fn config(files: &Files) -> Result<Value> {
    files.json("config.json")?.ok_or_else(|| Error::config("", "there is no such file"))
}

/// Downloads a model into the cache, unless it is there, and returns the folder of its files.
///
/// ```no_run
/// # async fn example() -> mynah::Result<()> {
/// let source = mynah::Source::new("org/name@main")?;
/// let show = |progress: mynah::hub::Progress| println!("{:.0} %", 100.0 * progress.share());
/// let folder = mynah::download(&source, show).await?;
/// # Ok(()) }
/// ```
///
/// A complete snapshot of a commit, or of any revision when the source is offline, is found without
/// a request. Otherwise the hub is asked for the revision's commit; when it cannot be reached, the
/// snapshot of its last answer is used. `progress` is called on other threads, and not at all when
/// nothing is downloaded. Dropping the future cancels the download and keeps the bytes received.
///
/// # Errors
/// [`Error::Offline`], [`Error::RepositoryNotFound`], [`Error::RevisionNotFound`],
/// [`Error::Gated`], [`Error::Unauthorized`], [`Error::RateLimited`], [`Error::Network`],
/// [`Error::Server`], [`Error::HashMismatch`], [`Error::Changed`], [`Error::DiskFull`],
/// [`Error::Io`]; and why a model is refused, before its weights are downloaded.
pub async fn download(
    source: &Source,
    progress: impl FnMut(Progress) + Send + 'static,
) -> Result<PathBuf> {
    hub::fetch(source, MODEL, progress).await
}

/// Downloads only the tokenizer and the chat template of a repository, which need not have weights.
///
/// # Errors
/// As [`download`].
pub async fn download_text(source: &Source) -> Result<PathBuf> {
    hub::fetch(source, TEXT, drop).await
}

/// Downloads an adapter.
///
/// # Errors
/// As [`download`].
pub async fn download_adapter(source: &Source) -> Result<PathBuf> {
    hub::fetch(source, ADAPTER, drop).await
}
