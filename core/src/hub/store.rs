//! The models that are on disk, in the layout that Python's huggingface_hub shares: what they take,
//! and how to be rid of them.
//!
//! Links are read and never followed further than from a snapshot to the blobs beside it.

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

/// What a folder begins with that holds a model's repository.
const MODELS: &str = "models--";
/// What is on its way out: nobody looks for models under this name.
const DELETED: &str = ".deleted--";

/// A repository of which something is on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CachedModel {
    /// Its name, such as `org/name`.
    pub repository: String,
    /// Bytes on disk, what several revisions share and what is unfinished included.
    pub bytes: u64,
    /// Its revisions, the one that was used last first.
    pub revisions: Vec<CachedRevision>,
}

/// One revision of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CachedRevision {
    /// The hash of the commit.
    pub commit: String,
    /// The branches and tags that stood at it when they were fetched.
    pub names: Vec<String>,
    /// Bytes of its files; other revisions may share them.
    pub bytes: u64,
    /// When it was loaded by this library, or one of its files read as far as the file system
    /// keeps account.
    #[serde(serialize_with = "seconds")]
    pub last_used: Option<SystemTime>,
    /// Whether all that a model needs is there.
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
    /// Its path in the snapshot, or the link there.
    path: PathBuf,
    /// The name of the blob that it is a link to.
    blob: Option<String>,
    bytes: u64,
}

/// The models below a cache folder; nothing when there is no such folder.
///
/// # Errors
/// [`Error::Io`].
pub fn list(cache: &Path) -> Result<Vec<CachedModel>> {
    let mut models = Vec::new();
    for name in names(cache)? {
        let Some(repository) = repository_of(&name) else { continue };
        if is_folder(&cache.join(name))? {
            models.push(look(cache, &repository)?);
        }
    }
    Ok(models)
}

/// Remembers that a snapshot is used now, where the cache may be written.
pub(super) fn mark_used(snapshot: &Path) {
    let now = fs::FileTimes::new().set_accessed(SystemTime::now());
    fs::File::open(snapshot.join("config.json")).and_then(|file| file.set_times(now)).ok();
}

/// Deletes a model; returns how many bytes became free.
///
/// # Errors
/// [`Error::NotCached`], [`Error::Io`].
pub fn delete(cache: &Path, repository: &Repository) -> Result<u64> {
    let model = find(cache, repository)?;
    discard(cache, &folder_of(cache, repository))?;
    Ok(model.bytes)
}

/// Deletes a revision, given by its commit or by a name, and the blobs that no other revision
/// uses; returns how many bytes became free. With its last revision a model is gone.
///
/// # Errors
/// [`Error::NotCached`], [`Error::Io`].
pub fn delete_revision(cache: &Path, repository: &Repository, revision: &str) -> Result<u64> {
    let model = find(cache, repository)?;
    let folder = folder_of(cache, repository);
    let is_meant = |known: &&CachedRevision| {
        known.commit == revision || known.names.iter().any(|name| name == revision)
    };
    let Some(meant) = model.revisions.iter().find(is_meant) else {
        return Err(not_cached(repository, Some(revision)));
    };
    if model.revisions.len() == 1 {
        return delete(cache, repository);
    }
    // In this order no name ever leads to what is gone, and no file to a blob that is.
    for name in &meant.names {
        let path = folder.join("refs").join(name);
        fs::remove_file(&path).map_err(Error::io(&path))?;
    }
    let snapshots = folder.join("snapshots");
    let entries = entries(&snapshots.join(&meant.commit))?;
    let mut freed: u64 = entries.iter().filter(|e| e.blob.is_none()).map(|e| e.bytes).sum();
    let mut unused: BTreeSet<_> = entries.into_iter().filter_map(|entry| entry.blob).collect();
    discard(cache, &snapshots.join(&meant.commit))?;
    for other in model.revisions.iter().filter(|other| other.commit != meant.commit) {
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
    let listing = folder.join("trees").join(format!("{}.json", meant.commit));
    for list in [listing, Cache::new(cache, repository).list_of_needed(&meant.commit)] {
        match fs::remove_file(&list) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                return Err(Error::Io { path: list, source });
            }
            _ => {}
        }
    }
    Ok(freed)
}

