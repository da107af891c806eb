//! The interface between the hub, which decides what to download, and the transport that moves the
//! bytes.

use crate::error::Result;
use crate::hub::{AccessToken, Cancel};
use std::{path::Path, sync::atomic::AtomicU64};

/// A transport for the files of a model. The default transport of [`super::Source`] opens several
/// connections from this process; an application can bring one that outlives the process.
///
/// A transport only moves bytes. The caller takes the lock, checks the free space, verifies the hash
/// and moves the file to its place in the cache.
pub trait Downloader: Send + Sync {
    /// Downloads one file to a local path and returns when all its bytes are there. On an error the
    /// bytes received so far may stay in the local file, so that the next call can resume.
    ///
    /// # Errors
    /// [`crate::Error::Cancelled`] soon after [`Download::cancel`] was cancelled, or whatever else
    /// went wrong.
    fn download(&self, download: &Download) -> Result<()>;
}

/// One file to download.
pub struct Download<'a> {
    /// The address, which may redirect to another host.
    pub url: &'a str,
    /// The credential for the `Authorization` header. Send it to the host of `url` and to no other.
    pub token: Option<&'a AccessToken>,
    /// The repository, such as `org/name`.
    pub repository: &'a str,
    /// The commit of the snapshot.
    pub commit: &'a str,
    /// The name of the file in the repository.
    pub name: &'a str,
    /// The hash that the hub announced for the file.
    pub hash: &'a str,
    /// The file's size in bytes.
    pub size: u64,
    /// The local path to write to.
    pub path: &'a Path,
    /// Cancels the download.
    pub cancel: &'a Cancel,
    /// The transport calls this with the number of bytes of the file received so far.
    pub on_progress: &'a (dyn Fn(u64) + Sync),
    /// The length of the prefix of the local file that is final, so that it can be hashed while the
    /// rest is downloaded. Only the default transport sets it.
    pub(super) prefix: &'a AtomicU64,
    /// Whether the default transport asks for the whole file at once, after ranges were wrong.
    pub(super) is_whole: bool,
}
