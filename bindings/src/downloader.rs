//! The files of a model by way of the host application, which may be suspended and go on.

use mynah::{Error, hub};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
};

/// A file to be fetched.
#[derive(Clone, uniffi::Record)]
pub struct FileRequest {
    /// The address, which may redirect to another host.
    pub url: String,
    /// What the header `Authorization` shall be for the host of `url`, and for no other.
    pub authorization: Option<String>,
    /// Its name in the repository.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// The local file that it becomes. What has arrived when a download fails may stay there for
    /// the next one.
    pub path: String,
}

/// Why a file did not come.
#[derive(Debug, thiserror::Error, uniffi::Error)]
pub enum DownloaderError {
    /// Somebody cancelled it.
    #[error("cancelled")]
    Cancelled,
    /// Something went wrong.
    #[error("{reason}")]
    Failed {
        /// What it was.
        reason: String,
    },
}

impl From<uniffi::UnexpectedUniFFICallbackError> for DownloaderError {
    fn from(error: uniffi::UnexpectedUniFFICallbackError) -> Self {
        DownloaderError::Failed { reason: error.reason }
    }
}

/// A transport of the host. It only moves bytes: locks, free space, hashes and the place in the cache
/// are this library's.
#[uniffi::export(foreign)]
#[async_trait::async_trait]
pub trait Downloader: Send + Sync {
    /// Puts a file into its local file, and returns when it is there. It is called from several
    /// threads, for several files at once, and is cancelled when nobody wants the file any more.
    ///
    /// # Errors
    /// Why it did not come.
    async fn download(
        &self,
        request: FileRequest,
        arrived: Arc<Arrived>,
    ) -> Result<(), DownloaderError>;
}

/// Where a transport says how much of a file has arrived.
#[derive(uniffi::Object)]
pub struct Arrived {
    bytes: AtomicU64,
    waiting: Thread,
}

#[uniffi::export]
impl Arrived {
    /// So many bytes of the file are there.
    pub fn report(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Release);
        self.waiting.unpark();
    }
}

/// The transport of the host as the core takes it.
pub(crate) struct Host(Arc<dyn Downloader>);

impl Host {
    pub fn transport(downloader: Arc<dyn Downloader>) -> Arc<dyn hub::Downloader> {
        Arc::new(Host(downloader))
    }
}

impl hub::Downloader for Host {
    fn download(&self, download: &hub::Download) -> mynah::Result<()> {
        let thread = thread::current();
        let arrived = Arc::new(Arrived { bytes: AtomicU64::new(0), waiting: thread.clone() });
        let waker = Waker::from(Arc::new(Unpark(thread.clone())));
        download.cancel.on_cancel(move || thread.unpark());
        let request = FileRequest {
            url: download.url.into(),
            authorization: download.token.map(hub::Token::authorization),
            name: download.name.into(),
            size: download.size,
            path: download.path.to_string_lossy().into_owned(),
        };
        let mut work = self.0.download(request, arrived.clone());
        let mut told = 0;
        loop {
            // To drop the work is what cancels it on the side of the host, which nobody waits for.
            download.cancel.check()?;
            let outcome = work.as_mut().poll(&mut Context::from_waker(&waker));
            let bytes = arrived.bytes.load(Ordering::Acquire);
            if bytes != told {
                told = bytes;
                (download.on_progress)(bytes);
            }
            match outcome {
                Poll::Ready(Ok(())) => return Ok(()),
                Poll::Ready(Err(DownloaderError::Cancelled)) => return Err(Error::Cancelled),
                Poll::Ready(Err(DownloaderError::Failed { reason })) => {
                    let host = download.url.split('/').nth(2).unwrap_or(download.url);
                    return Err(Error::Network { host: host.into(), reason });
                }
                Poll::Pending => thread::park(),
            }
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
