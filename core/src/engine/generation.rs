//! One generation: a task on the engine's thread, and the stream that pulls from it.

use crate::{
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
    generate::{Choice, GenerateOptions, Sampler},
};
use mlx_rs::{
    Array, memory,
    transforms::{async_eval, eval},
};
use std::{
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Events that wait for a slow reader; the device waits with them.
const BUFFERED: usize = 32;

/// Most answers end long before they must; caches grow for those that do not.
const EXPECTED_TOKENS: usize = 256;

/// What a stream yields.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// So many tokens of the prompt are computed.
    Prefill {
        /// Tokens computed.
        done: usize,
        /// Tokens in all.
        total: usize,
    },
    /// The next token.
    Token(Token),
    /// The end; nothing follows.
    Finished(Summary),
}

/// A generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// The natural logarithm of its probability, before anything was filtered.
    pub logprob: f32,
    /// The characters that it completes; none while one is still in parts or may belong to a stop
    /// text, and none at all without a tokenizer.
    pub text: String,
    /// The likeliest tokens in its place and their log-probabilities, best first:
    /// [`GenerateOptions::top_logprobs`] of them.
    pub top: Vec<(u32, f32)>,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended its text.
    Stop,
    /// [`GenerateOptions::max_tokens`] were generated, or the model's context is full.
    Length,
    /// Somebody cancelled it.
    Cancelled,
}

impl FinishReason {
    /// The word for it in the command's output.
    pub fn name(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "cancelled",
        }
    }
}

/// What a generation was like.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// The end of the text that no token carried: characters that were still in parts, or what came
    /// before a stop text.
    pub remaining_text: String,
    /// Length of the prompt.
    pub prompt_tokens: usize,
    /// How many of them a session remembered, so that they were not computed again.
    pub cached_tokens: usize,
    /// How many messages were left out because they did not fit; see
    /// [`Overflow::DropOldest`](crate::api::session::Overflow).
    pub dropped_messages: usize,
    /// Tokens generated, without the one that ended the text.
    pub generated_tokens: usize,
    /// From the request to the first token.
    pub time_to_first_token: Duration,
    /// Computed prompt tokens a second.
    pub prefill_rate: f64,
    /// Generated tokens a second, after the first.
    pub decode_rate: f64,
    /// The most bytes that MLX held at once.
    pub peak_memory: usize,
}

/// A running generation. Dropping it stops the device.
pub struct Generation {
    events: Receiver<Result<Event>>,
    control: Arc<Control>,
    prompt: Vec<u32>,
}

/// Stops a generation from anywhere.
#[derive(Clone)]
pub struct Canceller(Arc<Control>);

struct Control {
    cancelled: AtomicBool,
    /// The task waits for the reader.
    parked: AtomicBool,
    engine: &'static Engine,
}

impl Canceller {
    /// Ends the generation after the step that is being computed; its stream still yields
    /// [`Event::Finished`].
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Release);
        self.0.engine.wake();
    }
}

impl Generation {
    /// The tokens that it continues.
    pub fn prompt_tokens(&self) -> &[u32] {
        &self.prompt
    }

    /// The next event; `None` after the end and after an error.
    pub async fn next(&mut self) -> Option<Result<Event>> {
        let event = self.events.recv().await;
        self.make_room();
        event
    }

    /// The events that are there already, up to `max`; an error is the last one.
    pub fn ready(&mut self, max: usize) -> Vec<Result<Event>> {
        let mut ready = Vec::new();
        while ready.len() < max
            && let Ok(event) = self.events.try_recv()
        {
            ready.push(event);
        }
        // Not before the last one: the device may be the processor that this runs on.
        if !ready.is_empty() {
            self.make_room();
        }
        ready
    }

    /// Wakes a task that waits for the reader.
    fn make_room(&self) {
        if self.control.parked.swap(false, Ordering::AcqRel) {
            self.control.engine.wake();
        }
    }

    /// Ends the generation after the step that is being computed.
    pub fn cancel(&self) {
        self.canceller().cancel();
    }

    /// A handle that can cancel from another thread.
    pub fn canceller(&self) -> Canceller {
        Canceller(self.control.clone())
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.events.close();
        self.control.engine.wake();
    }
}

/// Everything that a generation needs, on its way to the engine's thread.
pub(crate) struct Request {
    pub engine: &'static Engine,
    pub prompt: Vec<u32>,
    /// What the placeholders of the prompt stand for.
    pub media: Vec<Media>,
    /// Positions inside the prompt that somebody may come back to.
    pub marks: Vec<usize>,
    pub dropped_messages: usize,
    pub options: GenerateOptions,
    pub end_tokens: Vec<u32>,
    pub tokenizer: Option<Tokenizer>,
}

impl Request {
    /// The tokens that end the text.
    fn ends(&self) -> Vec<u32> {
        let own = if self.options.ignore_end { &[][..] } else { &self.end_tokens };
        [own, &self.options.end_tokens].concat()
    }

