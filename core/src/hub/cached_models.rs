//! The models in the cache: listing them with their sizes, deleting them, and moving the cache to
//! another folder.
//!
//! Symbolic links are read and not followed, except from a snapshot to the blobs beside it.

use crate::error::{Error, Result};
use crate::hub::{Repository, cache::Cache};
use serde::Serialize;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    fs::{self, Metadata},
    io::{self, ErrorKind},
    os::unix::fs::{MetadataExt, symlink},
    path::{self, Component, Path, PathBuf},
    time::SystemTime,
};

/// The prefix of a repository's folder.
const PREFIX: &str = "models--";
/// The prefix of a folder that is being deleted; it is not listed.
const DELETED: &str = ".deleted--";

/// A repository with files in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CachedModel {
    /// The repository, such as `org/name`.
    pub repository: String,
    /// Bytes on disk. Files shared by several revisions count once; partial downloads are included.
    pub bytes: u64,
    /// The revisions, most recently used first.
    pub revisions: Vec<CachedRevision>,
}

/// One revision of a repository in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CachedRevision {
    /// The hash of the commit.
    pub commit: String,
    /// The branches and tags that pointed at the commit when the hub was last asked.
    pub names: Vec<String>,
    /// Bytes of the revision's files; other revisions may share them.
    pub bytes: u64,
    /// When this library last loaded the revision, or when one of its files was last read if the file
    /// system records that.
    #[serde(serialize_with = "seconds")]
    pub last_used: Option<SystemTime>,
    /// Whether every file that a model needs is in the cache.
    pub complete: bool,
}

fn seconds<S: serde::Serializer>(
    time: &Option<SystemTime>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let since = time.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    since.map(|since| since.as_secs()).serialize(serializer)
}

/// A file of a snapshot.
struct Entry {
    /// The path in the snapshot.
    path: PathBuf,
    /// The name of the blob, if the file is a link.
    blob: Option<String>,
    bytes: u64,
}

/// The models in a cache folder; empty if the folder does not exist.
///
/// # Errors
/// [`Error::Io`].
pub fn list(cache: &Path) -> Result<Vec<CachedModel>> {
    let mut models = Vec::new();
    for name in names(cache)? {
        let Some(repository) = repository_of(&name) else { continue };
        if is_folder(&cache.join(name))? {
            models.push(read_model(cache, &repository)?);
        }
    }
    Ok(models)
}

/// Records that a snapshot is used now. Errors are ignored, because the cache may be read-only.
pub(super) fn mark_used(snapshot: &Path) {
    let now = fs::FileTimes::new().set_accessed(SystemTime::now());
    fs::File::open(snapshot.join("config.json")).and_then(|file| file.set_times(now)).ok();
}

/// Deletes a model and returns the number of bytes freed.
///
/// # Errors
/// [`Error::NotCached`], [`Error::Io`].
pub fn delete(cache: &Path, repository: &Repository) -> Result<u64> {
    let model = find(cache, repository)?;
    delete_folder(cache, &folder_of(cache, repository))?;
    Ok(model.bytes)
}

/// Deletes a revision, given by its commit, branch or tag, and the blobs that no other revision uses.
/// Deleting the last revision deletes the model. Returns the number of bytes freed.
///
/// # Errors
/// [`Error::NotCached`], [`Error::Io`].
pub fn delete_revision(cache: &Path, repository: &Repository, revision: &str) -> Result<u64> {
    let model = find(cache, repository)?;
    let folder = folder_of(cache, repository);
    let matches = |known: &&CachedRevision| {
        known.commit == revision || known.names.iter().any(|name| name == revision)
    };
    let Some(deleted) = model.revisions.iter().find(matches) else {
        return Err(not_cached(repository, Some(revision)));
    };
    if model.revisions.len() == 1 {
        return delete(cache, repository);
    }
    // The order matters if the process is killed: no ref points at a deleted snapshot, and no link at
    // a deleted blob.
    for name in &deleted.names {
        let path = folder.join("refs").join(name);
        fs::remove_file(&path).map_err(Error::io(&path))?;
    }
    let snapshots = folder.join("snapshots");
    let entries = entries(&snapshots.join(&deleted.commit))?;
    let mut freed: u64 = entries.iter().filter(|e| e.blob.is_none()).map(|e| e.bytes).sum();
    let mut unused: BTreeSet<_> = entries.into_iter().filter_map(|entry| entry.blob).collect();
    delete_folder(cache, &snapshots.join(&deleted.commit))?;
    for other in model.revisions.iter().filter(|other| other.commit != deleted.commit) {
        for entry in self::entries(&snapshots.join(&other.commit))? {
            entry.blob.map(|blob| unused.remove(&blob));
        }
    }
    for blob in unused {
        let path = folder.join("blobs").join(blob);
        let Some(metadata) = metadata(&path)? else { continue };
        fs::remove_file(&path).map_err(Error::io(&path))?;
        freed += metadata.len();
    }
    let listing = folder.join("trees").join(format!("{}.json", deleted.commit));
    for list in [listing, Cache::new(cache, repository).list_of_needed(&deleted.commit)] {
        match fs::remove_file(&list) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                return Err(Error::Io { path: list, source });
            }
            _ => {}
        }
    }
    Ok(freed)
}

