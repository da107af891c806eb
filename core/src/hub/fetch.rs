//! Bringing a snapshot into the cache.

use crate::hub::{
    ATTEMPTS, Source,
    arrived::{self, Partial},
    cache::{Cache, create_parent},
    client::Client,
    listing::{Listing, RemoteFile},
    progress::{Meter, Progress},
    ranges::Ranges,
    select, store,
    transfer::{Cancel, Download, Downloader},
    verify,
};
use crate::{
    checkpoint::files::Files,
    error::{Error, Result},
    hub::plan::{Plan, Wanted},
};
use std::{
    collections::HashMap,
    fs::{self, File},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;
use tracing::Span;

/// Brings a model into the cache, unless it is there, and gives the folder of its files.
///
/// A whole snapshot of a commit, or of any revision when the source is offline, is found without
/// any request. Otherwise the hub is asked what the revision is now; when it cannot be reached, the
/// snapshot that it was last time serves. `progress` is called on other threads, and not at all
/// when nothing is to be fetched. Dropping the future stops everything and keeps what has arrived.
///
/// # Errors
/// [`Error::Offline`], [`Error::RepositoryNotFound`], [`Error::RevisionNotFound`],
/// [`Error::Gated`], [`Error::Unauthorized`], [`Error::RateLimited`], [`Error::Network`],
/// [`Error::Server`], [`Error::HashMismatch`], [`Error::Changed`], [`Error::DiskFull`],
/// [`Error::Io`]; and why a model is refused, before its weights are fetched.
pub(crate) async fn fetch(
    source: &Source,
    plan: Plan,
    progress: impl FnMut(Progress) + Send + 'static,
) -> Result<PathBuf> {
    let source = source.clone();
    let work = move |cancel: &Cancel| {
        let folder = run(&source, cancel, Box::new(progress), plan)?;
        if plan.wanted == Wanted::Model {
            store::mark_used(&folder);
        }
        Ok(folder)
    };
    on_thread(work).await
}

/// Works on a thread of its own; dropping the future cancels.
pub(super) async fn on_thread<T: Send + 'static>(
    work: impl FnOnce(&Cancel) -> Result<T> + Send + 'static,
) -> Result<T> {
    let cancel = Cancel::default();
    let _guard = CancelOnDrop(cancel.clone());
    let (report, outcome) = oneshot::channel();
    let span = Span::current();
    let work = move || report.send(span.in_scope(|| work(&cancel)));
    let thread = thread::Builder::new().name("mynah-hub".into()).spawn(work);
    thread.map_err(|error| Error::Internal(format!("no thread: {error}")))?;
    outcome.await.map_err(|_| Error::Internal("the download panicked".into()))?
}

struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

type Tell = Box<dyn FnMut(Progress) + Send>;

fn run(source: &Source, cancel: &Cancel, tell: Tell, plan: Plan) -> Result<PathBuf> {
    let cache = Cache::of(source);
    let is_there = |commit: &String| match plan.wanted {
        Wanted::Model => cache.is_whole(commit),
        Wanted::Text | Wanted::Adapter => (plan.is_complete)(&cache.snapshot(commit).into()),
    };
    let known = cache.commit(source.revision()).filter(is_there);
    let known = known.map(|commit| cache.snapshot(&commit));
    // One file of a tokenizer does not tell whether the others are there.
    let is_certain = source.is_pinned() && plan.wanted != Wanted::Text;
    match known {
        Some(snapshot) if is_certain || source.is_offline() => return Ok(snapshot),
        None if source.is_offline() => {
            return Err(Error::Offline {
                repository: source.repository().to_string(),
                revision: source.revision().into(),
            });
        }
        _ => {}
    }
    let attempts = if known.is_some() { 1 } else { ATTEMPTS };
    let tell = Arc::new(Mutex::new(tell));
    let attempt = Attempt::new(source, cancel, tell.clone())?;
    let listing = match (attempt.listing(attempts), known) {
        (Err(error), Some(snapshot)) if is_out_of_reach(&error) => {
            tracing::warn!(%error, "the hub cannot be reached; using the downloaded snapshot");
            return Ok(snapshot);
        }
        (listing, _) => listing?,
    };
    match attempt.fetch(&listing, plan) {
        Err(
            error @ (Error::Changed { .. } | Error::HashMismatch { .. } | Error::Server { .. }),
        ) if !source.is_pinned() => {
            // A branch may have moved on meanwhile, and its old files be gone.
            let attempt = Attempt::new(source, cancel, tell)?;
            match attempt.listing(ATTEMPTS) {
                Ok(newer) if newer.commit != listing.commit => attempt.fetch(&newer, plan),
                _ => Err(error),
            }
        }
        outcome => outcome,
    }
}

