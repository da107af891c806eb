//! A generation as its application sees it: the stream of its events.

use crate::{
    answer::{RejectedToolCall, ToolCall, ToolCallDelta},
    engine::thread::Engine,
    error::Result,
};
use futures_core::Stream;
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// The number of events that wait for a slow reader. When they are full, the generation pauses.
const BUFFERED: usize = 32;

/// An event of a [`Generation`]. The events of all kinds arrive in the order in which they happen.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// Progress of the prefill.
    Prefill {
        /// The number of prompt tokens in the KV cache.
        done: usize,
        /// The number of prompt tokens.
        total: usize,
    },
    /// The next token, with its text.
    Token(Token),
    /// Text that no token carries: text after another part of the answer in the same token, the
    /// incomplete characters at the end of the answer, or the text before a stop text.
    Text(String),
    /// The next part of the thoughts before the answer.
    Reasoning(String),
    /// The next part of the arguments of a call.
    ToolCallDelta(ToolCallDelta),
    /// A complete call of a tool.
    ToolCall(ToolCall),
    /// What the model wrote as a call, and what is not one.
    RejectedToolCall(RejectedToolCall),
    /// The end of the generation, always the last event.
    Finished(Summary),
}

/// A generated token.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Token {
    /// The id of the token.
    pub id: u32,
    /// The log-probability of the token before the sampling filters.
    pub logprob: f32,
    /// The characters of the text that the token completes. Empty while a character is incomplete or
    /// the text may belong to a stop text or to the marks of another part, in thoughts and calls, and
    /// without a tokenizer.
    pub text: String,
    /// The [`GenerateOptions::top_logprobs`] most probable tokens at this position and their
    /// log-probabilities, in descending order.
    pub top: Vec<(u32, f32)>,
}

impl Token {
    /// A token without alternatives.
    pub fn new(id: u32, logprob: f32, text: impl Into<String>) -> Self {
        Token { id, logprob, text: text.into(), top: Vec::new() }
    }
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FinishReason {
    /// The model ended its text, or a stop text occurred.
    Stop,
    /// [`GenerateOptions::max_tokens`] were generated, or the model's context is full.
    Length,
    /// The application cancelled the generation.
    Cancelled,
}

impl FinishReason {
    /// The reason as the command prints it.
    pub fn name(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "cancelled",
        }
    }
}

/// The statistics of a generation.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Summary {
    /// Why the generation ended.
    pub finish_reason: FinishReason,
    /// The number of prompt tokens.
    pub prompt_tokens: usize,
    /// The number of prompt tokens that were reused from the KV cache of a session.
    pub cached_tokens: usize,
    /// The number of messages that [`Overflow::DropOldest`](crate::Overflow) left out.
    pub dropped_messages: usize,
    /// The number of generated tokens, without the token that ended the text.
    pub generated_tokens: usize,
    /// The number of draft tokens that verify passes have computed.
    pub drafted_tokens: usize,
    /// The number of draft tokens that were right.
    pub accepted_tokens: usize,
    /// The time from the request to the first token.
    pub time_to_first_token: Duration,
    /// The prompt tokens computed per second.
    pub prefill_rate: f64,
    /// The generated tokens per second, after the first.
    pub decode_rate: f64,
    /// The maximum memory that MLX used, in bytes.
    pub peak_memory: usize,
}

impl Summary {
    /// A summary without tokens, for tests of code that reads events.
    pub fn new(finish_reason: FinishReason) -> Self {
        Summary {
            finish_reason,
            prompt_tokens: 0,
            cached_tokens: 0,
            dropped_messages: 0,
            generated_tokens: 0,
            drafted_tokens: 0,
            accepted_tokens: 0,
            time_to_first_token: Duration::ZERO,
            prefill_rate: 0.0,
            decode_rate: 0.0,
            peak_memory: 0,
        }
    }
}

/// A running generation: a [`Stream`] of its events. Dropping it stops the computation.
///
/// The computation pauses while the reader is slow. The stream ends after [`Event::Finished`] or
/// after an error.
pub struct Generation {
    events: Receiver<Result<Event>>,
    control: Arc<Control>,
    prompt: Vec<u32>,
}

/// Cancels a generation from any thread.
#[derive(Clone)]
pub struct Canceller(Arc<Control>);

struct Control {
    cancelled: AtomicBool,
    /// Whether the task waits for the reader.
    parked: AtomicBool,
    engine: &'static Engine,
}

/// The end of a stream at which the task sends its events.
pub(super) struct Outlet {
    sender: Sender<Result<Event>>,
    control: Arc<Control>,
}

impl Outlet {
    /// Whether the reader has dropped the stream.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Whether the application has cancelled the generation.
    pub fn is_cancelled(&self) -> bool {
        self.control.cancelled.load(Ordering::Acquire)
    }

    /// Whether there is no room for an event. The reader then wakes the engine once there is.
    pub fn is_full(&self) -> bool {
        if self.sender.capacity() > 0 {
            return false;
        }
        self.control.parked.store(true, Ordering::Release);
        // The reader may have taken an event just before `parked` was set.
        self.sender.capacity() == 0
    }

    /// Sends an event for which there is room.
    pub fn send(&self, event: Result<Event>) {
        self.sender.try_send(event).ok();
    }
}

impl Canceller {
    /// Ends the generation after the current step. The stream still yields [`Event::Finished`].
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Release);
        self.0.engine.wake();
    }
}

impl Generation {
    /// The stream of a prompt of tokens, and the end at which its task sends.
    pub(super) fn new(engine: &'static Engine, prompt: Vec<u32>) -> (Self, Outlet) {
        let (sender, events) = channel(BUFFERED);
        let control = Arc::new(Control {
            cancelled: AtomicBool::new(false),
            parked: AtomicBool::new(false),
            engine,
        });
        let generation = Generation { events, control: control.clone(), prompt };
        (generation, Outlet { sender, control })
    }

    /// The tokens of the prompt.
    pub fn prompt_tokens(&self) -> &[u32] {
        &self.prompt
    }

    /// The next event; `None` after the end and after an error.
    ///
    /// As `StreamExt::next` of the futures crate, which is not needed for it.
    pub async fn next(&mut self) -> Option<Result<Event>> {
        let event = self.events.recv().await;
        self.make_room();
        event
    }

    /// The buffered events, at most `max` of them, without waiting. An error is the last one.
    pub fn ready(&mut self, max: usize) -> Vec<Result<Event>> {
        let mut ready = Vec::new();
        while ready.len() < max
            && let Ok(event) = self.events.try_recv()
        {
            ready.push(event);
        }
        // After the last event, because the device may be the processor of this thread.
        if !ready.is_empty() {
            self.make_room();
        }
        ready
    }

    /// Wakes the task if it waits for the reader.
    fn make_room(&self) {
        if self.control.parked.swap(false, Ordering::AcqRel) {
            self.control.engine.wake();
        }
    }

    /// Ends the generation after the current step. The stream still yields [`Event::Finished`].
    pub fn cancel(&self) {
        self.canceller().cancel();
    }

    /// A handle that cancels the generation from another thread.
    pub fn canceller(&self) -> Canceller {
        Canceller(self.control.clone())
    }
}

impl Stream for Generation {
    type Item = Result<Event>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let event = self.events.poll_recv(context);
        if event.is_ready() {
            self.make_room();
        }
        event
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.events.close();
        self.control.engine.wake();
    }
}
