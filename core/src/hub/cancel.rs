//! Cancelling a download from any thread, and the thread that a download runs on.

use crate::error::{Error, Result};
use std::{
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};
use tokio::sync::oneshot;

/// Cancels a download from any thread. Clones share one state.
#[derive(Clone, Default)]
pub struct Cancel(Arc<State>);

#[derive(Default)]
struct State {
    cancelled: AtomicBool,
    hooks: Mutex<Vec<Box<dyn FnOnce() + Send>>>,
    changed: Condvar,
}

impl Cancel {
    /// Cancels the download. The bytes received so far are kept, so that a later download resumes.
    pub fn cancel(&self) {
        let hooks = {
            let mut hooks = self.0.hooks.lock().unwrap_or_else(PoisonError::into_inner);
            self.0.cancelled.store(true, Ordering::SeqCst);
            std::mem::take(&mut *hooks)
        };
        self.0.changed.notify_all();
        hooks.into_iter().for_each(|hook| hook());
    }

    /// Whether the download was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::SeqCst)
    }

    /// Calls `hook` on the thread that cancels; at once if the download is cancelled already.
    pub fn on_cancel(&self, hook: impl FnOnce() + Send + 'static) {
        let mut hooks = self.0.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_cancelled() {
            drop(hooks);
            hook();
        } else {
            hooks.push(Box::new(hook));
        }
    }

    /// Returns an error if the download was cancelled.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Sleeps for `duration`, or until the download is cancelled.
    pub(super) fn sleep(&self, duration: Duration) -> Result<()> {
        let hooks = self.0.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = self.0.changed.wait_timeout_while(hooks, duration, |_| !self.is_cancelled());
        drop(wait);
        self.check()
    }
}

/// Runs `work` on a thread of its own. Dropping the future cancels it.
pub(super) async fn run_on_thread<T: Send + 'static>(
    work: impl FnOnce(&Cancel) -> Result<T> + Send + 'static,
) -> Result<T> {
    let cancel = Cancel::default();
    let _guard = CancelOnDrop(cancel.clone());
    let (sender, outcome) = oneshot::channel();
    spawn("mynah-hub", move || {
        sender.send(work(&cancel)).ok();
    })?;
    outcome.await.map_err(|_| Error::Internal("the download thread panicked".into()))?
}

/// Starts a named thread that nothing joins.
pub(super) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = thread::Builder::new().name(name.into()).spawn(work);
    thread.map(drop).map_err(|error| Error::Internal(format!("cannot start a thread: {error}")))
}

struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}
