//! A generation: a task on the engine thread, and the stream of its events.

use crate::{
    answer::{Part, Reader, RejectedToolCall, ToolCall, ToolCallDelta},
    engine::engine_model::EngineModel,
    error::{Error, Result},
    layers::embedded::Key,
    models::{decode_step::prefill_embedded, language::Media},
    text::{Detokenizer, StopFilter, Tokenizer},
};
use crate::{
    engine::{
        prefix_cache::{Hold, Slot},
        prompt::EnginePrompt,
        thread::{Engine, Task, Turn},
    },
    generate::{Allowed, Choice, Constraint, GenerateOptions, Sampler},
};
use futures_core::Stream;
use mlx_rs::{
    Array, memory,
    transforms::{async_eval, eval},
};
use std::{
    collections::VecDeque,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tracing::Span;

/// The number of events that wait for a slow reader. When they are full, the generation pauses.
const BUFFERED: usize = 32;

/// The number of tokens for which the KV cache is allocated at first. Most answers end long before
/// `max_tokens`; the cache grows for those that do not.
const EXPECTED_TOKENS: usize = 256;

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

impl Canceller {
    /// Ends the generation after the current step. The stream still yields [`Event::Finished`].
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Release);
        self.0.engine.wake();
    }
}

impl Generation {
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

/// The arguments of a generation, on their way to the engine thread.
pub(crate) struct Request {
    pub engine: &'static Engine,
    pub prompt: Vec<u32>,
    /// What the placeholders of the prompt stand for.
    pub media: Vec<Media>,
    /// Positions of the prompt at which the session keeps a checkpoint of the state.
    pub marks: Vec<usize>,
    pub dropped_messages: usize,
    pub options: GenerateOptions,
    /// Splits the text into the parts of the answer.
    pub reader: Reader,
    /// The generation takes it when it starts.
    pub constraint: Option<Box<dyn Constraint>>,
    pub end_tokens: Vec<u32>,
    pub tokenizer: Option<Tokenizer>,
}

impl Request {
    /// The tokens that end the text.
    fn ends(&self) -> Vec<u32> {
        let own = if self.options.ignore_end { &[][..] } else { &self.end_tokens };
        [own, &self.options.end_tokens].concat()
    }

    /// Starts the generation with the model and the cache that `find` returns on the engine thread.
    pub(crate) fn start(
        mut self,
        find: impl FnOnce() -> Result<(Rc<EngineModel>, Rc<Slot>)> + Send + 'static,
    ) -> Generation {
        let (sender, events) = channel(BUFFERED);
        let control = Arc::new(Control {
            cancelled: AtomicBool::new(false),
            parked: AtomicBool::new(false),
            engine: self.engine,
        });
        let prompt = self.prompt.clone();
        let generation = Generation { events, control: control.clone(), prompt };
        let (engine, caller) = (self.engine, Span::current());
        engine.start(move || {
            let started = Instant::now();
            let phase = match find().and_then(|(loaded, slot)| Run::new(loaded, slot, &mut self)) {
                Ok(run) => Phase::Running(Box::new(run)),
                Err(error) => Phase::Failed(Some(error)),
            };
            let span = tracing::info_span!(parent: &caller, "prefill", tokens = self.prompt.len());
            span.in_scope(|| tracing::info!("prefill started"));
            Box::new(Worker { request: self, phase, sender, control, started, caller, span })
        });
        generation
    }
}

struct Worker {
    request: Request,
    phase: Phase,
    sender: Sender<Result<Event>>,
    control: Arc<Control>,
    started: Instant,
    /// The span in which the application started the generation.
    caller: Span,
    /// The span of the prefill, then that of the decoding.
    span: Span,
}

enum Phase {
    Failed(Option<Error>),
    Running(Box<Run>),
}

/// A generation in progress.
struct Run {
    loaded: Rc<EngineModel>,
    slot: Rc<Slot>,
    prompt: EnginePrompt,
    /// The exclusive access to the cache; none while another request has it.
    hold: Option<Hold>,
    sampler: Sampler,
    constraint: Option<Box<dyn Constraint>>,
    ends: Vec<u32>,
    detokenizer: Option<Detokenizer>,
    reader: Reader,
    stops: StopFilter,
    cached: usize,
    prefilled: usize,
    /// What follows the tokens that were given out.
    queued: Option<Result<Next>>,
    generated: usize,
    first_token: Option<Duration>,
    last_token: Duration,
    /// Events that are sent before anything is computed.
    outbox: VecDeque<Event>,
}

enum Next {
    /// A sampled token.
    Token(Choice),
    /// The constraint allows no further token: the text is complete.
    End,
}

impl Task for Worker {
    fn step(&mut self) -> Turn {
        let _span = self.span.clone().entered();
        if self.sender.is_closed() {
            return Turn::Done;
        }
        if self.is_unloaded() {
            self.phase = Phase::Failed(Some(Error::Unloaded));
        }
        if self.sender.capacity() == 0 {
            self.control.parked.store(true, Ordering::Release);
            // The reader may have taken an event just before `parked` was set.
            if self.sender.capacity() == 0 {
                return Turn::Parked;
            }
        }
        let run = match &mut self.phase {
            Phase::Running(run) => run,
            Phase::Failed(error) => {
                let error = error.take();
                error.into_iter().for_each(|error| self.fail(error));
                return Turn::Done;
            }
        };
        let event = if let Some(event) = run.outbox.pop_front() {
            Ok(event)
        } else if self.control.cancelled.load(Ordering::Acquire) {
            run.finish(&self.request, FinishReason::Cancelled)
        } else if run.holds_slot() {
            run.advance(&self.request, self.started)
        } else {
            return Turn::Parked;
        };
        match event {
            Ok(event) => {
                run.slot.publish();
                self.span = log(&event, &self.caller).unwrap_or(self.span.clone());
                let turn =
                    if matches!(event, Event::Finished(_)) { Turn::Done } else { Turn::Ready };
                self.sender.try_send(Ok(event)).ok();
                turn
            }
            Err(error) => {
                self.fail(error);
                Turn::Done
            }
        }
    }

