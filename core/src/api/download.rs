//! Downloading models, tokenizers and adapters without loading them.

use crate::{
    api::location::Location,
    checkpoint::{
        adapter,
        file_rules::{Contents, FileRules, MODULES},
        files::Files,
        quantization::Quantization,
        shards,
    },
    error::{Error, Result},
    families,
    hub::{self, Plan, Progress, Source, Wanted},
    models::network::Kind,
    text::{ChatTemplate, Tokenizer},
};
use std::path::PathBuf;

/// A model of any kind.
pub(super) const MODEL: Plan = Plan {
    wanted: Wanted::Model,
    is_complete: |_| true,
    check_config: |files, names| check(files, names, None),
    check_headers: |files, headers| {
        let config = files.json(CONFIG)?.unwrap_or_default();
        match Quantization::read(&config)?.refuse_unknown() {
            Err(unknown) if shards::is_quantized(&headers()?) => Err(unknown),
            _ => Ok(()),
        }
    },
    check_small: |files| ChatTemplate::load(files).map(drop),
};

/// A language model.
pub(super) const LANGUAGE: Plan =
    Plan { check_config: |files, names| check(files, names, Some(Kind::Language)), ..MODEL };

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

/// The files that the model of a repository with these names needs.
fn check(files: &Files, names: &[String], kind: Option<Kind>) -> Result<&'static FileRules> {
    let config = files.json(CONFIG)?;
    let modules = files.json(MODULES)?;
    let contents = Contents { names, config: config.as_ref(), modules: modules.as_ref() };
    let family = families::recognize(&contents)?;
    let config = config.unwrap_or_default();
    if let Some(kind) = kind {
        family.expect(kind, &config)?;
    }
    Quantization::read(&config)?;
    Ok(&family.files)
}

/// The config of a model; a few families have none.
pub(super) const CONFIG: &str = "config.json";

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
/// [`Error::Io`]; and why a model is refused, before its weights are downloaded
/// ([`Error::Model`]).
pub async fn download(
    source: &Source,
    progress: impl FnMut(Progress) + Send + 'static,
) -> Result<PathBuf> {
    download_as(source, MODEL, progress).await
}

/// Downloads what a plan wants; errors have the name of the repository.
pub(super) async fn download_as(
    source: &Source,
    plan: Plan,
    progress: impl FnMut(Progress) + Send + 'static,
) -> Result<PathBuf> {
    let name = Location::from(source.clone()).to_string();
    hub::download_snapshot(source, plan, progress).await.map_err(Error::of_model(name))
}

/// Downloads only the tokenizer and the chat template of a repository, which need not have weights.
///
/// # Errors
/// As [`download`].
pub async fn download_text(source: &Source) -> Result<PathBuf> {
    download_as(source, TEXT, drop).await
}

/// Downloads an adapter.
///
/// # Errors
/// As [`download`].
pub async fn download_adapter(source: &Source) -> Result<PathBuf> {
    download_as(source, ADAPTER, drop).await
}
