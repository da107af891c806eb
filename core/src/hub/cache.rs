//! The cache on disk. It has the layout of Python's `huggingface_hub`, and both may use one cache at
//! the same time:
//!
//! ```text
//! models--org--name/blobs/<hash>                      the bytes of a file
//! models--org--name/snapshots/<commit>/<file>         a relative symbolic link to the blob
//! models--org--name/refs/<branch>                     the commit of the branch when it was last asked for
//! .locks/models--org--name/<hash>.lock                held while a blob is downloaded
//! ```
//!
//! A blob gets its name by a rename, after it was verified. Links to weights are created after the
//! links to all other files, so a snapshot with all shards of its index is complete.

use crate::hub::{
    Cancel, Repository, Source,
    listing::RemoteFile,
    select,
    source::{check_path, is_commit},
    verify,
};
use crate::{
    checkpoint::{file_rules::FileRules, files::Files, shards::read_header},
    error::{Error, Result},
};
use hf_hub::{CacheRepo, Repo};
use serde_json::Value;
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
    process,
    time::Duration,
};

/// The part of a cache that belongs to one repository.
pub(crate) struct Cache {
    root: PathBuf,
    repository: PathBuf,
    locks: PathBuf,
    /// The paths of the `hf-hub` crate.
    layout: CacheRepo,
}

impl Cache {
    pub(crate) fn of(source: &Source) -> Self {
        Cache::new(source.cache(), source.repository())
    }

    pub(super) fn new(root: &Path, repository: &Repository) -> Self {
        let root = root.to_path_buf();
        let repo = Repo::model(repository.as_str().into());
        let folder = repo.folder_name();
        Cache {
            repository: root.join(&folder),
            locks: root.join(".locks").join(folder),
            layout: hf_hub::Cache::new(root.clone()).repo(repo),
            root,
        }
    }

