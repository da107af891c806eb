//! The default transport: several connections of this process, each fetching ranges of the file.

use crate::error::{Error, Result};
use crate::hub::{
    arrived::Partial,
    client::{Answer, BUFFER, Client, Trouble},
    transfer::{Download, Downloader},
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
/// The shortest range worth a request of its own, and the longest one.
const SHORT: u64 = 8 << 20;
const LONG: u64 = 64 << 20;
/// Attempts in a row that may bring nothing: about half a minute.
const ATTEMPTS: u32 = 8;
/// Messages that wait at most, so that little is lost of what a killed process did not record.
const UNHEARD: usize = 16;
const TICK: Duration = Duration::from_millis(50);

/// Fetches ranges with the connections of a client.
pub(super) struct Ranges(pub Arc<Client>);

impl Downloader for Ranges {
    fn download(&self, download: &Download) -> Result<()> {
        let partial = Partial::open(download.path, download.size)?;
        let shared = Shared {
            client: self.0.clone(),
            address: download.url.into(),
            name: download.name.into(),
            path: download.path.into(),
            size: download.size,
            file: partial.file.try_clone().map_err(Error::io(download.path))?,
            missing: Mutex::new(partial.arrived.gaps(download.size)),
            found: Mutex::default(),
            earlier: partial.version.clone(),
            reads_all: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            writing: AtomicUsize::new(0),
        };
        let shared = Arc::new(shared);
        let mut crew =
            Crew { partial, failures: 0, pause: Instant::now(), working: 0, due: Vec::new() };
        let (tell, told) = mpsc::sync_channel(UNHEARD);
        let outcome = crew.work(download, &shared, &tell, &told);
        shared.closed.store(true, Ordering::SeqCst);
        // Once nothing is written any more, all that was written is told of.
        loop {
            let is_quiet = shared.writing.load(Ordering::SeqCst) == 0;
            for message in told.try_iter() {
                if let Message::Arrived(range) = message {
                    crew.partial.add(range)?;
                }
            }
            if is_quiet {
                break;
            }
            thread::yield_now();
        }
        crew.partial.record()?;
        outcome
    }
}

/// What the connections tell.
enum Message {
    Version(String),
    Arrived(Range<u64>),
    /// A connection has nothing more to do.
    Done,
    Failed(Trouble),
}

/// The connections, and what they have brought.
struct Crew {
    partial: Partial,
    /// Times that connections failed since bytes came last, those at the same time counted once.
    failures: u32,
    /// Until when nobody tries again.
    pause: Instant,
    working: usize,
    /// When to try again, for each connection that failed.
    due: Vec<Instant>,
}

impl Crew {
    fn work(
        &mut self,
        download: &Download,
        shared: &Arc<Shared>,
        tell: &SyncSender<Message>,
        told: &Receiver<Message>,
    ) -> Result<()> {
        let missing = download.size - self.partial.arrived.len();
        let connections = missing.div_ceil(SHORT).min(CONNECTIONS as u64) as usize;
        self.due = vec![Instant::now(); connections];
        while self.partial.arrived.len() < download.size {
            download.cancel.check()?;
            self.hire(shared, tell)?;
            match told.recv_timeout(TICK) {
                Ok(message) => self.hear(message)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::Internal("a sender that is held here is gone".into()));
                }
            }
            download.prefix.store(self.partial.arrived.prefix(), Ordering::Release);
            (download.arrived)(self.partial.arrived.len());
        }
        Ok(())
    }

    /// Starts the connections that are due.
    fn hire(&mut self, shared: &Arc<Shared>, tell: &SyncSender<Message>) -> Result<()> {
        if self.working == 0 && self.due.is_empty() {
            self.due.push(Instant::now());
        }
        let now = Instant::now();
        let due = self.due.extract_if(.., |due| *due <= now).count();
        for _ in 0..due {
            let (shared, tell) = (shared.clone(), tell.clone());
            let connection = thread::Builder::new().name("mynah-connection".into());
            connection
                .spawn(move || tell.send(shared.fetch_all(&tell)))
                .map_err(|error| Error::Internal(format!("no thread: {error}")))?;
            self.working += 1;
        }
        Ok(())
    }

    fn hear(&mut self, message: Message) -> Result<()> {
        match message {
            Message::Version(version) => {
                if self.partial.version.is_none() {
                    self.partial.set_version(version)?;
                }
            }
            Message::Arrived(range) => {
                self.failures = 0;
                self.partial.add(range)?;
            }
            Message::Done => self.working -= 1,
            Message::Failed(trouble) => {
                self.working -= 1;
                let now = Instant::now();
                self.failures += u32::from(self.failures == 0 || now >= self.pause);
                self.pause = self.pause.max(now + trouble.pause(self.failures, ATTEMPTS)?);
                self.due.push(self.pause);
            }
        }
        Ok(())
    }
}

