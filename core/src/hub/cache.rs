//! The cache on disk, in the layout of Python's `huggingface_hub`, which both may use at once:
//!
//! ```text
//! models--org--name/blobs/<hash>                      the bytes
//! models--org--name/snapshots/<commit>/<file>         a relative link to them
//! models--org--name/refs/<branch>                     the commit that it was last
//! .locks/models--org--name/<hash>.lock                held while a blob is fetched
//! ```
//!
//! A blob appears by a rename, whole and verified. Links to weights appear after those to all other
//! files, so a snapshot that holds all shards of its index is whole.

use crate::hub::{
    Repository, Source,
    listing::RemoteFile,
    select,
    source::{check_path, is_commit},
    transfer::Cancel,
    verify,
};
use crate::{
    checkpoint::{
        files::{Files, shards},
        shards::read_header,
    },
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
    /// The layout as the hub's own crate knows it.
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

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.layout.pointer_path(commit)
    }

    pub fn blob(&self, file: &RemoteFile) -> PathBuf {
        self.repository.join("blobs").join(&file.hash)
    }

    /// Where a blob grows. Python's older versions append to `<hash>.incomplete`, which must
    /// not have gaps, and its newer ones have a random name each.
    pub fn partial(&self, file: &RemoteFile) -> PathBuf {
        self.repository.join("blobs").join(format!("{}.mynah.incomplete", file.hash))
    }

    /// The commit that a branch or tag was when it was last asked for.
    pub fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.into());
        }
        let commit = fs::read_to_string(self.repository.join("refs").join(revision)).ok()?;
        Some(commit.trim().to_string()).filter(|commit| is_commit(commit))
    }

    /// Remembers which commit a branch or tag is.
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

    /// Creates the root, and says what backups need to know.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn prepare(&self) -> Result<()> {
        fs::create_dir_all(&self.root).map_err(Error::io(&self.root))?;
        let tag = self.root.join("CACHEDIR.TAG");
        if !tag.exists() {
            // https://bford.info/cachedir: nothing that can be fetched again is worth a backup.
            const SIGNATURE: &str = "Signature: 8a477f597d28d172789f06886806bc55\n";
            fs::write(&tag, SIGNATURE).map_err(Error::io(&tag))?;
            exclude_from_backup(&self.root)?;
        }
        Ok(())
    }

    /// Whether a file is there with its right size, and with its right bytes if it is small.
    pub fn has(&self, commit: &str, file: &RemoteFile) -> bool {
        let pointer = self.snapshot(commit).join(&file.name);
        is_intact(&pointer, file) && link_hash(&pointer).is_none_or(|hash| hash == file.hash)
    }

    /// Whether a file only lacks its link.
    pub fn has_blob(&self, file: &RemoteFile) -> bool {
        is_intact(&self.blob(file), file)
    }

    /// Makes a blob a file of a snapshot.
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
            // As Python does where there are no links: the blob itself becomes the file.
            Err(error) if is_no_link(&error) => fs::rename(&blob, new),
            done => done,
        })
    }

    /// Whether nothing that a model needs is missing from a snapshot, or damaged so that it shows.
    pub fn is_whole(&self, commit: &str) -> bool {
        let snapshot = self.snapshot(commit);
        let files = Files::from(snapshot.as_path());
        let shards = shards(&snapshot, &files).unwrap_or_default();
        !shards.is_empty()
            && matches!(files.json("config.json"), Ok(Some(_)))
            && shards.iter().all(|shard| read_header(&snapshot.join(shard)).is_ok())
            && small_files(&snapshot).iter().all(|path| is_what_it_links_to(path))
            && self.listed_by_python(commit).iter().all(|name| snapshot.join(name).exists())
    }

    /// The small files of a commit, if Python left a list of all files.
    fn listed_by_python(&self, commit: &str) -> Vec<String> {
        let list = self.repository.join("trees").join(format!("{commit}.json"));
        let list =
            fs::read(list).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        let files = list.as_ref().and_then(|list| list.get("files")?.as_object());
        let names = files.into_iter().flatten().map(|(name, _)| name);
        names.filter(|name| select::is_small(name) && check_path(name).is_ok()).cloned().collect()
    }

    /// Waits until no other process fetches this file. Where a file system has no locks, two that
    /// do write the same bytes to the same places.
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
                Err(TryLockError::WouldBlock) => cancel.pause(Duration::from_millis(50))?,
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                    return Ok(lock);
                }
                Err(TryLockError::Error(error)) => return Err(Error::io(&path)(error)),
            }
        }
    }

    /// [`Error::DiskFull`] unless so many bytes are free.
    ///
    /// # Errors
    /// That, and [`Error::Io`].
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