    fn is_ending(&self) -> bool {
        let is_over = matches!(&self.phase, Phase::Running(run) if run.is_over());
        let cancelled = self.control.cancelled.load(Ordering::Acquire);
        is_over || cancelled || self.sender.is_closed() || self.is_unloaded()
    }

    fn fail(&mut self, error: Error) {
        // The memory limit is checked before the cache changes. After any other failure, the cache
        // may be half written.
        if let Phase::Running(run) = &self.phase
            && run.hold.is_some()
            && !matches!(error, Error::MemoryLimit { .. } | Error::NothingAllowed { .. })
        {
            run.slot.prefix_cache.borrow_mut().clear();
            run.slot.publish();
        }
        tracing::info!(kind = ?error.kind(), "generation failed");
        self.sender.try_send(Err(error)).ok();
    }
}

/// Logs an event without its text or tokens. Returns the span of the decoding after the prefill.
fn log(event: &Event, caller: &Span) -> Option<Span> {
    match event {
        Event::Prefill { done, total } if done < total => {
            tracing::debug!(done, total, "prefill step");
            None
        }
        Event::Prefill { total, .. } => {
            tracing::info!(tokens = total, "prefill finished");
            let span = tracing::info_span!(parent: caller, "decode");
            span.in_scope(|| tracing::info!("decode started"));
            Some(span)
        }
        Event::Token(_)
        | Event::Text(_)
        | Event::Reasoning(_)
        | Event::ToolCallDelta(_)
        | Event::ToolCall(_)
        | Event::RejectedToolCall(_) => {
            tracing::trace!("decode step");
            None
        }
        Event::Finished(summary) => {
            tracing::info!(
                finish_reason = summary.finish_reason.name(),
                prompt_tokens = summary.prompt_tokens,
                cached_tokens = summary.cached_tokens,
                generated_tokens = summary.generated_tokens,
                prefill_rate = summary.prefill_rate,
                decode_rate = summary.decode_rate,
                peak_memory = summary.peak_memory,
                "generation finished"
            );
            None
        }
    }
}

impl Worker {
    fn is_unloaded(&self) -> bool {
        matches!(&self.phase, Phase::Running(run) if run.loaded.unloaded.get() && !run.is_over())
    }
}

impl Run {
    fn new(loaded: Rc<EngineModel>, slot: Rc<Slot>, request: &mut Request) -> Result<Self> {
        let constraint = request.constraint.take();
        let reader = std::mem::take(&mut request.reader);
        let (options, tokenizer) = (&request.options, request.tokenizer.as_ref());
        let ends = request.ends();
        let prompt =
            EnginePrompt::new(&**loaded.language()?, request.prompt.clone(), &request.media)?;
        Ok(Run {
            loaded,
            slot,
            hold: None,
            sampler: Sampler::new(options, &prompt.tokens, &ends, tokenizer)?,
            constraint,
            prompt,
            ends,
            detokenizer: tokenizer.map(|tokenizer| {
                tokenizer.detokenizer(!options.special_tokens).keep(reader.special_tokens())
            }),
            reader,
            stops: StopFilter::new(&options.stop),
            cached: 0,
            prefilled: 0,
            queued: None,
            generated: 0,
            first_token: None,
            last_token: Duration::ZERO,
            outbox: VecDeque::new(),
        })
    }

