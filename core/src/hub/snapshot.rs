//! Downloading a snapshot of a repository into the cache: which files, in which order, and what to do
//! when the hub cannot be reached or the branch moves.

use crate::hub::{
    ATTEMPTS, Source,
    blob::BlobDownload,
    cache::Cache,
    cached_models,
    cancel::{Cancel, run_on_thread},
    client::Client,
    listing::{Listing, RemoteFile},
    partial_download::PartialDownload,
    plan::{Plan, Wanted},
    progress::{Progress, ProgressCounter, ProgressHandler},
    remote_headers::read_headers,
    select,
};
use crate::{
    checkpoint::{file_rules::MODULES, files::Files, weight_files::INDEX},
    error::{Error, Result},
};
use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

/// Files that are downloaded at the same time; each file of weights has several connections.
const SMALL_FILES_AT_ONCE: usize = 4;
const WEIGHTS_AT_ONCE: usize = 2;

/// Downloads the files of `plan` into the cache, unless they are there, and returns the folder of the
/// snapshot.
///
/// A complete snapshot of a commit, or of any revision when the source is offline, is found without
/// a request. Otherwise the hub is asked for the revision's commit; when it cannot be reached, the
/// snapshot of its last answer is used. `progress` is called on other threads, and not at all when
/// nothing is downloaded. Dropping the future cancels the download and keeps the bytes received.
///
/// # Errors
/// [`Error::Offline`], [`Error::RepositoryNotFound`], [`Error::RevisionNotFound`],
/// [`Error::Gated`], [`Error::Unauthorized`], [`Error::RateLimited`], [`Error::Network`],
/// [`Error::Server`], [`Error::HashMismatch`], [`Error::Changed`], [`Error::DiskFull`],
/// [`Error::Io`], and the errors of the plan's checks.
pub(crate) async fn download_snapshot(
    source: &Source,
    plan: Plan,
    progress: impl FnMut(Progress) + Send + 'static,
) -> Result<PathBuf> {
    let source = source.clone();
    let work = move |cancel: &Cancel| {
        let span = tracing::info_span!(
            "download",
            repository = %source.repository(),
            revision = source.revision()
        );
        let _entered = span.entered();
        let folder = find_or_download(&source, cancel, Box::new(progress), plan)
            .inspect_err(|error| tracing::info!(kind = ?error.kind(), "download failed"))?;
        if plan.wanted == Wanted::Model {
            cached_models::mark_used(&folder);
        }
        Ok(folder)
    };
    run_on_thread(work).await
}

fn find_or_download(
    source: &Source,
    cancel: &Cancel,
    handler: ProgressHandler,
    plan: Plan,
) -> Result<PathBuf> {
    let cache = Cache::of(source);
    let is_complete = |commit: &String| match plan.wanted {
        Wanted::Model => cache.is_complete(commit),
        Wanted::Text | Wanted::Adapter => (plan.is_complete)(&cache.snapshot(commit).into()),
    };
    let cached = cache.commit(source.revision()).filter(is_complete);
    let cached = cached.map(|commit| cache.snapshot(&commit));
    // One file of a tokenizer does not tell whether the others were downloaded.
    let is_certain = source.is_pinned() && plan.wanted != Wanted::Text;
    match cached {
        Some(snapshot) if is_certain || source.is_offline() => return Ok(snapshot),
        None if source.is_offline() => return Err(source.not_cached_offline()),
        _ => {}
    }
    let attempts = if cached.is_some() { 1 } else { ATTEMPTS };
    let handler = Arc::new(Mutex::new(handler));
    let download = SnapshotDownload::new(source, cancel, handler.clone())?;
    let listing = match (download.listing(attempts), cached) {
        (Err(error), Some(snapshot)) if is_unreachable(&error) => {
            tracing::warn!(%error, "the hub cannot be reached; using the cached snapshot");
            return Ok(snapshot);
        }
        (listing, _) => listing?,
    };
    match download.run(&listing, plan) {
        Err(
            error @ (Error::Changed { .. } | Error::HashMismatch { .. } | Error::Server { .. }),
        ) if !source.is_pinned() => {
            // The branch may have moved meanwhile, and the hub may have deleted its old files.
            let download = SnapshotDownload::new(source, cancel, handler)?;
            match download.listing(ATTEMPTS) {
                Ok(newer) if newer.commit != listing.commit => {
                    tracing::warn!(%error, "the branch has moved; downloading its new commit");
                    download.run(&newer, plan)
                }
                _ => Err(error),
            }
        }
        outcome => outcome,
    }
}

fn is_unreachable(error: &Error) -> bool {
    matches!(error, Error::Network { .. } | Error::RateLimited { .. } | Error::Server { .. })
}

/// One attempt to download a snapshot. All of its threads end when one of them fails.
struct SnapshotDownload<'a> {
    source: &'a Source,
    blobs: BlobDownload<'a>,
    client: Arc<Client>,
    /// Cancelled by the caller, and by the first file that fails.
    cancel: Cancel,
    handler: Arc<Mutex<ProgressHandler>>,
}