/// Moves a cache folder and its content. No model may be downloaded or loaded meanwhile. A move to
/// another disk copies first and deletes afterwards, so that an interruption loses nothing.
///
/// # Errors
/// [`Error::Io`], also when `to` exists and is not an empty folder, or lies inside `cache`.
pub fn move_to(cache: &Path, to: &Path) -> Result<()> {
    let refuse = |reason: &str| {
        let source = io::Error::new(ErrorKind::InvalidInput, reason);
        Err(Error::Io { path: to.into(), source })
    };
    let from = fs::canonicalize(cache).map_err(Error::io(cache))?;
    let to = path::absolute(to).map_err(Error::io(to))?;
    let (Some(parent), Some(name)) = (to.parent(), to.file_name()) else {
        return refuse("the target is not the name of a folder");
    };
    let nearest = to.ancestors().find_map(|folder| fs::canonicalize(folder).ok());
    if nearest.is_some_and(|nearest| nearest.starts_with(&from)) {
        return refuse("the target lies inside the folder that would be moved");
    }
    fs::create_dir_all(parent).map_err(Error::io(parent))?;
    if metadata(&to)?.is_some() {
        fs::remove_dir(&to).map_err(Error::io(&to))?;
    }
    match fs::rename(&from, &to) {
        Err(error) if error.kind() == ErrorKind::CrossesDevices => {
            let mut unfinished = name.to_os_string();
            unfinished.push(".incomplete");
            let unfinished = to.with_file_name(unfinished);
            if metadata(&unfinished)?.is_some() {
                fs::remove_dir_all(&unfinished).map_err(Error::io(&unfinished))?;
            }
            copy(&from, &unfinished)?;
            fs::rename(&unfinished, &to).map_err(Error::io(&to))?;
            fs::remove_dir_all(&from).map_err(Error::io(&from))
        }
        moved => moved.map_err(Error::io(&to)),
    }
}

/// Copies a folder; links are copied as links.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to).map_err(Error::io(to))?;
    for name in names(from)? {
        let (from, to) = (from.join(&name), to.join(&name));
        let Some(metadata) = metadata(&from)? else { continue };
        if metadata.is_dir() {
            copy(&from, &to)?;
        } else if metadata.is_symlink() {
            let target = fs::read_link(&from).map_err(Error::io(&from))?;
            symlink(target, &to).map_err(Error::io(&to))?;
        } else {
            fs::copy(&from, &to).map_err(Error::io(&to))?;
            let file = fs::File::open(&to).map_err(Error::io(&to))?;
            let times =
                fs::FileTimes::new().set_accessed(metadata.accessed().map_err(Error::io(&from))?);
            let times = times.set_modified(metadata.modified().map_err(Error::io(&from))?);
            file.set_times(times).and_then(|()| file.sync_all()).map_err(Error::io(&to))?;
        }
    }
    Ok(())
}

/// Renames a folder so that it is no longer listed, and then deletes it.
fn delete_folder(cache: &Path, folder: &Path) -> Result<()> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let renamed = cache.join(format!("{DELETED}{name}"));
    if metadata(&renamed)?.is_some() {
        fs::remove_dir_all(&renamed).map_err(Error::io(&renamed))?;
    }
    fs::rename(folder, &renamed).map_err(Error::io(folder))?;
    fs::remove_dir_all(&renamed).map_err(Error::io(&renamed))
}

fn not_cached(repository: &Repository, revision: Option<&str>) -> Error {
    let name = revision.map_or_else(|| repository.to_string(), |r| format!("{repository}@{r}"));
    Error::NotCached { name }
}

/// The metadata of a path, without following a link; `None` if nothing exists there.
fn metadata(path: &Path) -> Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { path: path.into(), source }),
    }
}

fn is_folder(path: &Path) -> Result<bool> {
    Ok(metadata(path)?.is_some_and(|metadata| metadata.is_dir()))
}

