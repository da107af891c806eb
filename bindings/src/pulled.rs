//! Streams of a few large elements, and work beside the caller's threads.

use crate::{error::MynahError, host::block_on};
use mynah::Error;
use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    thread,
};
use tokio::sync::{
    Mutex, Notify,
    mpsc::{UnboundedSender, unbounded_channel},
    oneshot,
};

type Next<T> = Box<dyn FnMut(&mut Context<'_>) -> Poll<Option<mynah::Result<T>>> + Send>;

/// A stream that a caller pulls. It ends when it is cancelled or dropped.
pub(crate) struct Pulled<T> {
    next: Mutex<Option<Next<T>>>,
    cancelled: Notify,
}

impl<T: Send + 'static> Pulled<T> {
    /// The stream that `next` polls.
    pub fn new(
        next: impl FnMut(&mut Context<'_>) -> Poll<Option<mynah::Result<T>>> + Send + 'static,
    ) -> Self {
        Pulled { next: Mutex::new(Some(Box::new(next))), cancelled: Notify::new() }
    }

    /// The pieces that work sends. It starts when the first one is pulled.
    pub fn pieces<F>(begin: impl FnOnce(UnboundedSender<T>) -> F) -> Self
    where
        F: Future<Output = mynah::Result<()>> + Send + 'static,
    {
        let (sender, mut pieces) = unbounded_channel();
        let mut work: Option<Pin<Box<F>>> = Some(Box::pin(begin(sender)));
        let mut failure = None;
        Pulled::new(move |context| {
            if let Some(Poll::Ready(outcome)) =
                work.as_mut().map(|work| work.as_mut().poll(context))
            {
                work = None;
                failure = outcome.err();
            }
            match pieces.poll_recv(context) {
                Poll::Ready(Some(piece)) => Poll::Ready(Some(Ok(piece))),
                // The sender may be gone before the work is over.
                Poll::Ready(None) if work.is_none() => Poll::Ready(failure.take().map(Err)),
                _ => Poll::Pending,
            }
        })
    }

    /// Waits for the next element; none after the end, after an error, and once cancelled.
    pub async fn next(&self) -> Result<Option<T>, MynahError> {
        let mut state = self.next.lock().await;
        let Some(next) = &mut *state else { return Ok(None) };
        let mut cancelled = pin!(self.cancelled.notified());
        let element = poll_fn(|context| {
            if cancelled.as_mut().poll(context).is_ready() {
                return Poll::Ready(Some(Err(Error::Cancelled)));
            }
            next(context)
        })
        .await;
        if !matches!(element, Some(Ok(_))) {
            *state = None;
        }
        Ok(element.transpose()?)
    }

    pub fn cancel(&self) {
        self.cancelled.notify_one();
        // A task that holds the lock waits for the notification.
        if let Ok(mut state) = self.next.try_lock() {
            *state = None;
        }
    }
}

/// Cancels the call that it is passed to.
#[derive(Default, uniffi::Object)]
pub struct CallCanceller(Notify);

#[uniffi::export]
impl CallCanceller {
    /// For one call.
    #[uniffi::constructor]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Cancels the call, or the next one.
    pub fn cancel(&self) {
        self.0.notify_one();
    }
}

/// Does work on a thread of its own, because parts of it compute between its waits.
pub(crate) async fn aside<T: Send + 'static>(
    canceller: Arc<CallCanceller>,
    work: impl Future<Output = mynah::Result<T>> + Send + 'static,
) -> Result<T, MynahError> {
    let (answer, outcome) = oneshot::channel();
    thread::spawn(move || {
        let mut cancelled = pin!(canceller.0.notified());
        let mut work = pin!(work);
        let outcome = block_on(poll_fn(|context| {
            if cancelled.as_mut().poll(context).is_ready() {
                return Poll::Ready(Err(Error::Cancelled));
            }
            work.as_mut().poll(context)
        }));
        answer.send(outcome).ok();
    });
    Ok(outcome.await.unwrap_or_else(|_| Err(Error::Internal("a call panicked".into())))?)
}
