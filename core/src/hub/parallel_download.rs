//! The default transport: several connections of this process, each of which requests ranges of the
//! file. Connections write into the file and send messages to the thread that called `download`,
//! which keeps the record of received ranges and retries failed connections.

use crate::error::{Error, Result};
use crate::hub::{
    cancel::spawn,
    client::Client,
    downloader::{Download, Downloader},
    http::BUFFER,
    partial_download::PartialDownload,
    response::{FailedAttempt, Response},
};
use std::{
    fs::File,
    io::{self, Read},
    ops::Range,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender},
    },
    thread,
    time::{Duration, Instant},
};

/// Connections for one file.
const CONNECTIONS: usize = 4;
/// The sizes of the shortest and of the longest range that one request asks for, in bytes.
const MIN_RANGE: u64 = 8 << 20;
const MAX_RANGE: u64 = 64 << 20;
/// Attempts in a row that may fail without a byte received: about half a minute of back-off.
const ATTEMPTS: u32 = 8;
/// The capacity of the message channel. It is small because a killed process loses the ranges of the
/// messages that it did not record.
const CHANNEL_CAPACITY: usize = 16;
/// How often the caller's thread looks for a cancellation and for connections to restart.
const TICK: Duration = Duration::from_millis(50);

/// Downloads a file over several connections of a client.
pub(super) struct ParallelDownloader(pub Arc<Client>);

impl Downloader for ParallelDownloader {
    fn download(&self, download: &Download) -> Result<()> {
        let partial = PartialDownload::open(download.path, download.size)?;
        let shared = Shared {
            client: self.0.clone(),
            address: download.url.into(),
            name: download.name.into(),
            path: download.path.into(),
            size: download.size,
            file: partial.file.try_clone().map_err(Error::io(download.path))?,
            missing: Mutex::new(partial.received.gaps(download.size)),
            is_whole: download.is_whole,
            redirect: Mutex::default(),
            expected_version: partial.version.clone(),
            reads_whole: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            writing: AtomicUsize::new(0),
        };
        let shared = Arc::new(shared);
        let mut connections = Connections {
            partial,
            failures: 0,
            retry_at: Instant::now(),
            running: 0,
            starts: Vec::new(),
        };
        let (sender, receiver) = mpsc::sync_channel(CHANNEL_CAPACITY);
        let outcome = connections.run(download, &shared, &sender, &receiver);
        shared.closed.store(true, Ordering::SeqCst);
        // When no connection is writing, every written range is in the channel.
        loop {
            let is_idle = shared.writing.load(Ordering::SeqCst) == 0;
            for message in receiver.try_iter() {
                if let Message::Received(range) = message {
                    connections.partial.add(range)?;
                }
            }
            if is_idle {
                break;
            }
            thread::yield_now();
        }
        connections.partial.record()?;
        outcome
    }
}

/// What a connection sends to the thread that called `download`.
enum Message {
    /// The version (`ETag`) of the file.
    Version(String),
    Received(Range<u64>),
    /// The connection found no range left to request.
    Done,
    Failed(FailedAttempt),
}

/// The running connections and the file that they fill.
struct Connections {
    partial: PartialDownload,
    /// Failed attempts since the last byte received; failures during one back-off count once.
    failures: u32,
    /// The end of the current back-off.
    retry_at: Instant,
    running: usize,
    /// When to start each connection that is not running.
    starts: Vec<Instant>,
}