/// The names in a folder, sorted; empty if it is not a folder. Names that are not Unicode are left
/// out, because this library does not create them.
fn names(folder: &Path) -> Result<Vec<String>> {
    if !is_folder(folder)? {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        names.extend(entry.map_err(Error::io(folder))?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// All files below a folder, by their relative paths.
fn files(folder: &Path) -> Result<BTreeMap<String, Metadata>> {
    let mut files = BTreeMap::new();
    for name in names(folder)? {
        let Some(metadata) = metadata(&folder.join(&name))? else { continue };
        if metadata.is_dir() {
            let below = self::files(&folder.join(&name))?.into_iter();
            files.extend(below.map(|(path, metadata)| (format!("{name}/{path}"), metadata)));
        } else {
            files.insert(name, metadata);
        }
    }
    Ok(files)
}

/// The repository of a folder of the cache.
fn repository_of(folder: &str) -> Option<Repository> {
    folder.strip_prefix(PREFIX)?.replacen("--", "/", 1).parse().ok()
}

fn folder_of(cache: &Path, repository: &Repository) -> PathBuf {
    cache.join(format!("{PREFIX}{}", repository.as_str().replace('/', "--")))
}

fn find(cache: &Path, repository: &Repository) -> Result<CachedModel> {
    match is_folder(&folder_of(cache, repository))? {
        true => read_model(cache, repository),
        false => Err(not_cached(repository, None)),
    }
}

/// Reads the revisions and sizes of a repository in the cache.
fn read_model(cache: &Path, repository: &Repository) -> Result<CachedModel> {
    let folder = folder_of(cache, repository);
    let bytes = files(&folder)?.iter().map(|(path, metadata)| on_disk(path, metadata)).sum();
    let mut names = BTreeMap::<String, Vec<String>>::new();
    let refs = folder.join("refs");
    for (name, metadata) in files(&refs)? {
        // A ref holds one hash, so a longer file is not a ref.
        if metadata.is_file() && metadata.len() < 100 {
            let path = refs.join(&name);
            let commit = fs::read_to_string(&path).map_err(Error::io(&path))?;
            names.entry(commit.trim().into()).or_default().push(name);
        }
    }
    let snapshots = folder.join("snapshots");
    let mut revisions = Vec::new();
    for commit in self::names(&snapshots)? {
        let snapshot = snapshots.join(&commit);
        if !is_folder(&snapshot)? {
            continue;
        }
        let mut blobs = BTreeMap::new();
        for entry in entries(&snapshot)? {
            let path = match &entry.blob {
                Some(blob) => folder.join("blobs").join(blob),
                None => entry.path,
            };
            if let Some(metadata) = metadata(&path)? {
                blobs.insert(path, metadata);
            }
        }
        let used =
            |metadata: &Metadata| metadata.accessed().into_iter().chain(metadata.modified()).max();
        revisions.push(CachedRevision {
            names: names.remove(&commit).unwrap_or_default(),
            bytes: blobs.values().map(Metadata::len).sum(),
            last_used: blobs.values().filter_map(used).max(),
            complete: Cache::new(cache, repository).is_complete(&commit),
            commit,
        });
    }
    revisions.sort_by_key(|revision| Reverse(revision.last_used));
    Ok(CachedModel { repository: repository.to_string(), bytes, revisions })
}

/// The bytes that a file takes. A partial download is sparse: its holes take no space.
fn on_disk(path: &str, metadata: &Metadata) -> u64 {
    match metadata.is_file() {
        true if path.ends_with(".incomplete") => metadata.len().min(metadata.blocks() * 512),
        true => metadata.len(),
        false => 0,
    }
}

/// The files of a snapshot, with the blobs that they link to.
fn entries(snapshot: &Path) -> Result<Vec<Entry>> {
    let entry = |(path, metadata): (String, Metadata)| {
        let path = snapshot.join(path);
        let target = metadata.is_symlink().then(|| fs::read_link(&path)).transpose();
        let target = target.map_err(Error::io(&path))?;
        Ok(Entry { blob: target.as_deref().and_then(blob_of), bytes: metadata.len(), path })
    };
    files(snapshot)?.into_iter().map(entry).collect()
}

/// The name of the blob that a link of a snapshot points to.
fn blob_of(target: &Path) -> Option<String> {
    let mut components = target.components().rev();
    match (components.next()?, components.next()?) {
        (Component::Normal(name), Component::Normal(folder)) if folder == "blobs" => {
            Some(name.to_str()?.into())
        }
        _ => None,
    }
}
