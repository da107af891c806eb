//! Asynchronous work of the application that a thread of the core waits for.

use mynah::hub::Cancel;
use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::Duration,
};

/// How soon a thread notices that its work is cancelled, if nothing wakes it before.
const PATIENCE: Duration = Duration::from_millis(100);

/// Waits for work of the application and calls `woken` whenever the thread wakes. Dropping the work
/// cancels it in the application's language.
///
/// # Errors
/// [`mynah::Error::Cancelled`].
pub(crate) fn wait<T>(
    cancel: &Cancel,
    work: impl Future<Output = T>,
    mut woken: impl FnMut(),
) -> mynah::Result<T> {
    let mut work = pin!(work);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        cancel.check()?;
        let outcome = work.as_mut().poll(&mut Context::from_waker(&waker));
        woken();
        match outcome {
            Poll::Ready(outcome) => return Ok(outcome),
            Poll::Pending => thread::park_timeout(PATIENCE),
        }
    }
}

/// Waits for a future on this thread.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(outcome) => return outcome,
            Poll::Pending => thread::park(),
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