fn is_out_of_reach(error: &Error) -> bool {
    matches!(error, Error::Network { .. } | Error::RateLimited { .. } | Error::Server { .. })
}

/// One attempt to bring a snapshot here, whose threads all end when one of them fails.
struct Attempt<'a> {
    source: &'a Source,
    cache: Cache,
    client: Arc<Client>,
    downloader: Arc<dyn Downloader>,
    halt: Cancel,
    tell: Arc<Mutex<Tell>>,
}

impl<'a> Attempt<'a> {
    fn new(source: &'a Source, cancel: &Cancel, tell: Arc<Mutex<Tell>>) -> Result<Self> {
        let halt = Cancel::default();
        let all = halt.clone();
        cancel.on_cancel(move || all.cancel());
        let client = Arc::new(Client::new(source, &halt)?);
        let downloader = match source.downloader() {
            Some(downloader) => downloader.clone(),
            None => Arc::new(Ranges(client.clone())),
        };
        Ok(Attempt { source, cache: Cache::of(source), client, downloader, halt, tell })
    }

    fn listing(&self, attempts: u32) -> Result<Listing> {
        let listing = self.client.listing(self.source.revision(), attempts)?;
        if self.source.is_pinned() && listing.commit != self.source.revision() {
            let reason = format!("answers with another commit, {}", listing.commit);
            return Err(Error::Server { host: self.source.endpoint().into(), reason });
        }
        Ok(listing)
    }

    fn fetch(&self, listing: &Listing, plan: Plan) -> Result<PathBuf> {
        let files = match plan.wanted {
            Wanted::Model => return self.fetch_model(listing, plan),
            Wanted::Text => select::small(listing),
            Wanted::Adapter => select::adapter(listing),
        };
        self.cache.prepare()?;
        self.bring_all(listing, &files, 4, &Tally::silent())?;
        self.cache.set_commit(self.source.revision(), &listing.commit)?;
        Ok(self.cache.snapshot(&listing.commit))
    }

    fn fetch_model(&self, listing: &Listing, plan: Plan) -> Result<PathBuf> {
        let snapshot = self.cache.snapshot(&listing.commit);
        let files = Files::from(snapshot.as_path());

        // What the model is, before the rest of it is fetched.
        let no_config = || Error::config("", "the repository has no such file");
        let config = listing.file("config.json").ok_or_else(no_config)?;
        let index = listing.file(select::INDEX);
        let silent = Tally::silent();
        for file in [Some(config), index].into_iter().flatten() {
            self.bring(listing, file, &silent)?;
        }
        (plan.check_config)(&files)?;

        let index = index.map(|_| files.json(select::INDEX)).transpose()?.flatten();
        let weights = select::weights(listing, index.as_ref())?;
        let small = select::small(listing);
        let missing = |file: &&&RemoteFile| !self.cache.has(&listing.commit, file);
        let missing_small: Vec<_> = small.iter().filter(missing).copied().collect();
        let missing_weights: Vec<_> = weights.iter().filter(missing).copied().collect();
        if missing_small.is_empty() && missing_weights.is_empty() {
            // The cache may be one that only others may write.
            self.cache.set_commit(self.source.revision(), &listing.commit).ok();
            return Ok(snapshot);
        }
        self.cache.prepare()?;
        let sizes = small.iter().chain(&weights).map(|file| file.size);
        // What a hub makes up may be more than there are numbers.
        let total = sizes.fold(0, u64::saturating_add);
        let tally = self.tally(total, missing_small.iter().chain(&missing_weights))?;
        self.bring_all(listing, &missing_small, 4, &tally)?;
        (plan.check_small)(&files)?;
        self.bring_all(listing, &missing_weights, 2, &tally)?;
        self.cache.set_commit(self.source.revision(), &listing.commit)?;
        tally.finish();
        Ok(snapshot)
    }

