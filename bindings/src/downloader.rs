//! Downloads by the application, which can continue while the app is suspended.

use crate::host::wait;
use mynah::{Error, hub};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, Thread},
};

/// A file to download.
#[derive(Clone, uniffi::Record)]
pub struct FileRequest {
    /// The address, which may redirect to another host.
    pub url: String,
    /// The value of the header `Authorization` for the host of `url`; other hosts must not get it.
    pub authorization: Option<String>,
    /// The repository, such as `org/name`.
    pub repository: String,
    /// The commit of the snapshot.
    pub commit: String,
    /// The name of the file in the repository.
    pub name: String,
    /// The hash that the hub announces for the file.
    pub hash: String,
    /// The size in bytes.
    pub size: u64,
    /// The local file to write. Partial content may stay there after a failure; the next attempt
    /// receives the same path.
    pub path: String,
}

/// Why a download failed.
#[derive(Debug, thiserror::Error, uniffi::Error)]
pub enum DownloaderError {
    /// The caller cancelled the download.
    #[error("cancelled")]
    Cancelled,
    /// The transport failed.
    #[error("{reason}")]
    Failed {
        /// The reason.
        reason: String,
    },
}

impl From<uniffi::UnexpectedUniFFICallbackError> for DownloaderError {
    fn from(error: uniffi::UnexpectedUniFFICallbackError) -> Self {
        DownloaderError::Failed { reason: error.reason }
    }
}

/// A transport of the application. It only moves bytes: the library handles locks, free space, hashes
/// and the layout of the hub cache.
#[uniffi::export(foreign)]
#[async_trait::async_trait]
pub trait Downloader: Send + Sync {
    /// Downloads a file to its path and returns when it is complete. The library calls it from
    /// several threads for several files at once, and cancels it when a download is cancelled.
    ///
    /// # Errors
    /// Why the download failed.
    async fn download(
        &self,
        request: FileRequest,
        arrived: Arc<Arrived>,
    ) -> Result<(), DownloaderError>;
}

/// Receives the progress of a transport.
#[derive(uniffi::Object)]
pub struct Arrived {
    bytes: AtomicU64,
    waiting: Thread,
}

#[uniffi::export]
impl Arrived {
    /// Reports the number of bytes received so far.
    pub fn report(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Release);
        self.waiting.unpark();
    }
}

/// The application's transport as the core calls it.
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
        download.cancel.on_cancel(move || thread.unpark());
        let request = FileRequest {
            url: download.url.into(),
            authorization: download.token.map(hub::AccessToken::authorization),
            repository: download.repository.into(),
            commit: download.commit.into(),
            name: download.name.into(),
            hash: download.hash.into(),
            size: download.size,
            path: download.path.to_string_lossy().into_owned(),
        };
        let mut told = 0;
        let outcome = wait(download.cancel, self.0.download(request, arrived.clone()), || {
            let bytes = arrived.bytes.load(Ordering::Acquire);
            if bytes != told {
                told = bytes;
                (download.on_progress)(bytes);
            }
        });
        match outcome? {
            Ok(()) => Ok(()),
            Err(DownloaderError::Cancelled) => Err(Error::Cancelled),
            Err(DownloaderError::Failed { reason }) => {
                let host = download.url.split('/').nth(2).unwrap_or(download.url);
                Err(Error::Network { host: host.into(), reason })
            }
        }
    }
}