    /// Whether everything was computed.
    fn is_over(&self) -> bool {
        matches!(self.outbox.back(), Some(Event::Finished(_)))
    }

    fn holds_slot(&mut self) -> bool {
        if self.hold.is_none() {
            self.hold = self.slot.hold();
        }
        self.hold.is_some()
    }

    fn advance(&mut self, request: &Request, started: Instant) -> Result<Event> {
        if self.prefilled == 0 {
            let expected = request.options.max_tokens.min(EXPECTED_TOKENS);
            let positions = self.prompt.tokens.len() + expected;
            memory::reset_peak_memory()?;
            let others = self.loaded.slots();
            self.cached = self.slot.resume(&others, &self.prompt, positions)?;
            self.prefilled = self.cached;
        }
        if self.prefilled < self.prompt.tokens.len() {
            return self.prefill(request);
        }
        self.prompt.release();
        if self.generated == request.options.max_tokens {
            return self.finish(request, FinishReason::Length);
        }
        let choice = match self.queued.take().expect("prefill queues the first token")? {
            Next::Token(choice) => choice,
            Next::End => return self.finish(request, FinishReason::Stop),
        };
        // The device computes the next logits while the host looks at this token.
        let goes_on = self.generated + 1 < request.options.max_tokens;
        let logits = goes_on.then(|| self.forward(&choice.id)).transpose()?;
        let (id, logprob) = (choice.id.try_item_cast::<u32>()?, choice.logprob.try_item_cast()?);
        self.last_token = started.elapsed();
        self.first_token.get_or_insert(self.last_token);
        if f32::is_nan(logprob) {
            return Err(Error::NotANumber { position: self.prompt.tokens.len() + self.generated });
        }
        if goes_on {
            self.remember(&[Key::token(id)], false);
        }
        if self.ends.contains(&id) {
            return self.finish(request, FinishReason::Stop);
        }
        let text = self.detokenizer.as_mut().map(|detokenizer| detokenizer.push(id));
        let parts = self.reader.push(&text.transpose()?.unwrap_or_default());
        let stopped = self.give(parts);
        if stopped {
            return self.finish_with(request, FinishReason::Stop);
        }
        self.generated += 1;
        if let Some(constraint) = &mut self.constraint {
            constraint.accept(id, self.reader.phase())?;
        }
        if let Some(logits) = logits {
            self.choose_next(&logits, request.prompt.len());
        }
        let text = match self.outbox.pop_front() {
            Some(Event::Text(text)) => text,
            event => {
                event.into_iter().for_each(|event| self.outbox.push_front(event));
                String::new()
            }
        };
        Ok(Event::Token(Token { id, logprob, text, top: choice.top()? }))
    }

    /// Queues the events of parts up to a stop text. Returns whether there was one.
    fn give(&mut self, parts: Vec<Part>) -> bool {
        for part in parts {
            let event = match part {
                Part::Text(text) => {
                    let (text, stopped) = self.stops.push(&text);
                    self.give_text(text);
                    if stopped {
                        return true;
                    }
                    continue;
                }
                Part::Reasoning(text) => Event::Reasoning(text),
                Part::CallDelta(delta) => Event::ToolCallDelta(delta),
                Part::Call(call) => Event::ToolCall(call),
                Part::Rejected(call) => Event::RejectedToolCall(call),
            };
            // A stop text does not go on behind another part.
            let held = self.stops.finish();
            self.give_text(held);
            self.outbox.push_back(event);
        }
        false
    }

    fn give_text(&mut self, text: String) {
        match self.outbox.back_mut() {
            _ if text.is_empty() => {}
            Some(Event::Text(before)) => *before += &text,
            _ => self.outbox.push_back(Event::Text(text)),
        }
    }

    /// One chunk of the prompt; the last one queues the first token.
    ///
    /// Only the last token needs the output of the last layer, so a chunk without that token leaves
    /// the output uncomputed. That saves more than a pass of its own costs when the chunk
    /// has more tokens than the model has layers.
    fn prefill(&mut self, request: &Request) -> Result<Event> {
        let total = self.prompt.tokens.len();
        let mark = request.marks.iter().copied().filter(|mark| *mark > self.prefilled).min();
        let end = total.min(self.prefilled.saturating_add(request.options.prefill_chunk));
        let end = self.prompt.border(self.prefilled, end.min(mark.unwrap_or(total)));
        let layers = self.slot.prefix_cache.borrow().cache.states.len();
        let end = if end == total && end - self.prefilled > layers {
            self.prompt.border(self.prefilled, total - 1)
        } else {
            end
        };
        let network = &**self.loaded.language()?;
        let chunk = self.prompt.chunk(network, self.prefilled, end)?;
        let hidden =
            prefill_embedded(network, &chunk, &mut self.slot.prefix_cache.borrow_mut().cache)?;
        if end == total && request.options.max_tokens > 0 {
            let last = crate::mlx::slice(&hidden, 1, hidden.dim(1) - 1, hidden.dim(1))?;
            let logits = network.logits(&last)?;
            self.queue(&logits)?;
            self.choose_next(&logits, total);
        } else {
            let cache = &mut self.slot.prefix_cache.borrow_mut().cache;
            eval(cache.arrays().into_iter().map(|array| &*array))?;
        }
        self.remember(&self.prompt.keys[self.prefilled..end], mark == Some(end));
        self.prefilled = end;
        Ok(Event::Prefill { done: end, total })
    }