impl<'a> SnapshotDownload<'a> {
    fn new(
        source: &'a Source,
        parent: &Cancel,
        handler: Arc<Mutex<ProgressHandler>>,
    ) -> Result<Self> {
        let cancel = Cancel::default();
        let child = cancel.clone();
        parent.on_cancel(move || child.cancel());
        let client = Arc::new(Client::new(source, &cancel)?);
        let blobs = BlobDownload::new(source, client.clone(), cancel.clone());
        Ok(SnapshotDownload { source, blobs, client, cancel, handler })
    }

    fn listing(&self, attempts: u32) -> Result<Listing> {
        let listing = self.client.listing(self.source.revision(), attempts)?;
        if self.source.is_pinned() && listing.commit != self.source.revision() {
            let reason = format!("answers with another commit, {}", listing.commit);
            return Err(Error::Server { host: self.source.endpoint().into(), reason });
        }
        Ok(listing)
    }

    fn run(&self, listing: &Listing, plan: Plan) -> Result<PathBuf> {
        let files = match plan.wanted {
            Wanted::Model => return self.download_model(listing, plan),
            Wanted::Text => select::small(listing),
            Wanted::Adapter => select::adapter(listing),
        };
        let cache = &self.blobs.cache;
        cache.prepare()?;
        self.download_all(listing, &files, SMALL_FILES_AT_ONCE, &ProgressCounter::silent())?;
        cache.set_commit(self.source.revision(), &listing.commit)?;
        Ok(cache.snapshot(&listing.commit))
    }

    fn download_model(&self, listing: &Listing, plan: Plan) -> Result<PathBuf> {
        let cache = &self.blobs.cache;
        let snapshot = cache.snapshot(&listing.commit);
        let files = Files::from(snapshot.as_path());

        // The config comes first, so that an unsupported model is refused before its weights.
        let config = listing.file("config.json");
        let index = listing.file(INDEX);
        for file in [config, index, listing.file(MODULES)].into_iter().flatten() {
            self.blobs.download(listing, file, &ProgressCounter::silent())?;
        }
        let rules = (plan.check_config)(&files, &listing.names())?;

        let index = index.map(|_| files.json(INDEX)).transpose()?.flatten();
        let weights = select::weights(listing, index.as_ref(), rules)?;
        let small = [select::small(listing), select::beside(listing, rules)].concat();
        let is_missing = |file: &&&RemoteFile| !cache.has(&listing.commit, file);
        let missing_small: Vec<_> = small.iter().filter(is_missing).copied().collect();
        let missing_weights: Vec<_> = weights.iter().filter(is_missing).copied().collect();
        if missing_small.is_empty() && missing_weights.is_empty() {
            // An error is ignored, because the cache may be read-only for this process.
            cache.set_commit(self.source.revision(), &listing.commit).ok();
            return Ok(snapshot);
        }
        if !missing_weights.is_empty() {
            (plan.check_headers)(&files, &|| read_headers(&self.client, listing, &weights))?;
        }
        cache.prepare()?;
        let sizes = small.iter().chain(&weights).map(|file| file.size);
        // The sizes come from the hub, so their sum may overflow.
        let total = sizes.fold(0, u64::saturating_add);
        let missing = missing_small.iter().chain(&missing_weights);
        let counter = self.start_counting(total, missing)?;
        self.download_all(listing, &missing_small, SMALL_FILES_AT_ONCE, &counter)?;
        (plan.check_small)(&files)?;
        self.download_all(listing, &missing_weights, WEIGHTS_AT_ONCE, &counter)?;
        if !rules.is_usual() {
            let names: Vec<_> = small.iter().chain(&weights).map(|file| &*file.name).collect();
            cache.set_needed(&listing.commit, &names)?;
        }
        cache.set_commit(self.source.revision(), &listing.commit)?;
        counter.finish();
        tracing::info!(commit = %listing.commit, "the model is downloaded and verified");
        Ok(snapshot)
    }

