//! The models on the disk.

use crate::error::MynahError;
use mynah::hub;
use std::{path::PathBuf, time::SystemTime};

/// A repository of which files are on the disk.
#[derive(Clone, Debug, uniffi::Record)]
pub struct StoredModel {
    /// The name, such as `org/name`.
    pub repository: String,
    /// Bytes on the disk, partial downloads included.
    pub bytes: u64,
    /// The revisions, the most recently used first.
    pub revisions: Vec<StoredRevision>,
}

/// One revision of a repository.
#[derive(Clone, Debug, uniffi::Record)]
pub struct StoredRevision {
    /// The hash of the commit.
    pub commit: String,
    /// The branches and tags that pointed at the commit when it was downloaded.
    pub names: Vec<String>,
    /// Bytes of the files; other revisions may share them.
    pub bytes: u64,
    /// The time of the last use, if known.
    pub last_used: Option<SystemTime>,
    /// Whether all files that a model needs are on the disk.
    pub complete: bool,
}

/// The default folder of the hub cache.
#[uniffi::export]
pub fn default_cache() -> String {
    hub::default_cache().to_string_lossy().into_owned()
}

fn folder(cache: Option<String>) -> PathBuf {
    cache.map_or_else(hub::default_cache, PathBuf::from)
}

/// The models in a hub cache, by default in the default one.
///
/// # Errors
/// When the folder cannot be read.
#[uniffi::export]
pub fn stored_models(cache: Option<String>) -> Result<Vec<StoredModel>, MynahError> {
    let revision = |revision: hub::CachedRevision| StoredRevision {
        commit: revision.commit,
        names: revision.names,
        bytes: revision.bytes,
        last_used: revision.last_used,
        complete: revision.complete,
    };
    let model = |model: hub::CachedModel| StoredModel {
        repository: model.repository,
        bytes: model.bytes,
        revisions: model.revisions.into_iter().map(revision).collect(),
    };
    Ok(hub::list(&folder(cache))?.into_iter().map(model).collect())
}

/// Deletes a model or one of its revisions and returns the number of freed bytes.
///
/// # Errors
/// When the model does not exist or cannot be deleted.
#[uniffi::export]
pub fn delete_model(
    repository: String,
    revision: Option<String>,
    cache: Option<String>,
) -> Result<u64, MynahError> {
    let (cache, repository) = (folder(cache), repository.parse()?);
    Ok(match revision {
        Some(revision) => hub::delete_revision(&cache, &repository, &revision)?,
        None => hub::delete(&cache, &repository)?,
    })
}