    /// Counts from what is there of these files and of the others; checks that the rest fits.
    fn tally<'f>(
        &self,
        total: u64,
        missing: impl Iterator<Item = &'f &'f RemoteFile>,
    ) -> Result<Tally> {
        let (mut arrived, mut size, mut needed) = (HashMap::new(), 0u64, 0u64);
        for file in missing {
            let there = if self.cache.has_blob(file) {
                file.size
            } else {
                let there = Partial::len_at(&self.cache.partial(file), file.size);
                needed = needed.saturating_add(file.size - there);
                there
            };
            size = size.saturating_add(file.size);
            arrived.insert(file.name.clone(), there);
        }
        self.cache.require_space(needed)?;
        let others = total.saturating_sub(size);
        let done = others + arrived.values().sum::<u64>();
        let meter = Meter::new(total, done, Instant::now());
        Ok(Tally(Some(Mutex::new(Counted { meter, others, arrived, tell: self.tell.clone() }))))
    }

    /// Brings files here, so many at once.
    fn bring_all(
        &self,
        listing: &Listing,
        files: &[&RemoteFile],
        at_once: usize,
        tally: &Tally,
    ) -> Result<()> {
        let (queue, failure) = (Mutex::new(files.iter()), Mutex::new(None));
        let lock = |queue: &Mutex<std::slice::Iter<'_, _>>| {
            queue.lock().unwrap_or_else(PoisonError::into_inner).next().copied()
        };
        let span = Span::current();
        thread::scope(|scope| {
            for _ in 0..at_once.min(files.len()) {
                scope.spawn(|| {
                    let _span = span.enter();
                    while let Some(file) = lock(&queue) {
                        if let Err(error) = self.bring(listing, file, tally) {
                            let mut failure =
                                failure.lock().unwrap_or_else(PoisonError::into_inner);
                            failure.get_or_insert(error);
                            self.halt.cancel();
                            break;
                        }
                    }
                });
            }
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Brings one file into the snapshot, unless it is there.
    fn bring(&self, listing: &Listing, file: &RemoteFile, tally: &Tally) -> Result<()> {
        if self.cache.has(&listing.commit, file) {
            return Ok(());
        }
        self.halt.check()?;
        let _lock = self.cache.lock(file, &self.halt)?;
        if !self.cache.has_blob(file) {
            self.fetch_blob(listing, file, tally)?;
        }
        tally.arrived(file, file.size);
        tracing::debug!(file = file.name, size = file.size, "file downloaded");
        self.cache.link(&listing.commit, file)
    }

    /// Fetches, verifies and publishes a blob. Bytes of earlier attempts that turn out to be wrong
    /// are fetched anew, once.
    fn fetch_blob(&self, listing: &Listing, file: &RemoteFile, tally: &Tally) -> Result<()> {
        let partial = self.cache.partial(file);
        create_parent(&partial)?;
        let mut is_resumed = Partial::len_at(&partial, file.size) > 0;
        loop {
            let error = match self.transfer(listing, file, tally) {
                Ok(found) if found == file.hash => return self.publish(file),
                Ok(found) => {
                    let (file, expected) = (file.name.clone(), file.hash.clone());
                    Error::HashMismatch { file, expected, found }
                }
                Err(error @ Error::Changed { .. }) => error,
                Err(error) => return Err(error),
            };
            arrived::discard(&partial)?;
            if !is_resumed {
                return Err(error);
            }
            tracing::warn!(%error, "the partial download is invalid; downloading the file from its start");
            is_resumed = false;
        }
    }

    /// Fetches a file into its partial blob, and gives its hash.
    fn transfer(&self, listing: &Listing, file: &RemoteFile, tally: &Tally) -> Result<String> {
        let path = self.cache.partial(file);
        let (prefix, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let download = Download {
            url: &self.client.address(&listing.commit, &file.name),
            token: self.source.token(),
            name: &file.name,
            size: file.size,
            path: &path,
            cancel: &self.halt,
            // A transport may count as it likes.
            arrived: &|bytes| tally.arrived(file, bytes.min(file.size)),
            prefix: &prefix,
        };
        let _settling = Settling::begin(&path)?;
        thread::scope(|scope| {
            let hash = scope.spawn(|| verify::follow(&path, &file.hash, file.size, &prefix, &stop));
            let outcome = self.downloader.download(&download);
            let size = fs::metadata(&path).map_or(0, |found| found.len());
            if outcome.is_ok() && size == file.size {
                prefix.store(size, Ordering::Release);
            }
            stop.store(true, Ordering::Release);
            hash.thread().unpark();
            let hash = hash.join();
            outcome?;
            let hash = hash.map_err(|_| Error::Internal("hashing panicked".into()))??;
            Ok(hash.unwrap_or_else(|| format!("of {size} bytes instead of {}", file.size)))
        })
    }

    fn publish(&self, file: &RemoteFile) -> Result<()> {
        let (partial, blob) = (self.cache.partial(file), self.cache.blob(file));
        // After a loss of power, a blob that has its name must have its bytes too.
        let sync = File::open(&partial).and_then(|opened| opened.sync_data());
        sync.map_err(Error::io(&partial))?;
        match fs::rename(&partial, &blob) {
            // Where there are no locks, another process may have been faster.
            Err(error) if !self.cache.has_blob(file) => return Err(Error::io(&blob)(error)),
            _ => {}
        }
        arrived::discard(&partial)
    }
}

/// Has the disk write what has arrived of a file, so that little is left to wait for at the end.
/// Nobody waits for the thread that does so, because a disk may be slow when somebody cancels.
struct Settling(Arc<AtomicBool>);

impl Settling {
    fn begin(path: &Path) -> Result<Self> {
        const INTERVAL: Duration = Duration::from_millis(200);
        let (path, stop) = (path.to_path_buf(), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let work = move || {
            while !stopped.load(Ordering::Acquire) {
                // What fails here fails again at the end, and is told of there.
                File::open(&path).and_then(|file| file.sync_data()).ok();
                thread::sleep(INTERVAL);
            }
        };
        let thread = thread::Builder::new().name("mynah-settling".into()).spawn(work);
        thread.map_err(|error| Error::Internal(format!("no thread: {error}")))?;
        Ok(Settling(stop))
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Counts the bytes of all files.
struct Tally(Option<Mutex<Counted>>);

struct Counted {
    meter: Meter,
    /// Bytes of files that were there at the start.
    others: u64,
    arrived: HashMap<String, u64>,
    tell: Arc<Mutex<Tell>>,
}

impl Tally {
    /// Tells nobody.
    fn silent() -> Self {
        Tally(None)
    }

    /// So many bytes of a file are there.
    fn arrived(&self, file: &RemoteFile, bytes: u64) {
        let Some(counted) = &self.0 else { return };
        let mut counted = counted.lock().unwrap_or_else(PoisonError::into_inner);
        counted.arrived.insert(file.name.clone(), bytes);
        let done = counted.others + counted.arrived.values().sum::<u64>();
        if let Some(event) = counted.meter.event(done, &file.name, Instant::now()) {
            counted.tell.lock().unwrap_or_else(PoisonError::into_inner)(event);
        }
    }

    fn finish(self) {
        let Some(counted) = self.0 else { return };
        let counted = counted.into_inner().unwrap_or_else(PoisonError::into_inner);
        let event = counted.meter.finish();
        counted.tell.lock().unwrap_or_else(PoisonError::into_inner)(event);
    }
}