/// Creates the folder that a file is to be in.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn create_parent(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(Error::io(folder))
}

/// Puts a file in place of another one, or of none, in one step.
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

fn is_no_link(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied)
}

/// Whether the bytes at `path` are those of a file; those of weights are not hashed anew.
fn is_intact(path: &Path, file: &RemoteFile) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() == file.size)
        && (!select::is_small(&file.name)
            || verify::hash(path, &file.hash).is_ok_and(|hash| hash == file.hash))
}

/// The hash that the name of a linked blob is.
fn link_hash(path: &Path) -> Option<String> {
    let name = fs::read_link(path).ok()?.file_name()?.to_str()?.to_string();
    let is_hash = matches!(name.len(), 40 | 64) && name.bytes().all(|c| c.is_ascii_hexdigit());
    is_hash.then_some(name)
}

fn is_what_it_links_to(path: &Path) -> bool {
    match link_hash(path) {
        Some(expected) => verify::hash(path, &expected).is_ok_and(|hash| hash == expected),
        None => path.exists(),
    }
}

/// The small files of a snapshot that some model needs.
fn small_files(snapshot: &Path) -> Vec<PathBuf> {
    let folders = ["", "additional_chat_templates/"];
    let entries = folders.iter().flat_map(|folder| {
        let names = fs::read_dir(snapshot.join(folder)).into_iter().flatten().flatten();
        names.filter_map(move |entry| Some(format!("{folder}{}", entry.file_name().to_str()?)))
    });
    entries.filter(|name| select::is_small(name)).map(|name| snapshot.join(name)).collect()
}

/// The attribute that Foundation sets for `isExcludedFromBackup`: a property list of one string.
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
    fn a_snapshot_is_whole_when_nothing_is_missing_or_damaged() {
        let (root, cache) = cache();
        let repository = root.path().join("models--org--name");
        let snapshot = cache.snapshot(COMMIT);
        assert!(!cache.is_whole(COMMIT));
        hello(&cache, "merges.txt");
        fs::write(snapshot.join("config.json"), "{}").unwrap();
        assert!(!cache.is_whole(COMMIT));
        let weights = [&2u64.to_le_bytes()[..], b"{}"].concat();
        fs::write(snapshot.join("model.safetensors"), &weights).unwrap();
        assert!(cache.is_whole(COMMIT));

        let list = |names: &[&str]| {
            let files: serde_json::Map<_, _> =
                names.iter().map(|name| (name.to_string(), json!({"size": 1}))).collect();
            fs::create_dir_all(repository.join("trees")).unwrap();
            let list = json!({"format_version": 1, "files": files}).to_string();
            fs::write(repository.join(format!("trees/{COMMIT}.json")), list).unwrap();
        };
        list(&["README.md", "merges.txt", "pytorch_model.bin"]);
        assert!(cache.is_whole(COMMIT));
        list(&["tokenizer.json", "merges.txt"]);
        assert!(!cache.is_whole(COMMIT));
        list(&[]);

        fs::write(snapshot.join("merges.txt"), "jello\n").unwrap();
        assert!(!cache.is_whole(COMMIT));
        fs::write(snapshot.join("merges.txt"), "hello\n").unwrap();
        assert!(cache.is_whole(COMMIT));
        fs::write(snapshot.join("model.safetensors"), &weights[..9]).unwrap();
        assert!(!cache.is_whole(COMMIT));
    }

    #[test]
    fn a_lock_keeps_others_out_until_it_is_gone() {
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
