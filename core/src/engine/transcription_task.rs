//! A transcription as a task of the engine thread: a step is a token, an encoder, or some seconds of
//! features.

use crate::{
    engine::{
        device,
        engine_model::{EngineModel, find},
        thread::{Engine, Task, Turn},
    },
    error::{Error, Result},
    generate::transcription::{
        Progress, Segment, TranscribeOptions, Transcript, TranscriptionRun, Vocabulary,
    },
    media::audio::Recording,
};
use futures_core::Stream;
use std::{
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// An event of a [`Transcription`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum TranscriptionEvent {
    /// The next segments, which are final, in order; none after a window without speech.
    Segments {
        /// The segments.
        segments: Vec<Segment>,
        /// The share of the recording that is transcribed, from 0 to 1.
        share: f32,
    },
    /// The text so far of audio that is still coming, after the segments that are final; it may change.
    Partial {
        /// The text.
        text: String,
        /// Where it begins, in seconds.
        start: f64,
    },
    /// The whole transcript, always the last event.
    Finished(Transcript),
}

/// A running transcription: a [`Stream`] of its events. Dropping it stops the computation.
pub struct Transcription {
    events: UnboundedReceiver<Result<TranscriptionEvent>>,
    engine: &'static Engine,
}

/// What a transcription needs.
pub(crate) struct TranscriptionRequest {
    pub model: u64,
    /// The vocabulary of a model of windows.
    pub vocabulary: Option<Arc<Vocabulary>>,
    pub recording: Recording,
    pub options: TranscribeOptions,
}

impl Transcription {
    /// Begins a transcription on the engine thread.
    pub(crate) fn start(engine: &'static Engine, request: TranscriptionRequest) -> Self {
        let (transcription, sender) = Transcription::new(engine);
        engine.start(move || {
            let state = State::Waiting(Some(request));
            Box::new(TranscriptionTask { state, sender, failure: None })
        });
        transcription
    }

    /// A stream, and the end at which a task sends.
    pub(super) fn new(
        engine: &'static Engine,
    ) -> (Self, UnboundedSender<Result<TranscriptionEvent>>) {
        let (sender, events) = unbounded_channel();
        (Transcription { events, engine }, sender)
    }

    /// The next event; `None` after the end and after an error.
    pub async fn next(&mut self) -> Option<Result<TranscriptionEvent>> {
        self.events.recv().await
    }

    /// The whole transcript.
    ///
    /// # Errors
    /// Those of the transcription.
    pub async fn finish(mut self) -> Result<Transcript> {
        while let Some(event) = self.next().await {
            if let TranscriptionEvent::Finished(transcript) = event? {
                return Ok(transcript);
            }
        }
        Err(Error::Internal("the transcription has no end".into()))
    }
}

impl Stream for Transcription {
    type Item = Result<TranscriptionEvent>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.poll_recv(context)
    }
}

impl Drop for Transcription {
    fn drop(&mut self) {
        self.events.close();
        self.engine.wake();
    }
}

struct TranscriptionTask {
    state: State,
    sender: UnboundedSender<Result<TranscriptionEvent>>,
    /// The device has failed under it.
    failure: Option<Error>,
}

enum State {
    Waiting(Option<TranscriptionRequest>),
    Running(Rc<EngineModel>, Box<TranscriptionRun>),
}

impl TranscriptionTask {
    fn advance(&mut self) -> Result<Option<TranscriptionEvent>> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        match &mut self.state {
            State::Waiting(request) => {
                let request = request.take();
                let request = request.ok_or_else(|| Error::Internal("begun twice".into()))?;
                let model = find(request.model)?;
                let transcription = TranscriptionRun::new(
                    model.transcriber()?.clone(),
                    request.vocabulary,
                    request.options,
                    request.recording,
                )?;
                self.state = State::Running(model, Box::new(transcription));
                Ok(None)
            }
            State::Running(model, _) if model.unloaded.get() => Err(Error::Unloaded),
            State::Running(model, transcription) => {
                Ok(match transcription.advance(&mut model.decode_step())? {
                    Progress::Working => None,
                    Progress::Segments(segments, share) => {
                        Some(TranscriptionEvent::Segments { segments, share })
                    }
                    Progress::Finished(transcript) => {
                        Some(TranscriptionEvent::Finished(transcript))
                    }
                })
            }
        }
    }
}

impl Task for TranscriptionTask {
    fn step(&mut self) -> Turn {
        if self.sender.is_closed() {
            return Turn::Done;
        }
        match self.advance() {
            Ok(None) => Turn::Ready,
            Ok(Some(event)) => {
                let is_over = matches!(event, TranscriptionEvent::Finished(_));
                self.sender.send(Ok(event)).ok();
                if is_over { Turn::Done } else { Turn::Ready }
            }
            Err(error) => {
                self.fail(error);
                Turn::Done
            }
        }
    }

    fn is_ending(&self) -> bool {
        self.sender.is_closed()
    }

    fn fail(&mut self, error: Error) {
        let error = match error {
            Error::Mlx(reason) if device::has_failed() => Error::device(reason),
            error => error,
        };
        tracing::info!(kind = ?error.kind(), "transcription failed");
        self.sender.send(Err(error)).ok();
    }

    fn distrust(&mut self) {
        self.failure = Some(Error::Device("it failed during the transcription".into()));
    }
}
