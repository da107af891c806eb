//! Work that reports progress while a caller waits for it.

use crate::error::MynahError;
use std::{
    future::{pending, poll_fn},
    pin::{Pin, pin},
    task::Poll,
};
use tokio::sync::{Mutex, Notify, watch};

type Work<T> = Pin<Box<dyn Future<Output = mynah::Result<T>> + Send>>;

/// The sender of progress events.
pub(crate) type Tell<E> = watch::Sender<Option<E>>;

/// Work that starts with the first call of `next` or `outcome` and stops when it is cancelled or
/// dropped. `E` is a progress event, `T` the outcome.
pub(crate) struct Steps<E, T> {
    state: Mutex<State<E, T>>,
    cancelled: Notify,
}

struct State<E, T> {
    /// The latest event. Events are coalesced for slow readers.
    events: watch::Receiver<Option<E>>,
    phase: Phase<T>,
}

enum Phase<T> {
    Running(Work<T>),
    Ready(T),
    /// The work was cancelled, or the reader has received the error.
    Over,
}

enum Next<E, T> {
    Event(Option<E>),
    Outcome(mynah::Result<T>),
}

impl<E: Clone, T: Clone> Steps<E, T> {
    /// The work that `begin` creates.
    pub fn new<F>(begin: impl FnOnce(Tell<E>) -> F) -> Self
    where
        F: Future<Output = mynah::Result<T>> + Send + 'static,
    {
        let (sender, events) = watch::channel(None);
        let phase = Phase::Running(Box::pin(begin(sender)));
        Steps { state: Mutex::new(State { events, phase }), cancelled: Notify::new() }
    }

    /// Waits for progress; none once the work is done.
    pub async fn next(&self) -> Result<Option<E>, MynahError> {
        let mut state = self.state.lock().await;
        self.advance(&mut state, true).await
    }

    /// Waits for the outcome.
    pub async fn outcome(&self) -> Result<T, MynahError> {
        let mut state = self.state.lock().await;
        self.advance(&mut state, false).await?;
        match &state.phase {
            Phase::Ready(outcome) => Ok(outcome.clone()),
            Phase::Running(_) | Phase::Over => Err(mynah::Error::Cancelled.into()),
        }
    }

    pub fn cancel(&self) {
        self.cancelled.notify_one();
        // A task that holds the lock waits for the notification.
        if let Ok(mut state) = self.state.try_lock() {
            state.phase = Phase::Over;
        }
    }

    /// Polls the work until it reports an event, if `wants_events`, or an outcome.
    async fn advance(
        &self,
        state: &mut State<E, T>,
        wants_events: bool,
    ) -> Result<Option<E>, MynahError> {
        let State { events, phase } = state;
        let work = match phase {
            Phase::Running(work) => work,
            Phase::Ready(_) => return Ok(None),
            Phase::Over => return Err(mynah::Error::Cancelled.into()),
        };
        let next = {
            let mut cancelled = pin!(self.cancelled.notified());
            let mut changed = pin!(async {
                match events.changed().await {
                    Ok(()) if wants_events => events.borrow_and_update().clone(),
                    // An error only means that no further event comes.
                    _ => pending().await,
                }
            });
            poll_fn(|context| {
                if cancelled.as_mut().poll(context).is_ready() {
                    return Poll::Ready(Next::Outcome(Err(mynah::Error::Cancelled)));
                }
                if let Poll::Ready(outcome) = work.as_mut().poll(context) {
                    return Poll::Ready(Next::Outcome(outcome));
                }
                changed.as_mut().poll(context).map(Next::Event)
            })
            .await
        };
        let outcome = match next {
            Next::Outcome(outcome) => outcome,
            Next::Event(event) => return Ok(event),
        };
        match outcome {
            Ok(outcome) => {
                *phase = Phase::Ready(outcome);
                // Work that is faster than its reader still reports its last event.
                let last = events.borrow_and_update();
                let is_news = wants_events && last.has_changed();
                Ok(last.clone().filter(|_| is_news))
            }
            Err(error) => {
                *phase = Phase::Over;
                Err(error.into())
            }
        }
    }
}