    /// Starts it on the model and in the slot that `find` returns on the engine thread.
    pub(crate) fn start(
        self,
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
        let engine = self.engine;
        engine.start(move || {
            let started = Instant::now();
            let phase = match find().and_then(|(loaded, slot)| Run::new(loaded, slot, &self)) {
                Ok(run) => Phase::Running(Box::new(run)),
                Err(error) => Phase::Failed(Some(error)),
            };
            Box::new(Worker { request: self, phase, sender, control, started })
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
    /// None while another request uses the prefix cache.
    hold: Option<Hold>,
    sampler: Sampler,
    ends: Vec<u32>,
    detokenizer: Option<Detokenizer>,
    stops: StopFilter,
    cached: usize,
    prefilled: usize,
    queued: Option<Choice>,
    generated: usize,
    first_token: Option<Duration>,
    last_token: Duration,
}

impl Task for Worker {
    fn step(&mut self) -> Turn {
        if self.sender.is_closed() {
            return Turn::Done;
        }
        if self.is_unloaded() {
            self.phase = Phase::Failed(Some(Error::Unloaded));
        }
        if self.sender.capacity() == 0 {
            self.control.parked.store(true, Ordering::Release);
            // The reader may have taken an event just before it could see that we wait.
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
        let event = if self.control.cancelled.load(Ordering::Acquire) {
            run.finish(&self.request, FinishReason::Cancelled)
        } else if run.holds_slot() {
            run.advance(&self.request, self.started)
        } else {
            return Turn::Parked;
        };
        match event {
            Ok(event) => {
                run.slot.publish();
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
        let cancelled = self.control.cancelled.load(Ordering::Acquire);
        cancelled || self.sender.is_closed() || self.is_unloaded()
    }

    fn fail(&mut self, error: Error) {
        // A limit is looked at before anything changes; after another failure, what has been written
        // cannot be told from what has not.
        if let Phase::Running(run) = &self.phase
            && run.hold.is_some()
            && !matches!(error, Error::MemoryLimit { .. })
        {
            run.slot.prefix_cache.borrow_mut().clear();
            run.slot.publish();
        }
        self.sender.try_send(Err(error)).ok();
    }
}

impl Worker {
    fn is_unloaded(&self) -> bool {
        matches!(&self.phase, Phase::Running(run) if run.loaded.unloaded.get())
    }
}

impl Run {
    fn new(loaded: Rc<EngineModel>, slot: Rc<Slot>, request: &Request) -> Result<Self> {
        let (options, tokenizer) = (&request.options, request.tokenizer.as_ref());
        let ends = request.ends();
        let prompt =
            EnginePrompt::new(&**loaded.language()?, request.prompt.clone(), &request.media)?;
        Ok(Run {
            loaded,
            slot,
            hold: None,
            sampler: Sampler::new(options, &prompt.tokens, &ends, tokenizer)?,
            prompt,
            ends,
            detokenizer: tokenizer.map(|tokenizer| tokenizer.detokenizer(!options.special_tokens)),
            stops: StopFilter::new(&options.stop),
            cached: 0,
            prefilled: 0,
            queued: None,
            generated: 0,
            first_token: None,
            last_token: Duration::ZERO,
        })
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
        let choice = self.queued.take().expect("the prompt ends with a choice");
        // The device computes the next token while the host looks at this one.
        let goes_on = self.generated + 1 < request.options.max_tokens;
        if goes_on {
            let logits =
                self.loaded.decode(&choice.id, &mut self.slot.prefix_cache.borrow_mut().cache)?;
            self.queue(&logits)?;
        }
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
        let (text, stopped) = self.stops.push(&text.transpose()?.unwrap_or_default());
        if stopped {
            return self.finish_with(request, FinishReason::Stop, text);
        }
        self.generated += 1;
        Ok(Event::Token(Token { id, logprob, text, top: choice.top()? }))
    }

    /// One chunk of the prompt; the last one queues the first token.
    ///
    /// Nobody reads what the last layer makes of any other token, so a chunk that goes without the
    /// last token leaves it uncomputed. That saves more than a pass of its own costs when the chunk
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

    /// Chooses from the logits and starts the computation.
    fn queue(&mut self, logits: &Array) -> Result<()> {
        let choice = self.sampler.choose(logits)?;
        let cache = &mut self.slot.prefix_cache.borrow_mut().cache;
        let states = cache.arrays().into_iter().map(|array| &*array);
        async_eval(choice.arrays().chain(states))?;
        self.queued = Some(choice);
        Ok(())
    }

    fn finish(&mut self, request: &Request, finish_reason: FinishReason) -> Result<Event> {
        let rest = self.detokenizer.as_mut().map(|detokenizer| detokenizer.finish());
        let (mut text, stopped) = self.stops.push(&rest.transpose()?.unwrap_or_default());
        if !stopped {
            text += &self.stops.finish();
        }
        self.finish_with(request, finish_reason, text)
    }

    fn finish_with(
        &mut self,
        request: &Request,
        finish_reason: FinishReason,
        remaining_text: String,
    ) -> Result<Event> {
        let first = self.first_token.unwrap_or(self.last_token);
        let rate = |count: usize, time: Duration| {
            if time.is_zero() { 0.0 } else { count as f64 / time.as_secs_f64() }
        };
        let summary = Summary {
            finish_reason,
            remaining_text,
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
        tracing::debug!(?summary, "finished");
        Ok(Event::Finished(summary))
    }
}
