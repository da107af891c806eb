//! The models that are on disk.

use crate::error::MynahError;
use mynah::hub;
use std::{path::PathBuf, time::SystemTime};

/// A repository of which something is on disk.
#[derive(Clone, Debug, uniffi::Record)]
pub struct StoredModel {
    /// Its name, such as `org/name`.
    pub repository: String,
    /// Bytes on disk, what is unfinished included.
    pub bytes: u64,
    /// Its revisions, the one that was used last first.
    pub revisions: Vec<StoredRevision>,
}

/// One revision of it.
#[derive(Clone, Debug, uniffi::Record)]
pub struct StoredRevision {
    /// The hash of the commit.
    pub commit: String,
    /// The branches and tags that stood at it when they were fetched.
    pub names: Vec<String>,
    /// Bytes of its files; other revisions may share them.
    pub bytes: u64,
    /// When it was used last, as far as that is known.
    pub last_used: Option<SystemTime>,
    /// Whether all that a model needs is there.
    pub complete: bool,
}

/// The folder of models unless another one is given.
#[uniffi::export]
pub fn default_cache() -> String {
    hub::default_cache().to_string_lossy().into_owned()
}

fn folder(cache: Option<String>) -> PathBuf {
    cache.map_or_else(hub::default_cache, PathBuf::from)
}

/// The models in a folder, or in the default one.
///
/// # Errors
/// When it cannot be read.
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

/// Deletes a model, or one revision of it; returns how many bytes became free.
///
/// # Errors
/// When there is no such model, or it cannot be deleted.
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
