//! Hashes of downloaded files, computed while their bytes are received.

use crate::error::{Error, Result};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

/// Whether a hash is a SHA-256, which the hub gives for large (LFS) files, or a git blob SHA-1.
fn is_sha256(hash: &str) -> bool {
    hash.len() == 64
}

enum Hasher {
    Sha256(Sha256),
    Git(Sha1),
}

impl Hasher {
    /// A hasher of the kind of `expected`, for a file of this size.
    fn new(expected: &str, size: u64) -> Self {
        if is_sha256(expected) {
            Hasher::Sha256(Sha256::new())
        } else {
            Hasher::Git(Sha1::new_with_prefix(format!("blob {size}\0")))
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Git(hasher) => hasher.update(bytes),
        }
    }

    fn finish(self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self {
            Hasher::Sha256(hasher) => hex(&hasher.finalize()),
            Hasher::Git(hasher) => hex(&hasher.finalize()),
        }
    }
}

/// The hash of a file, of the kind of `expected`.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn hash(path: &Path, expected: &str) -> Result<String> {
    let size = path.metadata().map_err(Error::io(path))?.len();
    let (all, stop) = (AtomicU64::new(size), AtomicBool::new(true));
    Ok(hash_growing(path, expected, size, &all, &stop)?.unwrap_or_default())
}

/// The hash of a file that is still being written and whose first `prefix` bytes are final; `None`
/// when `stop` is set before the end. The caller unparks this thread after it sets `stop`.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn hash_growing(
    path: &Path,
    expected: &str,
    size: u64,
    prefix: &AtomicU64,
    stop: &AtomicBool,
) -> Result<Option<String>> {
    let mut hasher = Hasher::new(expected, size);
    let mut buffer = vec![0; 512 << 10];
    let mut file = None;
    let mut hashed = 0;
    while hashed < size {
        let stopping = stop.load(Ordering::Acquire);
        let end = prefix.load(Ordering::Acquire).min(size);
        if hashed == end {
            if stopping {
                return Ok(None);
            }
            thread::park_timeout(Duration::from_millis(20));
            continue;
        }
        let file = match &mut file {
            Some(file) => file,
            None => file.insert(File::open(path).map_err(Error::io(path))?),
        };
        let count = (end - hashed).min(buffer.len() as u64) as usize;
        file.read_exact_at(&mut buffer[..count], hashed).map_err(Error::io(path))?;
        hasher.update(&buffer[..count]);
        hashed += count as u64;
    }
    Ok(Some(hasher.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_hub() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "hello\n").unwrap();
        // printf 'hello\n' | git hash-object --stdin; printf 'hello\n' | sha256sum
        let git = "ce013625030ba8dba906f756967f9e9ca394464a";
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        assert_eq!(hash(&path, git).unwrap(), git);
        assert_eq!(hash(&path, sha256).unwrap(), sha256);
        std::fs::write(&path, "").unwrap();
        let empty = "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391";
        assert_eq!(hash(&path, empty).unwrap(), empty);
    }

    #[test]
    fn a_growing_file_is_hashed_up_to_its_final_prefix() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        let (prefix, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            let hash = scope.spawn(|| hash_growing(&path, sha256, 6, &prefix, &stop));
            std::fs::write(&path, "hel\0\0\0").unwrap();
            prefix.store(3, Ordering::Release);
            thread::sleep(Duration::from_millis(20));
            std::fs::write(&path, "hello\n").unwrap();
            prefix.store(6, Ordering::Release);
            assert_eq!(hash.join().unwrap().unwrap().as_deref(), Some(sha256));
        });
        stop.store(true, Ordering::Release);
        prefix.store(2, Ordering::Release);
        assert_eq!(hash_growing(&path, sha256, 6, &prefix, &stop).unwrap(), None);
    }
}