    /// The folder of a commit's files.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.layout.pointer_path(commit)
    }

    /// The path of a verified file's bytes.
    pub fn blob(&self, file: &RemoteFile) -> PathBuf {
        self.repository.join("blobs").join(&file.hash)
    }

    /// The path of a blob while it is downloaded. It differs from Python's names: older versions
    /// append to `<hash>.incomplete`, which must not have gaps, and newer ones use random names.
    pub fn partial(&self, file: &RemoteFile) -> PathBuf {
        self.repository.join("blobs").join(format!("{}.mynah.incomplete", file.hash))
    }

    /// The commit of a branch or tag when the hub was last asked.
    pub fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.into());
        }
        let commit = fs::read_to_string(self.repository.join("refs").join(revision)).ok()?;
        Some(commit.trim().to_string()).filter(|commit| is_commit(commit))
    }

    /// Records the commit of a branch or tag.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn set_commit(&self, revision: &str, commit: &str) -> Result<()> {
        if self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.repository.join("refs").join(revision);
        create_parent(&path)?;
        replace(&path, |new| fs::write(new, commit))
    }

    /// Creates the root folder and excludes it from backups.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn prepare(&self) -> Result<()> {
        fs::create_dir_all(&self.root).map_err(Error::io(&self.root))?;
        let tag = self.root.join("CACHEDIR.TAG");
        if !tag.exists() {
            // The tag of https://bford.info/cachedir tells backup tools to skip the folder.
            const SIGNATURE: &str = "Signature: 8a477f597d28d172789f06886806bc55\n";
            fs::write(&tag, SIGNATURE).map_err(Error::io(&tag))?;
            exclude_from_backup(&self.root)?;
        }
        Ok(())
    }

    /// Whether a snapshot has a file of the right size. The hash of a small file is verified too.
    pub fn has(&self, commit: &str, file: &RemoteFile) -> bool {
        let pointer = self.snapshot(commit).join(&file.name);
        is_intact(&pointer, file) && link_hash(&pointer).is_none_or(|hash| hash == file.hash)
    }

    /// Whether the blob of a file is complete, so that only its link may be missing.
    pub fn has_blob(&self, file: &RemoteFile) -> bool {
        is_intact(&self.blob(file), file)
    }

    /// Links a blob into a snapshot.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn link(&self, commit: &str, file: &RemoteFile) -> Result<()> {
        let pointer = self.snapshot(commit).join(&file.name);
        create_parent(&pointer)?;
        let up = "../".repeat(2 + file.name.matches('/').count());
        let target = format!("{up}blobs/{}", file.hash);
        let blob = self.blob(file);
        replace(&pointer, |new| match std::os::unix::fs::symlink(&target, new) {
            // Without symbolic links the blob itself becomes the file, as in Python.
            Err(error) if links_are_unsupported(&error) => fs::rename(&blob, new),
            done => done,
        })
    }

    /// Whether a snapshot has every file that a model needs. Small files are verified by their hash,
    /// weights only by their header and size.
    pub fn is_complete(&self, commit: &str) -> bool {
        let snapshot = self.snapshot(commit);
        let is_small_whole = || small_files(&snapshot).iter().all(|path| matches_its_hash(path));
        if let Some(needed) = self.needed(commit) {
            return needed.iter().all(|name| is_readable(&snapshot.join(name))) && is_small_whole();
        }
        let files = Files::from(snapshot.as_path());
        let shards = files.weights(&FileRules::USUAL).unwrap_or_default().names;
        !shards.is_empty()
            && matches!(files.json("config.json"), Ok(Some(_)))
            && shards.iter().all(|shard| read_header(&snapshot.join(shard)).is_ok())
            && is_small_whole()
            && self.names_listed_by_python(commit).iter().all(|name| snapshot.join(name).exists())
    }

    /// Records which files the model of a commit needs, where they are not the usual ones.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn set_needed(&self, commit: &str, names: &[&str]) -> Result<()> {
        let path = self.list_of_needed(commit);
        create_parent(&path)?;
        replace(&path, |new| fs::write(new, names.join("\n")))
    }

    /// The files that [`Cache::set_needed`] has recorded.
    fn needed(&self, commit: &str) -> Option<Vec<String>> {
        let list = fs::read_to_string(self.list_of_needed(commit)).ok()?;
        Some(list.lines().filter(|name| check_path(name).is_ok()).map(String::from).collect())
    }

    /// Where [`Cache::set_needed`] records it.
    pub fn list_of_needed(&self, commit: &str) -> PathBuf {
        self.repository.join("mynah").join(format!("{commit}.needed"))
    }

    /// The small files of a commit in the list of files that newer versions of Python's library write.
    fn names_listed_by_python(&self, commit: &str) -> Vec<String> {
        let list = self.repository.join("trees").join(format!("{commit}.json"));
        let list =
            fs::read(list).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        let files = list.as_ref().and_then(|list| list.get("files")?.as_object());
        let names = files.into_iter().flatten().map(|(name, _)| name);
        names.filter(|name| select::is_small(name) && check_path(name).is_ok()).cloned().collect()
    }

    /// Waits until no other process downloads this file. On a file system without locks two processes
    /// may download it at once; they write the same bytes to the same places.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Cancelled`].
    pub fn lock(&self, file: &RemoteFile, cancel: &Cancel) -> Result<File> {
        let path = self.locks.join(format!("{}.lock", file.hash));
        create_parent(&path)?;
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let lock = lock.map_err(Error::io(&path))?;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(lock),
                Err(TryLockError::WouldBlock) => cancel.sleep(Duration::from_millis(50))?,
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                    return Ok(lock);
                }
                Err(TryLockError::Error(error)) => return Err(Error::io(&path)(error)),
            }
        }
    }

    /// Checks that the disk has `needed` free bytes.
    ///
    /// # Errors
    /// [`Error::DiskFull`], [`Error::Io`].
    pub fn require_space(&self, needed: u64) -> Result<()> {
        let disk = rustix::fs::statvfs(&self.root);
        let disk = disk.map_err(|error| Error::io(&self.root)(error.into()))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if needed <= free {
            return Ok(());
        }
        Err(Error::DiskFull { folder: self.root.clone(), needed, free })
    }
}

/// Creates the parent folder of a file.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn create_parent(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(Error::io(folder))
}

