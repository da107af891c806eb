//! A checkpoint without its weights: the small files of a repository, and files of weights of which
//! only the header is there. The rest of them are holes, which take no room on the disk.

use crate::hub::{
    ATTEMPTS, Cancel, Source,
    cache::{Cache, create_parent},
    client::Client,
    fetch::on_thread,
    listing::{Listing, RemoteFile},
    plan::Plan,
    select,
};
use crate::{
    checkpoint::{file_rules::FileRules, files::Files},
    error::{Error, Result},
};
use std::{
    env,
    fs::{self, File},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

/// What of a file of weights is fetched first. Most headers are shorter.
const BEGINNING: u64 = 100_000;
/// The longest header that the format allows.
const LONGEST_HEADER: u64 = 100_000_000;
/// Of small files that are larger it only matters that they are there; the index aside.
const LARGE: u64 = 1 << 20;
const CONNECTIONS: usize = 8;

/// The outline of a repository, for as long as this lives.
pub(crate) struct Outline {
    /// The directory of it.
    pub files: Files,
    /// Whether its licence must be accepted, if the hub was asked.
    pub gated: Option<bool>,
    _scratch: Option<Scratch>,
}

/// Fetches the outline of a repository; what is whole in the cache is taken from there.
///
/// # Errors
/// As [`super::fetch`], before any weights are fetched.
pub(crate) async fn outline(source: &Source, plan: Plan) -> Result<Outline> {
    let source = source.clone();
    on_thread(move |cancel| draw(&source, cancel, plan)).await
}

fn draw(source: &Source, cancel: &Cancel, plan: Plan) -> Result<Outline> {
    let cache = Cache::of(source);
    let cached = |commit: &str, gated| Outline {
        files: cache.snapshot(commit).into(),
        gated,
        _scratch: None,
    };
    if source.is_pinned() || source.is_offline() {
        match cache.commit(source.revision()).filter(|commit| cache.is_whole(commit)) {
            Some(commit) => return Ok(cached(&commit, None)),
            None if source.is_offline() => {
                return Err(Error::Offline {
                    repository: source.repository().to_string(),
                    revision: source.revision().into(),
                });
            }
            None => {}
        }
    }
    let client = Client::new(source, cancel)?;
    let listing = client.listing(source.revision(), ATTEMPTS)?;
    if cache.is_whole(&listing.commit) {
        return Ok(cached(&listing.commit, Some(listing.gated)));
    }
    let scratch = Scratch::new()?;
    let folder = &scratch.0;
    at_once(&select::small(&listing), |file| {
        let known = if file.size <= LARGE || file.name == select::INDEX {
            client.bytes(&listing.commit, file, 0..file.size)?
        } else {
            Vec::new()
        };
        write(folder, file, &known)
    })?;
    let files = Files::from(folder.as_path());
    let index = files.json(select::INDEX)?;
    // A model that is refused has an outline too.
    let rules = (plan.check_config)(&files, &listing.names()).unwrap_or(&FileRules::USUAL);
    at_once(&select::beside(&listing, rules), |file| {
        let size = if file.size <= LARGE { file.size } else { 0 };
        write(folder, file, &client.bytes(&listing.commit, file, 0..size)?)
    })?;
    let weights = select::weights(&listing, index.as_ref(), rules)?;
    at_once(&weights, |file| write(folder, file, &beginning(&client, &listing, file)?))?;
    Ok(Outline { files, gated: Some(listing.gated), _scratch: Some(scratch) })
}

/// The header of a file of weights.
fn beginning(client: &Client, listing: &Listing, file: &RemoteFile) -> Result<Vec<u8>> {
    let first = file.size.min(BEGINNING);
    let mut bytes = client.bytes(&listing.commit, file, 0..first)?;
    let length = bytes.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
    if length > LONGEST_HEADER {
        let reason = format!("a header of {length} bytes");
        return Err(Error::Checkpoint { file: file.name.as_str().into(), reason });
    }
    let end = file.size.min(8 + length);
    if end > first {
        bytes.extend(client.bytes(&listing.commit, file, first..end)?);
    }
    Ok(bytes)
}

/// A file of its right size, of which only the beginning is there.
fn write(folder: &Path, file: &RemoteFile, beginning: &[u8]) -> Result<()> {
    let path = folder.join(&file.name);
    create_parent(&path)?;
    let written = File::create_new(&path).and_then(|mut new| {
        new.write_all(beginning)?;
        new.set_len(file.size)
    });
    written.map_err(Error::io(&path))
}

/// Does something for each file, several at once, until one fails.
fn at_once(files: &[&RemoteFile], each: impl Fn(&RemoteFile) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = each(file) {
                next.store(files.len(), Ordering::Relaxed);
                return Err(error);
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> =
            (0..CONNECTIONS.min(files.len())).map(|_| scope.spawn(work)).collect();
        let lost = |_| Err(Error::Internal("reading an outline panicked".into()));
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(lost))
    })
}

/// A folder for a while.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let folder = env::temp_dir().join(format!("mynah-{}-{number}", process::id()));
            match fs::create_dir(&folder) {
                Ok(()) => return Ok(Scratch(folder)),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io(&folder)(error)),
            }
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}