    /// Records the keys of the positions that the cache has gained, and a checkpoint where another
    /// request may resume.
    fn remember(&self, keys: &[Key], is_marked: bool) {
        let mut prefix_cache = self.slot.prefix_cache.borrow_mut();
        prefix_cache.keys.extend(keys);
        match self.slot.lasts {
            true if is_marked => prefix_cache.mark(),
            true => prefix_cache.checkpoint_if_far(),
            false => {}
        }
    }

    /// Queues the pass of one token, which the device may not have computed yet, and gives the logits
    /// of the next.
    fn forward(&mut self, id: &Array) -> Result<Array> {
        let logits = self.loaded.decode(id, &mut self.slot.prefix_cache.borrow_mut().cache)?;
        self.queue(&logits)?;
        Ok(logits)
    }

    /// Starts the computation of logits, and of the token that is sampled from them unless a
    /// constraint must know the token before it.
    fn queue(&mut self, logits: &Array) -> Result<()> {
        let choice = match self.constraint {
            Some(_) => None,
            None => Some(self.sampler.choose(logits, None)?),
        };
        let cache = &mut self.slot.prefix_cache.borrow_mut().cache;
        let states = cache.arrays().into_iter().map(|array| &*array);
        match choice {
            Some(choice) => {
                async_eval(choice.arrays().chain(states))?;
                self.queued = Some(Ok(Next::Token(choice)));
            }
            None => async_eval([logits].into_iter().chain(states))?,
        }
        tracing::trace!("queued a forward pass");
        Ok(())
    }

    /// With a constraint, samples the next token from logits that are already queued. An error waits
    /// until the tokens before it have been given out.
    fn choose_next(&mut self, logits: &Array, prompt: usize) {
        if let Some(mut constraint) = self.constraint.take() {
            self.queued = Some(self.choose(&mut *constraint, logits, prompt + self.generated));
            self.constraint = Some(constraint);
        }
    }

    fn choose(
        &mut self,
        constraint: &mut dyn Constraint,
        logits: &Array,
        position: usize,
    ) -> Result<Next> {
        let choice = match constraint.mask()? {
            Allowed::End => return Ok(Next::End),
            Allowed::All => self.sampler.choose(logits, None)?,
            Allowed::Tokens(mask) => {
                if !self.sampler.can_choose(&mask, logits.dim(-1) as u32) {
                    return Err(Error::NothingAllowed { position });
                }
                self.sampler.choose(logits, Some(&mask))?
            }
        };
        async_eval(choice.arrays())?;
        Ok(Next::Token(choice))
    }

    fn finish(&mut self, request: &Request, finish_reason: FinishReason) -> Result<Event> {
        let rest = self.detokenizer.as_mut().map(|detokenizer| detokenizer.finish());
        let mut parts = self.reader.push(&rest.transpose()?.unwrap_or_default());
        parts.extend(self.reader.finish());
        if !self.give(parts) {
            let held = self.stops.finish();
            self.give_text(held);
        }
        self.finish_with(request, finish_reason)
    }

    /// The first of the last events.
    fn finish_with(&mut self, request: &Request, finish_reason: FinishReason) -> Result<Event> {
        let first = self.first_token.unwrap_or(self.last_token);
        let rate = |count: usize, time: Duration| {
            if time.is_zero() { 0.0 } else { count as f64 / time.as_secs_f64() }
        };
        let summary = Summary {
            finish_reason,
            prompt_tokens: self.prompt.tokens.len(),
            cached_tokens: self.cached,
            dropped_messages: request.dropped_messages,
            generated_tokens: self.generated,
            time_to_first_token: first,
            prefill_rate: rate(self.prompt.tokens.len() - self.cached, first),
            decode_rate: rate(
                self.generated.saturating_sub(1),
                self.last_token.saturating_sub(first),
            ),
            peak_memory: memory::peak_memory()?,
        };
        self.outbox.push_back(Event::Finished(summary.clone()));
        Ok(self.outbox.pop_front().unwrap_or(Event::Finished(summary)))
    }
}
