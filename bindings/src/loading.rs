//! A model on its way.

use crate::{error::MynahError, model::Model, source::ModelSource};
use mynah::{Location, hub};
use std::{
    future::{pending, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
};
use tokio::sync::{Mutex, Notify, watch};

/// How far the loading of a model is.
#[derive(Clone, Debug, uniffi::Enum)]
pub enum LoadEvent {
    /// Files come from a hub.
    Downloading {
        /// How far that is.
        progress: DownloadProgress,
    },
    /// The weights are read.
    Loading {
        /// The share that is in memory, from 0 to 1.
        share: f64,
    },
}

/// How far a download is, over all files of a model.
#[derive(Clone, Debug, uniffi::Record)]
pub struct DownloadProgress {
    /// Bytes that are on the disk; it never falls.
    pub done: u64,
    /// Bytes of all files.
    pub total: u64,
    /// Bytes that arrive in a second.
    pub bytes_per_second: f64,
    /// How many seconds it will take at this speed, once there is one.
    pub remaining_seconds: Option<f64>,
    /// A file that is being fetched.
    pub file: String,
}

impl From<hub::Progress> for DownloadProgress {
    fn from(progress: hub::Progress) -> Self {
        DownloadProgress {
            done: progress.done,
            total: progress.total,
            bytes_per_second: progress.bytes_per_second,
            remaining_seconds: progress.remaining.map(|remaining| remaining.as_secs_f64()),
            file: progress.file,
        }
    }
}

impl From<mynah::LoadEvent> for LoadEvent {
    fn from(event: mynah::LoadEvent) -> Self {
        match event {
            mynah::LoadEvent::Download(progress) => {
                LoadEvent::Downloading { progress: progress.into() }
            }
            mynah::LoadEvent::Weights(share) => LoadEvent::Loading { share: share.into() },
        }
    }
}

type Work = Pin<Box<dyn Future<Output = mynah::Result<mynah::Model>> + Send>>;

/// A model on its way. It starts when it is first asked for something, and stops when it is
/// cancelled or dropped; what was downloaded until then stays on the disk.
#[derive(uniffi::Object)]
pub struct Loading {
    state: Mutex<State>,
    cancelled: Notify,
}

struct State {
    /// The latest event. A reader who is slow misses some, and none piles up.
    events: watch::Receiver<Option<mynah::LoadEvent>>,
    phase: Phase,
}

enum Phase {
    Running(Work),
    Ready(Arc<Model>),
    /// Cancelled, or the error has been given out.
    Over,
}

/// Begins to load a model.
///
/// # Errors
/// When the source is none.
#[uniffi::export]
pub fn load_model(source: ModelSource) -> Result<Arc<Loading>, MynahError> {
    let location = Location::try_from(source)?;
    let (sender, events) = watch::channel(None);
    let work = mynah::Model::load(location, move |event| drop(sender.send_replace(Some(event))));
    let state = State { events, phase: Phase::Running(Box::pin(work)) };
    Ok(Arc::new(Loading { state: Mutex::new(state), cancelled: Notify::new() }))
}

#[uniffi::export]
impl Loading {
    /// How far it is now, when that has changed; nothing more once the model is there.
    ///
    /// # Errors
    /// Why there will be no model; once.
    pub async fn next(&self) -> Result<Option<LoadEvent>, MynahError> {
        let mut state = self.state.lock().await;
        self.advance(&mut state, true).await
    }

    /// The model, once it is there.
    ///
    /// # Errors
    /// Why there will be none.
    pub async fn model(&self) -> Result<Arc<Model>, MynahError> {
        let mut state = self.state.lock().await;
        self.advance(&mut state, false).await?;
        match &state.phase {
            Phase::Ready(model) => Ok(model.clone()),
            Phase::Running(_) | Phase::Over => Err(mynah::Error::Cancelled.into()),
        }
    }

    /// Stops it.
    pub fn cancel(&self) {
        self.cancelled.notify_one();
        // Whoever holds the lock waits for the notification.
        if let Ok(mut state) = self.state.try_lock() {
            state.phase = Phase::Over;
        }
    }
}

enum Next {
    Event(Option<mynah::LoadEvent>),
    Outcome(mynah::Result<mynah::Model>),
}

impl Loading {
    /// Goes on until there is an event, if one is wanted, or the model.
    async fn advance(
        &self,
        state: &mut State,
        wants_events: bool,
    ) -> Result<Option<LoadEvent>, MynahError> {
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
                    // An error only says that there will be no more events.
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
            Next::Event(event) => return Ok(event.map(LoadEvent::from)),
        };
        match outcome {
            Ok(model) => {
                *phase = Phase::Ready(Arc::new(Model(model)));
                // A model that loads faster than anybody reads still tells of its last progress.
                let last = events.borrow_and_update();
                let is_news = wants_events && last.has_changed();
                Ok(last.clone().filter(|_| is_news).map(LoadEvent::from))
            }
            Err(error) => {
                *phase = Phase::Over;
                Err(error.into())
            }
        }
    }
}