/// What the connections share.
struct Shared {
    client: Arc<Client>,
    address: String,
    name: String,
    path: PathBuf,
    size: u64,
    file: File,
    /// What no connection is fetching.
    missing: Mutex<Vec<Range<u64>>>,
    /// Where the address redirects to, until that expires.
    found: Mutex<Option<String>>,
    /// The version that an earlier attempt has brought bytes of. Within one attempt the hash
    /// decides alone, because hosts that share an address may name the same bytes differently.
    earlier: Option<String>,
    /// Whether a connection reads the whole file, because the server knows no ranges.
    reads_all: AtomicBool,
    /// Whether the file must not be written any more.
    closed: AtomicBool,
    /// Connections that write, or tell of what they have written.
    writing: AtomicUsize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Takes a range that nobody fetches: long ones first, short ones towards the end, so that the
    /// connections end at about the same time.
    fn claim(&self) -> Option<Range<u64>> {
        let mut missing = lock(&self.missing);
        let left: u64 = missing.iter().map(|gap| gap.end - gap.start).sum();
        let length = (left / (2 * CONNECTIONS as u64)).clamp(SHORT, LONG);
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

    /// The life of a connection.
    fn fetch_all(&self, tell: &SyncSender<Message>) -> Message {
        let mut buffer = vec![0; BUFFER];
        while let Some(mut range) = self.claim() {
            let outcome = self.fetch(&mut range, &mut buffer, tell);
            if range.start < range.end {
                self.put_back(range);
            }
            match outcome {
                Ok(true) => {}
                Ok(false) => break,
                Err(trouble) => {
                    *lock(&self.found) = None;
                    return Message::Failed(trouble);
                }
            }
        }
        Message::Done
    }

    /// Fetches a range, of which the part that has not arrived is left; `false` when another
    /// connection brings everything.
    fn fetch(
        &self,
        range: &mut Range<u64>,
        buffer: &mut [u8],
        tell: &SyncSender<Message>,
    ) -> Result<bool, Trouble> {
        let whole = 0..self.size;
        let part = (*range != whole).then(|| range.clone());
        let found = lock(&self.found).clone();
        let address = found.as_ref().unwrap_or(&self.address);
        let mut answer = self.client.open(address, part.clone(), &self.name)?;
        self.check(&answer, tell)?;
        *lock(&self.found) = Some(answer.address.to_string());
        if part.is_none() || answer.part.is_some() {
            self.read(&mut answer, range, buffer, tell)?;
            return Ok(true);
        }
        if self.reads_all.swap(true, Ordering::SeqCst) {
            return Ok(false);
        }
        lock(&self.missing).clear();
        range.end = self.size;
        let outcome = self.skip(&mut answer, range.start, buffer);
        let outcome = outcome.and_then(|()| self.read(&mut answer, range, buffer, tell));
        self.reads_all.store(false, Ordering::SeqCst);
        outcome.map(|()| true)
    }

    /// Whether this is the file that it shall be.
    fn check(&self, answer: &Answer, tell: &SyncSender<Message>) -> Result<(), Trouble> {
        let size = match &answer.part {
            Some((_, size)) => *size,
            None => answer.length,
        };
        if let Some(size) = size.filter(|size| *size != self.size) {
            let reason = format!("has {size} bytes of {}, the hub says {}", self.name, self.size);
            return Err(Trouble::lasting(self.client.server(&answer.address, reason)));
        }
        match (&self.earlier, &answer.version) {
            (Some(old), Some(new)) if old != new => {
                Err(Trouble::lasting(Error::Changed { file: self.name.clone() }))
            }
            (None, Some(new)) if new.len() < 1000 => {
                tell.send(Message::Version(new.clone())).ok();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn skip(&self, answer: &mut Answer, mut bytes: u64, buffer: &mut [u8]) -> Result<(), Trouble> {
        while bytes > 0 {
            bytes -= self.receive(answer, bytes, buffer)? as u64;
        }
        Ok(())
    }

    fn read(
        &self,
        answer: &mut Answer,
        range: &mut Range<u64>,
        buffer: &mut [u8],
        tell: &SyncSender<Message>,
    ) -> Result<(), Trouble> {
        while range.start < range.end {
            let count = self.receive(answer, range.end - range.start, buffer)?;
            self.writing.fetch_add(1, Ordering::SeqCst);
            let outcome = self.write(&buffer[..count], range, tell);
            self.writing.fetch_sub(1, Ordering::SeqCst);
            outcome?;
        }
        // Reading to the end lets the connection be used again.
        io::copy(&mut (&mut answer.body).take(1), &mut io::sink()).ok();
        Ok(())
    }

    /// Writes what came first of a range, and tells of it.
    fn write(
        &self,
        bytes: &[u8],
        range: &mut Range<u64>,
        tell: &SyncSender<Message>,
    ) -> Result<(), Trouble> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(Trouble::lasting(Error::Cancelled));
        }
        let written = self.file.write_all_at(bytes, range.start);
        written.map_err(|error| Trouble::lasting(self.not_written(error, range)))?;
        let start = range.start;
        range.start += bytes.len() as u64;
        tell.send(Message::Arrived(start..range.start)).ok();
        Ok(())
    }

    /// Reads at least one and at most `most` bytes.
    fn receive(&self, answer: &mut Answer, most: u64, buffer: &mut [u8]) -> Result<usize, Trouble> {
        let most = most.min(buffer.len() as u64) as usize;
        match answer.body.read(&mut buffer[..most]) {
            Ok(0) => Err(self.client.broken(&answer.address, &"the connection ended early")),
            Ok(count) => Ok(count),
            Err(error) => Err(self.client.broken(&answer.address, &error)),
        }
    }

    fn not_written(&self, error: io::Error, range: &Range<u64>) -> Error {
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