/// Moves a cache folder with all that is in it; nothing may be fetched or loaded meanwhile. Onto
/// another disk it is copied first, so that an interruption loses nothing.
///
/// # Errors
/// [`Error::Io`], also when `to` exists and is not an empty folder, or lies in what is moved.
pub fn move_to(cache: &Path, to: &Path) -> Result<()> {
    let refuse = |reason: &str| {
        let source = io::Error::new(ErrorKind::InvalidInput, reason);
        Err(Error::Io { path: to.into(), source })
    };
    let from = fs::canonicalize(cache).map_err(Error::io(cache))?;
    let to = path::absolute(to).map_err(Error::io(to))?;
    let (Some(parent), Some(name)) = (to.parent(), to.file_name()) else {
        return refuse("not the name of a folder");
    };
    let nearest = to.ancestors().find_map(|folder| fs::canonicalize(folder).ok());
    if nearest.is_some_and(|nearest| nearest.starts_with(&from)) {
        return refuse("lies in the folder that is moved");
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

/// Copies a folder; links stay links.
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

/// Takes a folder out of sight at once, and then off the disk.
fn discard(cache: &Path, folder: &Path) -> Result<()> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let doomed = cache.join(format!("{DELETED}{name}"));
    if metadata(&doomed)?.is_some() {
        fs::remove_dir_all(&doomed).map_err(Error::io(&doomed))?;
    }
    fs::rename(folder, &doomed).map_err(Error::io(folder))?;
    fs::remove_dir_all(&doomed).map_err(Error::io(&doomed))
}

fn not_cached(repository: &Repository, revision: Option<&str>) -> Error {
    let name = revision.map_or_else(|| repository.to_string(), |r| format!("{repository}@{r}"));
    Error::NotCached { name }
}

/// What is known of a path itself, not of what it is a link to.
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

/// What a folder holds, sorted; nothing when it is no folder. Names that are not Unicode are not
/// ours.
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

/// All files below a folder, by their paths from there.
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

/// The repository that a folder of the cache is for.
fn repository_of(folder: &str) -> Option<Repository> {
    folder.strip_prefix(MODELS)?.replacen("--", "/", 1).parse().ok()
}

fn folder_of(cache: &Path, repository: &Repository) -> PathBuf {
    cache.join(format!("{MODELS}{}", repository.as_str().replace('/', "--")))
}

fn find(cache: &Path, repository: &Repository) -> Result<CachedModel> {
    match is_folder(&folder_of(cache, repository))? {
        true => look(cache, repository),
        false => Err(not_cached(repository, None)),
    }
}

fn look(cache: &Path, repository: &Repository) -> Result<CachedModel> {
    let folder = folder_of(cache, repository);
    let bytes = files(&folder)?.iter().map(|(path, metadata)| on_disk(path, metadata)).sum();
    let mut names = BTreeMap::<String, Vec<String>>::new();
    let refs = folder.join("refs");
    for (name, metadata) in files(&refs)? {
        // Nothing that is no hash is read whole.
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
        let mut held = BTreeMap::new();
        for entry in entries(&snapshot)? {
            let path = match &entry.blob {
                Some(blob) => folder.join("blobs").join(blob),
                None => entry.path,
            };
            if let Some(metadata) = metadata(&path)? {
                held.insert(path, metadata);
            }
        }
        let used =
            |metadata: &Metadata| metadata.accessed().into_iter().chain(metadata.modified()).max();
        revisions.push(CachedRevision {
            names: names.remove(&commit).unwrap_or_default(),
            bytes: held.values().map(Metadata::len).sum(),
            last_used: held.values().filter_map(used).max(),
            complete: Cache::new(cache, repository).is_whole(&commit),
            commit,
        });
    }
    revisions.sort_by_key(|revision| Reverse(revision.last_used));
    Ok(CachedModel { repository: repository.to_string(), bytes, revisions })
}

/// Room for bytes that have not arrived yet takes none.
fn on_disk(path: &str, metadata: &Metadata) -> u64 {
    match metadata.is_file() {
        true if path.ends_with(".incomplete") => metadata.len().min(metadata.blocks() * 512),
        true => metadata.len(),
        false => 0,
    }
}

/// The files of a snapshot.
fn entries(snapshot: &Path) -> Result<Vec<Entry>> {
    let entry = |(path, metadata): (String, Metadata)| {
        let path = snapshot.join(path);
        let target = metadata.is_symlink().then(|| fs::read_link(&path)).transpose();
        let target = target.map_err(Error::io(&path))?;
        Ok(Entry { blob: target.as_deref().and_then(blob_of), bytes: metadata.len(), path })
    };
    files(snapshot)?.into_iter().map(entry).collect()
}

/// The blob that a link of a snapshot is to.
fn blob_of(target: &Path) -> Option<String> {
    let mut components = target.components().rev();
    match (components.next()?, components.next()?) {
        (Component::Normal(name), Component::Normal(folder)) if folder == "blobs" => {
            Some(name.to_str()?.into())
        }
        _ => None,
    }
}