/// Creates or replaces a file atomically: `create` makes it under a temporary name.
fn replace(path: &Path, create: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.{:?}.tmp", process::id(), std::thread::current().id()));
    let new = path.with_file_name(name);
    fs::remove_file(&new).ok();
    let outcome = create(&new).and_then(|()| fs::rename(&new, path));
    if outcome.is_err() {
        fs::remove_file(&new).ok();
    }
    outcome.map_err(Error::io(path))
}

fn links_are_unsupported(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied)
}

/// Whether the file at `path` has the announced size and, unless it is weights, the announced hash.
fn is_intact(path: &Path, file: &RemoteFile) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() == file.size)
        && (!select::is_small(&file.name)
            || verify::hash(path, &file.hash).is_ok_and(|hash| hash == file.hash))
}

/// The hash in the name of the blob that `path` links to.
fn link_hash(path: &Path) -> Option<String> {
    let name = fs::read_link(path).ok()?.file_name()?.to_str()?.to_string();
    let is_hash = matches!(name.len(), 40 | 64) && name.bytes().all(|c| c.is_ascii_hexdigit());
    is_hash.then_some(name)
}

/// Whether a linked file has the hash of its blob's name.
fn matches_its_hash(path: &Path) -> bool {
    match link_hash(path) {
        Some(expected) => verify::hash(path, &expected).is_ok_and(|hash| hash == expected),
        None => path.exists(),
    }
}

/// Whether a file is there; a safetensors file needs a header that fits its size.
fn is_readable(path: &Path) -> bool {
    match path.extension() {
        Some(extension) if extension == "safetensors" => read_header(path).is_ok(),
        _ => path.exists(),
    }
}

/// The files of a snapshot that are not weights.
fn small_files(snapshot: &Path) -> Vec<PathBuf> {
    let folders = ["", "additional_chat_templates/"];
    let entries = folders.iter().flat_map(|folder| {
        let names = fs::read_dir(snapshot.join(folder)).into_iter().flatten().flatten();
        names.filter_map(move |entry| Some(format!("{folder}{}", entry.file_name().to_str()?)))
    });
    entries.filter(|name| select::is_small(name)).map(|name| snapshot.join(name)).collect()
}

/// Sets the attribute that Foundation sets for `isExcludedFromBackup`: a property list of one string.
#[cfg(all(target_vendor = "apple", not(target_os = "macos")))]
fn exclude_from_backup(folder: &Path) -> Result<()> {
    const NAME: &str = "com.apple.metadata:com_apple_backup_excludeItem";
    const VALUE: &[u8] =
        b"bplist00_\x10\x11com.apple.backupd\x08\0\0\0\0\0\0\x01\x01\0\0\0\0\0\0\0\x01\
        \0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x1c";
    let set = rustix::fs::setxattr(folder, NAME, VALUE, rustix::fs::XattrFlags::empty());
    set.map_err(|error| Error::io(folder)(error.into()))
}