impl Connections {
    fn run(
        &mut self,
        download: &Download,
        shared: &Arc<Shared>,
        sender: &SyncSender<Message>,
        receiver: &Receiver<Message>,
    ) -> Result<()> {
        let missing = download.size - self.partial.received.len();
        let most = if download.is_whole { 1 } else { CONNECTIONS as u64 };
        let connections = missing.div_ceil(MIN_RANGE).min(most) as usize;
        self.starts = vec![Instant::now(); connections];
        while self.partial.received.len() < download.size {
            download.cancel.check()?;
            self.start_due(shared, sender)?;
            match receiver.recv_timeout(TICK) {
                Ok(message) => self.handle(message)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::Internal("the channel of the connections closed".into()));
                }
            }
            download.prefix.store(self.partial.received.prefix(), Ordering::Release);
            (download.on_progress)(self.partial.received.len());
        }
        Ok(())
    }

    /// Starts the connections whose back-off is over.
    fn start_due(&mut self, shared: &Arc<Shared>, sender: &SyncSender<Message>) -> Result<()> {
        if self.running == 0 && self.starts.is_empty() {
            self.starts.push(Instant::now());
        }
        let now = Instant::now();
        let due = self.starts.extract_if(.., |due| *due <= now).count();
        for _ in 0..due {
            let (shared, sender) = (shared.clone(), sender.clone());
            spawn("mynah-connection", move || {
                sender.send(shared.run_connection(&sender)).ok();
            })?;
            self.running += 1;
        }
        Ok(())
    }

    fn handle(&mut self, message: Message) -> Result<()> {
        match message {
            Message::Version(version) => {
                if self.partial.version.is_none() {
                    self.partial.set_version(version)?;
                }
            }
            Message::Received(range) => {
                self.failures = 0;
                self.partial.add(range)?;
            }
            Message::Done => self.running -= 1,
            Message::Failed(failure) => {
                self.running -= 1;
                let now = Instant::now();
                self.failures += u32::from(self.failures == 0 || now >= self.retry_at);
                self.retry_at = self.retry_at.max(now + failure.back_off(self.failures, ATTEMPTS)?);
                self.starts.push(self.retry_at);
            }
        }
        Ok(())
    }
}

/// What the connections of one file share.
struct Shared {
    client: Arc<Client>,
    address: String,
    name: String,
    path: PathBuf,
    size: u64,
    file: File,
    /// The ranges that no connection has claimed.
    missing: Mutex<Vec<Range<u64>>>,
    /// Whether one request asks for everything.
    is_whole: bool,
    /// Where the address redirects to. It is dropped when a request fails, because such links expire.
    redirect: Mutex<Option<String>>,
    /// The `ETag` of the bytes that an earlier attempt received. Within one attempt only the hash
    /// decides, because hosts behind one address may give the same bytes different tags.
    expected_version: Option<String>,
    /// Whether a connection reads the whole file, because the server does not support ranges.
    reads_whole: AtomicBool,
    /// Set when `download` returns: connections must not write any more.
    closed: AtomicBool,
    /// The number of connections that are writing or sending the range they wrote.
    writing: AtomicUsize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Takes a range to download: long ranges first and short ones towards the end, so that the
    /// connections finish at about the same time.
    fn claim(&self) -> Option<Range<u64>> {
        let mut missing = lock(&self.missing);
        let left: u64 = missing.iter().map(|gap| gap.end - gap.start).sum();
        let length = match self.is_whole {
            true => left,
            false => (left / (2 * CONNECTIONS as u64)).clamp(MIN_RANGE, MAX_RANGE),
        };
        let first = missing.first_mut()?;
        let claimed = first.start..first.end.min(first.start + length);
        first.start = claimed.end;
        if first.start == first.end {
            missing.remove(0);
        }
        Some(claimed)
    }

    fn put_back(&self, range: Range<u64>) {
        let mut missing = lock(&self.missing);
        missing.push(range);
        missing.sort_by_key(|gap| gap.start);
    }

    /// Requests ranges until none is left or one fails.
    fn run_connection(&self, sender: &SyncSender<Message>) -> Message {
        let mut buffer = vec![0; BUFFER];
        while let Some(mut range) = self.claim() {
            let outcome = self.download_range(&mut range, &mut buffer, sender);
            if range.start < range.end {
                self.put_back(range);
            }
            match outcome {
                Ok(true) => {}
                Ok(false) => break,
                Err(failure) => {
                    *lock(&self.redirect) = None;
                    return Message::Failed(failure);
                }
            }
        }
        Message::Done
    }

