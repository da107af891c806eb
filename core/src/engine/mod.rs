//! The thread that owns every array: its tasks, the generations among them, and the prefix caches
//! of sessions. This room runs models; it knows no handle and no download.

mod answer;
mod device;
mod draft_model;
pub(crate) mod engine_model;
mod generation;
mod generation_task;
mod live_transcription;
mod media_cache;
pub(crate) mod prefix_cache;
pub(crate) mod prompt;
mod request;
mod speculation;
mod speculator;
mod stream;
mod thread;
mod transcription_task;

pub use answer::Answer;
pub use live_transcription::LiveAudio;
pub use stream::{Canceller, Event, FinishReason, Generation, Summary, Token};
pub use thread::Engine;
pub use transcription_task::{Transcription, TranscriptionEvent};

pub(crate) use device::alone;
pub(crate) use live_transcription::LiveRequest;
pub(crate) use request::{Answering, Request};
pub(crate) use thread::Turn;
pub(crate) use transcription_task::TranscriptionRequest;

/// Waits for a future on a thread of a test.
#[cfg(test)]
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    use std::{
        pin::pin,
        sync::Arc,
        task::{Context, Poll, Wake, Waker},
        thread::{self, Thread},
    };

    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}