#[cfg(not(all(target_vendor = "apple", not(target_os = "macos"))))]
fn exclude_from_backup(_: &Path) -> Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    // printf 'hello\n' | git hash-object --stdin
    const HELLO: &str = "ce013625030ba8dba906f756967f9e9ca394464a";

    fn cache() -> (tempfile::TempDir, Cache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path(), &"org/name".parse().unwrap());
        (folder, cache)
    }

    /// A file of the snapshot with the content `hello`.
    fn hello(cache: &Cache, name: &str) -> RemoteFile {
        let file = RemoteFile { name: name.into(), size: 6, hash: HELLO.into() };
        create_parent(&cache.blob(&file)).unwrap();
        fs::write(cache.blob(&file), "hello\n").unwrap();
        cache.link(COMMIT, &file).unwrap();
        file
    }

    #[test]
    fn the_layout_is_that_of_python() {
        let (root, cache) = cache();
        let repository = root.path().join("models--org--name");
        let nested = hello(&cache, "additional_chat_templates/a.jinja");
        let file = hello(&cache, "chat_template.jinja");
        let snapshot = repository.join("snapshots").join(COMMIT);
        for (file, up) in [(&file, "../../"), (&nested, "../../../")] {
            let target = fs::read_link(snapshot.join(&file.name)).unwrap();
            assert_eq!(target, Path::new(&format!("{up}blobs/{HELLO}")));
            assert!(cache.has(COMMIT, file));
        }
        assert!(!cache.has(COMMIT, &RemoteFile { hash: "0".repeat(40), ..file.clone() }));
        fs::write(cache.blob(&file), "jello\n").unwrap();
        assert!(!cache.has(COMMIT, &file) && !cache.has_blob(&file));

        assert_eq!(cache.commit("refs/pr/1"), None);
        cache.set_commit("refs/pr/1", COMMIT).unwrap();
        assert_eq!(fs::read_to_string(repository.join("refs/refs/pr/1")).unwrap(), COMMIT);
        assert_eq!(cache.commit("refs/pr/1").as_deref(), Some(COMMIT));
        fs::write(repository.join("refs/main"), "../../etc").unwrap();
        assert_eq!(cache.commit("main"), None);
    }

    #[test]
    fn a_snapshot_is_complete_when_no_file_is_missing_or_damaged() {
        let (root, cache) = cache();
        let repository = root.path().join("models--org--name");
        let snapshot = cache.snapshot(COMMIT);
        assert!(!cache.is_complete(COMMIT));
        hello(&cache, "merges.txt");
        fs::write(snapshot.join("config.json"), "{}").unwrap();
        assert!(!cache.is_complete(COMMIT));
        let weights = [&2u64.to_le_bytes()[..], b"{}"].concat();
        fs::write(snapshot.join("model.safetensors"), &weights).unwrap();
        assert!(cache.is_complete(COMMIT));

        let list = |names: &[&str]| {
            let files: serde_json::Map<_, _> =
                names.iter().map(|name| (name.to_string(), json!({"size": 1}))).collect();
            fs::create_dir_all(repository.join("trees")).unwrap();
            let list = json!({"format_version": 1, "files": files}).to_string();
            fs::write(repository.join(format!("trees/{COMMIT}.json")), list).unwrap();
        };
        list(&["README.md", "merges.txt", "pytorch_model.bin"]);
        assert!(cache.is_complete(COMMIT));
        list(&["tokenizer.json", "merges.txt"]);
        assert!(!cache.is_complete(COMMIT));
        list(&[]);

        fs::write(snapshot.join("merges.txt"), "jello\n").unwrap();
        assert!(!cache.is_complete(COMMIT));
        fs::write(snapshot.join("merges.txt"), "hello\n").unwrap();
        assert!(cache.is_complete(COMMIT));
        fs::write(snapshot.join("model.safetensors"), &weights[..9]).unwrap();
        assert!(!cache.is_complete(COMMIT));
    }

    #[test]
    fn a_snapshot_with_files_of_its_own_is_whole_when_they_are_there() {
        let (_root, cache) = cache();
        let snapshot = cache.snapshot(COMMIT);
        hello(&cache, "merges.txt");
        let weights = [&2u64.to_le_bytes()[..], b"{}"].concat();
        fs::write(snapshot.join("a.safetensors"), &weights).unwrap();
        assert!(!cache.is_complete(COMMIT));
        cache.set_needed(COMMIT, &["a.safetensors", "am.mvn", "merges.txt"]).unwrap();
        assert!(!cache.is_complete(COMMIT));
        fs::write(snapshot.join("am.mvn"), "1").unwrap();
        assert!(cache.is_complete(COMMIT));
        fs::write(snapshot.join("a.safetensors"), &weights[..9]).unwrap();
        assert!(!cache.is_complete(COMMIT));
    }

    #[test]
    fn a_lock_excludes_others_until_it_is_dropped() {
        let (_root, cache) = cache();
        let file = RemoteFile { name: "config.json".into(), size: 6, hash: HELLO.into() };
        let held = cache.lock(&file, &Cancel::default()).unwrap();
        let cancel = Cancel::default();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| cache.lock(&file, &cancel));
            std::thread::sleep(Duration::from_millis(60));
            assert!(!waiting.is_finished());
            cancel.cancel();
            assert!(matches!(waiting.join().unwrap(), Err(Error::Cancelled)));
            let waiting = scope.spawn(|| cache.lock(&file, &Cancel::default()).map(drop));
            drop(held);
            waiting.join().unwrap().unwrap();
        });
    }
}