    /// Downloads a range; afterwards `range` is the part that was not received. Returns `false` when
    /// another connection reads the whole file.
    fn download_range(
        &self,
        range: &mut Range<u64>,
        buffer: &mut [u8],
        sender: &SyncSender<Message>,
    ) -> Result<bool, FailedAttempt> {
        let whole = 0..self.size;
        let part = (*range != whole).then(|| range.clone());
        let redirect = lock(&self.redirect).clone();
        let address = redirect.as_ref().unwrap_or(&self.address);
        let mut response = self.client.open(address, part.clone(), &self.name)?;
        self.check(&response, sender)?;
        *lock(&self.redirect) = Some(response.address.to_string());
        if part.is_none() || response.part.is_some() {
            self.read(&mut response, range, buffer, sender)?;
            return Ok(true);
        }
        if self.reads_whole.swap(true, Ordering::SeqCst) {
            return Ok(false);
        }
        lock(&self.missing).clear();
        range.end = self.size;
        let outcome = self.skip(&mut response, range.start, buffer);
        let outcome = outcome.and_then(|()| self.read(&mut response, range, buffer, sender));
        self.reads_whole.store(false, Ordering::SeqCst);
        outcome.map(|()| true)
    }

    /// Checks that the response is the announced file, in the version of earlier attempts.
    fn check(
        &self,
        response: &Response,
        sender: &SyncSender<Message>,
    ) -> Result<(), FailedAttempt> {
        let size = match &response.part {
            Some(part) => part.size,
            None => response.length,
        };
        if let Some(size) = size.filter(|size| *size != self.size) {
            let reason = format!(
                "sends a file of {size} bytes for {}, but the hub announced {}",
                self.name, self.size
            );
            return Err(FailedAttempt::permanent(
                self.client.server_error(&response.address, reason),
            ));
        }
        match (&self.expected_version, &response.version) {
            (Some(old), Some(new)) if old != new => {
                Err(FailedAttempt::permanent(Error::Changed { file: self.name.clone() }))
            }
            (None, Some(new)) if new.len() < 1000 => {
                sender.send(Message::Version(new.clone())).ok();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn skip(
        &self,
        response: &mut Response,
        mut bytes: u64,
        buffer: &mut [u8],
    ) -> Result<(), FailedAttempt> {
        while bytes > 0 {
            bytes -= self.receive(response, bytes, buffer)? as u64;
        }
        Ok(())
    }

    fn read(
        &self,
        response: &mut Response,
        range: &mut Range<u64>,
        buffer: &mut [u8],
        sender: &SyncSender<Message>,
    ) -> Result<(), FailedAttempt> {
        while range.start < range.end {
            let count = self.receive(response, range.end - range.start, buffer)?;
            self.writing.fetch_add(1, Ordering::SeqCst);
            let outcome = self.write(&buffer[..count], range, sender);
            self.writing.fetch_sub(1, Ordering::SeqCst);
            outcome?;
        }
        // A connection can only be reused after its response was read to the end.
        io::copy(&mut (&mut response.body).take(1), &mut io::sink()).ok();
        Ok(())
    }

    /// Writes the next bytes of a range and sends the range they fill.
    fn write(
        &self,
        bytes: &[u8],
        range: &mut Range<u64>,
        sender: &SyncSender<Message>,
    ) -> Result<(), FailedAttempt> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(FailedAttempt::permanent(Error::Cancelled));
        }
        let written = self.file.write_all_at(bytes, range.start);
        written.map_err(|error| FailedAttempt::permanent(self.write_error(error, range)))?;
        let start = range.start;
        range.start += bytes.len() as u64;
        sender.send(Message::Received(start..range.start)).ok();
        Ok(())
    }

    /// Reads at least one byte and at most `limit` bytes.
    fn receive(
        &self,
        response: &mut Response,
        limit: u64,
        buffer: &mut [u8],
    ) -> Result<usize, FailedAttempt> {
        let limit = limit.min(buffer.len() as u64) as usize;
        match response.body.read(&mut buffer[..limit]) {
            Ok(0) => {
                Err(self.client.connection_failed(&response.address, &"the connection ended early"))
            }
            Ok(count) => Ok(count),
            Err(error) => Err(self.client.connection_failed(&response.address, &error)),
        }
    }

    fn write_error(&self, error: io::Error, range: &Range<u64>) -> Error {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::DiskFull {
                folder: self.path.parent().unwrap_or(&self.path).into(),
                needed: self.size - range.start,
                free: 0,
            },
            _ => Error::io(&self.path)(error),
        }
    }
}
