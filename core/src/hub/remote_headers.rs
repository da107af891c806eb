//! The small files and the safetensors headers of a repository, without its weights, so that a model
//! can be inspected before a download. They are written to a temporary folder as sparse files: the
//! weights behind a header are a hole, which takes no space on the disk.

use crate::hub::{
    ATTEMPTS, Cancel, Source,
    at_once::for_each_at_once,
    cache::{Cache, create_parent},
    cancel::run_on_thread,
    client::Client,
    listing::{Listing, RemoteFile},
    plan::Plan,
    select,
};
use crate::{
    checkpoint::{file_rules::FileRules, files::Files, weight_files::INDEX},
    error::{Error, Result},
};
use safetensors::tensor::Metadata;
use std::{
    env,
    fs::{self, File},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    process,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// The bytes of a file of weights that the first request reads. Most headers are shorter.
const FIRST_READ: u64 = 100_000;
/// The longest header that the safetensors format allows, in bytes.
const MAX_HEADER: u64 = 100_000_000;
/// A small file above this size is not downloaded, only created empty, unless it is the index of the
/// shards: an inspection looks for its name only.
const MAX_CONTENT: u64 = 1 << 20;

/// The small files and headers of a repository. Dropping it deletes the temporary folder.
pub(crate) struct RemoteHeaders {
    /// The folder of the files.
    pub files: Files,
    /// Whether the repository is gated; `None` if the hub was not asked.
    pub gated: Option<bool>,
    _folder: Option<TemporaryFolder>,
}

/// Downloads the small files and headers of a repository, or finds a complete snapshot in the cache.
///
/// # Errors
/// Those of [`super::download_snapshot`] without weights.
pub(crate) async fn remote_headers(source: &Source, plan: Plan) -> Result<RemoteHeaders> {
    let source = source.clone();
    run_on_thread(move |cancel| find_or_download(&source, cancel, plan)).await
}

fn find_or_download(source: &Source, cancel: &Cancel, plan: Plan) -> Result<RemoteHeaders> {
    let cache = Cache::of(source);
    let cached = |commit: &str, gated| RemoteHeaders {
        files: cache.snapshot(commit).into(),
        gated,
        _folder: None,
    };
    if source.is_pinned() || source.is_offline() {
        match cache.commit(source.revision()).filter(|commit| cache.is_complete(commit)) {
            Some(commit) => return Ok(cached(&commit, None)),
            None if source.is_offline() => return Err(source.not_cached_offline()),
            None => {}
        }
    }
    let client = Client::new(source, cancel)?;
    let listing = client.listing(source.revision(), ATTEMPTS)?;
    if cache.is_complete(&listing.commit) {
        return Ok(cached(&listing.commit, Some(listing.gated)));
    }
    let temporary = TemporaryFolder::new()?;
    let folder = &temporary.0;
    for_each_at_once(&select::small(&listing), |file| {
        let content = if file.size <= MAX_CONTENT || file.name == INDEX {
            client.bytes(&listing.commit, file, 0..file.size)?
        } else {
            Vec::new()
        };
        write_sparse(folder, file, &content)
    })?;
    let files = Files::from(folder.as_path());
    let index = files.json(INDEX)?;
    // Unsupported models can be inspected too.
    let rules = (plan.check_config)(&files, &listing.names()).unwrap_or(&FileRules::USUAL);
    for_each_at_once(&select::beside(&listing, rules), |file| {
        let size = if file.size <= MAX_CONTENT { file.size } else { 0 };
        write_sparse(folder, file, &client.bytes(&listing.commit, file, 0..size)?)
    })?;
    let weights = select::weights(&listing, index.as_ref(), rules)?;
    for_each_at_once(&weights, |file| {
        write_sparse(folder, file, &header(&client, &listing, file)?)
    })?;
    Ok(RemoteHeaders { files, gated: Some(listing.gated), _folder: Some(temporary) })
}

/// The headers of files of weights.
///
/// # Errors
/// Those of [`Client::listing`]; [`Error::Checkpoint`] for a damaged header.
pub(super) fn read_headers(
    client: &Client,
    listing: &Listing,
    weights: &[&RemoteFile],
) -> Result<Vec<Metadata>> {
    let headers = Mutex::new(Vec::<Metadata>::new());
    for_each_at_once(weights, |file| {
        let bytes = header(client, listing, file)?;
        let damaged = |error: serde_json::Error| Error::Checkpoint {
            file: file.name.as_str().into(),
            reason: format!("bad header: {error}"),
        };
        let header = serde_json::from_slice(bytes.get(8..).unwrap_or_default()).map_err(damaged)?;
        headers.lock().unwrap_or_else(PoisonError::into_inner).push(header);
        Ok(())
    })?;
    Ok(headers.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Reads the header of a file of weights, with the eight bytes of its length before it.
fn header(client: &Client, listing: &Listing, file: &RemoteFile) -> Result<Vec<u8>> {
    let first = file.size.min(FIRST_READ);
    let mut bytes = client.bytes(&listing.commit, file, 0..first)?;
    let length = bytes.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
    if length > MAX_HEADER {
        let reason =
            format!("its header has {length} bytes, more than the {MAX_HEADER} of the format");
        return Err(Error::Checkpoint { file: file.name.as_str().into(), reason });
    }
    let end = file.size.min(8 + length);
    bytes.truncate(end as usize);
    if end > first {
        bytes.extend(client.bytes(&listing.commit, file, first..end)?);
    }
    Ok(bytes)
}

/// Creates a file of the announced size that holds only its first bytes.
fn write_sparse(folder: &Path, file: &RemoteFile, content: &[u8]) -> Result<()> {
    let path = folder.join(&file.name);
    create_parent(&path)?;
    let written = File::create_new(&path).and_then(|mut new| {
        new.write_all(content)?;
        new.set_len(file.size)
    });
    written.map_err(Error::io(&path))
}

/// A folder that is deleted on drop.
struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    fn new() -> Result<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let folder = env::temp_dir().join(format!("mynah-{}-{number}", process::id()));
            match fs::create_dir(&folder) {
                Ok(()) => return Ok(TemporaryFolder(folder)),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io(&folder)(error)),
            }
        }
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}