    /// Counts the bytes on disk, of the missing files and of the `total`, and checks that the rest
    /// fits on the disk.
    fn start_counting<'f>(
        &self,
        total: u64,
        missing: impl Iterator<Item = &'f &'f RemoteFile>,
    ) -> Result<ProgressCounter> {
        let cache = &self.blobs.cache;
        let (mut received, mut size, mut needed) = (HashMap::new(), 0u64, 0u64);
        for file in missing {
            let on_disk = if cache.has_blob(file) {
                file.size
            } else {
                let on_disk = PartialDownload::received_at(&cache.partial(file), file.size);
                needed = needed.saturating_add(file.size - on_disk);
                on_disk
            };
            size = size.saturating_add(file.size);
            received.insert(file.name.clone(), on_disk);
        }
        cache.require_space(needed)?;
        tracing::info!(bytes = needed, files = received.len(), "downloading a model");
        let complete = total.saturating_sub(size);
        Ok(ProgressCounter::new(total, complete, received, self.handler.clone()))
    }

    /// Downloads files, at most `at_once` at the same time.
    fn download_all(
        &self,
        listing: &Listing,
        files: &[&RemoteFile],
        at_once: usize,
        counter: &ProgressCounter,
    ) -> Result<()> {
        let (queue, failure) = (Mutex::new(files.iter()), Mutex::new(None));
        let next = |queue: &Mutex<std::slice::Iter<'_, _>>| {
            queue.lock().unwrap_or_else(PoisonError::into_inner).next().copied()
        };
        thread::scope(|scope| {
            for _ in 0..at_once.min(files.len()) {
                scope.spawn(|| {
                    while let Some(file) = next(&queue) {
                        if let Err(error) = self.blobs.download(listing, file, counter) {
                            let mut failure =
                                failure.lock().unwrap_or_else(PoisonError::into_inner);
                            failure.get_or_insert(error);
                            self.cancel.cancel();
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::downloader::{Download, Downloader};
    use crate::{checkpoint::file_rules::FileRules, hub::cached_models};
    use serde_json::json;
    use sha2::{Digest, Sha256};
    use std::{
        collections::BTreeMap,
        fs,
        io::{BufRead, BufReader, Write},
        net::TcpListener,
        sync::mpsc::channel,
    };

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    /// Files that are at hand, which is a transport too.
    struct Shelf(BTreeMap<&'static str, Vec<u8>>);

    impl Downloader for Shelf {
        fn download(&self, download: &Download) -> Result<()> {
            fs::write(download.path, &self.0[download.name]).map_err(Error::io(download.path))
        }
    }

    impl Shelf {
        fn listing(&self) -> String {
            let file = |(name, bytes): (&&str, &Vec<u8>)| {
                let digest = Sha256::digest(bytes);
                let hash: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
                json!({"rfilename": name, "lfs": {"sha256": hash, "size": bytes.len()}})
            };
            let files: Vec<_> = self.0.iter().map(file).collect();
            // What no model needs may be described badly.
            let odd = json!({"rfilename": "../notes"});
            let odd = if self.0.contains_key("odd") { vec![odd] } else { Vec::new() };
            let siblings = [files, odd].concat();
            json!({"sha": COMMIT, "siblings": siblings}).to_string()
        }
    }

    /// A server that answers every request with the same text; its address.
    fn serve(text: String) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
                let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length";
                write!(stream, "{head}: {}\r\n\r\n{text}", text.len()).ok();
            }
        });
        address
    }

    const RULES: FileRules = FileRules {
        beside: &["am.mvn", "voices/*.safetensors"],
        weights: &["speech-*.safetensors"],
        matches: None,
    };

    const PLAN: Plan = Plan {
        wanted: Wanted::Model,
        is_complete: |_| true,
        check_config: |files, names| {
            assert!(files.json("config.json")?.is_none());
            match names.iter().any(|name| name == "am.mvn") {
                true => Ok(&RULES),
                false => Err(Error::config("", "there is no such file")),
            }
        },
        check_headers: |_, _| Ok(()),
        check_small: |files| {
            assert!(files.read("am.mvn")?.is_some());
            Ok(())
        },
    };

    fn fetch_now(source: &Source) -> Result<PathBuf> {
        let (report, outcome) = channel();
        let source = source.clone();
        let work = move || {
            report.send(find_or_download(&source, &Cancel::default(), Box::new(|_| ()), PLAN))
        };
        thread::spawn(work);
        outcome.recv().unwrap()
    }

    #[test]
    fn a_family_with_files_of_its_own_needs_no_config_and_nothing_else() {
        let weights = [&2u64.to_le_bytes()[..], b"{}"].concat();
        let names = [
            "README.md",
            "am.mvn",
            "model.safetensors",
            "speech-1.safetensors",
            "tokenizer.json",
            "voices/a.safetensors",
            "voices/deep/b.safetensors",
        ];
        let shelf = Shelf(names.iter().map(|name| (*name, weights.clone())).collect());
        let cache = tempfile::tempdir().unwrap();
        let source = |shelf: Shelf| {
            let source = Source::new("org/name").unwrap().with_cache(cache.path());
            let source = source.with_endpoint(&serve(shelf.listing())).unwrap();
            source.with_downloader(Arc::new(shelf))
        };
        let online = source(shelf);
        let snapshot = fetch_now(&online).unwrap();
        let needed = ["am.mvn", "speech-1.safetensors", "tokenizer.json", "voices/a.safetensors"];
        for name in names {
            assert_eq!(snapshot.join(name).exists(), needed.contains(&name), "{name}");
        }
        // It is complete, for the store and without a request.
        let stored = cached_models::list(cache.path()).unwrap();
        assert!(stored[0].revisions[0].complete);
        assert_eq!(fetch_now(&online.clone().offline()).unwrap(), snapshot);
        fs::remove_file(snapshot.join("voices/a.safetensors")).unwrap();
        assert!(matches!(fetch_now(&online.clone().offline()), Err(Error::Offline { .. })));
        fetch_now(&online).unwrap();
        assert!(snapshot.join("voices/a.safetensors").exists());

        let odd = Shelf(BTreeMap::from([("odd", vec![1])]));
        assert!(matches!(fetch_now(&source(odd)), Err(Error::Config { .. })));
    }
}
