//! Downloading one file: lock, transfer, verify, publish under its hash, link into the snapshot.

use crate::error::{Error, Result};
use crate::hub::{
    Source,
    cache::{Cache, create_parent},
    cancel::{Cancel, spawn},
    client::Client,
    downloader::{Download, Downloader},
    listing::{Listing, RemoteFile},
    parallel_download::ParallelDownloader,
    partial_download::{self, PartialDownload},
    progress::ProgressCounter,
    verify,
};
use std::{
    fs::{self, File},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// Downloads the blobs of one repository into the cache.
pub(super) struct BlobDownload<'a> {
    source: &'a Source,
    pub cache: Cache,
    client: Arc<Client>,
    downloader: Arc<dyn Downloader>,
    cancel: Cancel,
}

impl<'a> BlobDownload<'a> {
    pub fn new(source: &'a Source, client: Arc<Client>, cancel: Cancel) -> Self {
        let downloader = match source.downloader() {
            Some(downloader) => downloader.clone(),
            None => Arc::new(ParallelDownloader(client.clone())),
        };
        BlobDownload { source, cache: Cache::of(source), client, downloader, cancel }
    }

    /// Downloads one file into the snapshot of the listing, unless it is there.
    ///
    /// # Errors
    /// Those of [`super::download_snapshot`].
    pub fn download(
        &self,
        listing: &Listing,
        file: &RemoteFile,
        counter: &ProgressCounter,
    ) -> Result<()> {
        if self.cache.has(&listing.commit, file) {
            return Ok(());
        }
        self.cancel.check()?;
        let _lock = self.cache.lock(file, &self.cancel)?;
        if !self.cache.has_blob(file) {
            self.download_blob(listing, file, counter)?;
        }
        counter.set_received(file, file.size);
        self.cache.link(&listing.commit, file)
    }

    /// Downloads, verifies and publishes a blob. Where the bytes are wrong, they are dropped, those of
    /// earlier attempts included, and the file is downloaded again, at the end as a whole.
    fn download_blob(
        &self,
        listing: &Listing,
        file: &RemoteFile,
        counter: &ProgressCounter,
    ) -> Result<()> {
        let partial = self.cache.partial(file);
        create_parent(&partial)?;
        // The bytes of earlier attempts may be to blame, and then ranges.
        let mut retries = 1 + u32::from(PartialDownload::received_at(&partial, file.size) > 0);
        let mut is_whole = false;
        loop {
            let error = match self.transfer(listing, file, counter, is_whole) {
                Ok(found) if found == file.hash => return self.publish(file),
                Ok(found) => {
                    let (file, expected) = (file.name.clone(), file.hash.clone());
                    Error::HashMismatch { file, expected, found }
                }
                Err(error @ Error::Changed { .. }) => error,
                Err(error) => return Err(error),
            };
            partial_download::delete(&partial)?;
            if retries == 0 {
                return Err(error);
            }
            retries -= 1;
            is_whole = retries == 0;
            tracing::warn!(%error, "the downloaded file is wrong; downloading it again from its start");
        }
    }

    /// Downloads a file to the path of its partial blob and returns its hash, which is computed
    /// while the bytes are received.
    fn transfer(
        &self,
        listing: &Listing,
        file: &RemoteFile,
        counter: &ProgressCounter,
        is_whole: bool,
    ) -> Result<String> {
        let path = self.cache.partial(file);
        let (prefix, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let download = Download {
            url: &self.client.address(&listing.commit, &file.name),
            token: self.source.token(),
            repository: self.source.repository().as_str(),
            commit: &listing.commit,
            name: &file.name,
            hash: &file.hash,
            size: file.size,
            path: &path,
            cancel: &self.cancel,
            // A transport of the application may report more bytes than the file has.
            on_progress: &|bytes| counter.set_received(file, bytes.min(file.size)),
            prefix: &prefix,
            is_whole,
        };
        let _sync = PeriodicSync::start(&path)?;
        thread::scope(|scope| {
            let hash =
                scope.spawn(|| verify::hash_growing(&path, &file.hash, file.size, &prefix, &stop));
            let outcome = self.downloader.download(&download);
            let size = fs::metadata(&path).map_or(0, |found| found.len());
            if outcome.is_ok() && size == file.size {
                prefix.store(size, Ordering::Release);
            }
            stop.store(true, Ordering::Release);
            hash.thread().unpark();
            let hash = hash.join();
            outcome?;
            let hash =
                hash.map_err(|_| Error::Internal("the hashing thread panicked".into()))??;
            Ok(hash.unwrap_or_else(|| format!("of {size} bytes instead of {}", file.size)))
        })
    }

    fn publish(&self, file: &RemoteFile) -> Result<()> {
        let (partial, blob) = (self.cache.partial(file), self.cache.blob(file));
        // The data must be on the disk before the name, so that a power failure cannot leave a blob
        // with its name and without its bytes.
        let sync = File::open(&partial).and_then(|opened| opened.sync_data());
        sync.map_err(Error::io(&partial))?;
        match fs::rename(&partial, &blob) {
            // On a file system without locks another process may have published the blob first.
            Err(error) if !self.cache.has_blob(file) => return Err(Error::io(&blob)(error)),
            _ => {}
        }
        partial_download::delete(&partial)
    }
}

/// Calls `sync_data` on a growing file from time to time, so that the last call is short. Dropping it
/// does not wait for the thread, because a slow disk must not delay a cancellation.
struct PeriodicSync(Arc<AtomicBool>);

impl PeriodicSync {
    fn start(path: &Path) -> Result<Self> {
        const INTERVAL: Duration = Duration::from_millis(200);
        let (path, stop) = (path.to_path_buf(), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        spawn("mynah-sync", move || {
            while !stopped.load(Ordering::Acquire) {
                // Errors are ignored here; `publish` syncs again and reports them.
                File::open(&path).and_then(|file| file.sync_data()).ok();
                thread::sleep(INTERVAL);
            }
        })?;
        Ok(PeriodicSync(stop))
    }
}

impl Drop for PeriodicSync {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
