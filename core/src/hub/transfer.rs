//! How the bytes of a file come here.

use crate::error::{Error, Result};
use crate::hub::AccessToken;
use std::{
    path::Path,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

/// A transport for the files of a model. The default one of [`super::Source`] uses several
/// connections of this process; a host application can bring one that outlives it.
///
/// A transport only moves bytes: locks, free space, hashes and the place in the cache are checked
/// by the caller, before and after.
pub trait Downloader: Send + Sync {
    /// Puts the file at an address into a local file, and returns when it is there. What has
    /// arrived when it fails may stay in the local file for the next call to go on from.
    ///
    /// # Errors
    /// [`Error::Cancelled`] soon after [`Download::cancel`] said so; whatever else went wrong.
    fn download(&self, download: &Download) -> Result<()>;
}

/// One file to be fetched.
pub struct Download<'a> {
    /// The address, which may redirect to another host.
    pub url: &'a str,
    /// Goes to the host of `url` in `Authorization`, and to no other.
    pub token: Option<&'a AccessToken>,
    /// The repository, such as `org/name`.
    pub repository: &'a str,
    /// The commit of the snapshot.
    pub commit: &'a str,
    /// The name of the file in the repository.
    pub name: &'a str,
    /// The hash that the hub announced for the file.
    pub hash: &'a str,
    /// Its size in bytes.
    pub size: u64,
    /// The local file.
    pub path: &'a Path,
    /// Whether to stop.
    pub cancel: &'a Cancel,
    /// To be called with the number of bytes of the file that have arrived so far.
    pub arrived: &'a (dyn Fn(u64) + Sync),
    /// Up to where the local file is as it shall be, so that it can be hashed meanwhile.
    pub(super) prefix: &'a AtomicU64,
}

/// Stops a download from any thread.
#[derive(Clone, Default)]
pub struct Cancel(Arc<State>);

#[derive(Default)]
struct State {
    cancelled: AtomicBool,
    hooks: Mutex<Vec<Box<dyn FnOnce() + Send>>>,
    changed: Condvar,
}

impl Cancel {
    /// Stops it. What has arrived is kept.
    pub fn cancel(&self) {
        let hooks = {
            let mut hooks = self.0.hooks.lock().unwrap_or_else(PoisonError::into_inner);
            self.0.cancelled.store(true, Ordering::SeqCst);
            std::mem::take(&mut *hooks)
        };
        self.0.changed.notify_all();
        hooks.into_iter().for_each(|hook| hook());
    }

    /// Whether it is to stop.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::SeqCst)
    }

    /// Calls `hook` on the thread that cancels; at once when that has happened already.
    pub fn on_cancel(&self, hook: impl FnOnce() + Send + 'static) {
        let mut hooks = self.0.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_cancelled() {
            drop(hooks);
            hook();
        } else {
            hooks.push(Box::new(hook));
        }
    }

    /// [`Error::Cancelled`] if it is to stop.
    ///
    /// # Errors
    /// That.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Sleeps, unless it is to stop.
    pub(super) fn pause(&self, duration: Duration) -> Result<()> {
        let hooks = self.0.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = self.0.changed.wait_timeout_while(hooks, duration, |_| !self.is_cancelled());
        drop(wait);
        self.check()
    }
}
