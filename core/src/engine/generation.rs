//! A generation in progress: prefill, decode steps, and the end of the text.

use crate::{
    answer::{Part, Reader},
    engine::{
        engine_model::{EngineModel, find},
        prefix_cache::{Hold, Slot},
        prompt::EnginePrompt,
        request::Request,
        speculator::Speculator,
        stream::{Event, FinishReason, Summary, Token},
    },
    error::{Error, Result},
    generate::{Allowed, Constraint, QueuedChoice, Sampled, Sampler, Speculation, random_seed},
    layers::embedded::Key,
    mlx,
    models::decode_step::prefill_embedded,
    text::{Detokenizer, StopFilter, Tokenizer},
};
use mlx_rs::{
    Array, memory,
    transforms::{async_eval, eval},
};
use std::{
    collections::VecDeque,
    rc::Rc,
    time::{Duration, Instant},
};

/// The number of tokens for which the KV cache is allocated at first. Most answers end long before
/// `max_tokens`; the cache grows for those that do not.
const EXPECTED_TOKENS: usize = 256;

/// The most tokens of a chunk of the prefill while a pause is expected.
const SHORT_CHUNK: usize = 32;

/// A generation in progress.
pub(super) struct Run {
    pub loaded: Rc<EngineModel>,
    pub slot: Rc<Slot>,
    /// The prompt; after a failure of the device, with the tokens that were given out.
    pub prompt: EnginePrompt,
    /// The number of tokens of the prompt alone.
    pub prompt_tokens: usize,
    /// The exclusive access to the cache; none while another request has it.
    hold: Option<Hold>,
    pub sampler: Sampler,
    pub constraint: Option<Box<dyn Constraint>>,
    /// How many of the tokens that were given out the constraint knows.
    accepted: usize,
    pub ends: Vec<u32>,
    detokenizer: Option<Detokenizer>,
    reader: Reader,
    stops: StopFilter,
    cached: Option<usize>,
    /// How many positions of `prompt` the cache holds.
    prefilled: usize,
    /// How many of them the application knows of.
    reported: usize,
    /// What follows the tokens that were given out, unless no pass for it has been queued.
    queued: Option<Result<Next>>,
    pub speculator: Speculator,
    /// The model that drafts.
    pub draft_model: Option<Rc<EngineModel>>,
    /// The tokens that were given out.
    pub given: Vec<u32>,
    first_token: Option<Duration>,
    last_token: Duration,
    /// Events that are sent before anything is computed.
    pub outbox: VecDeque<Event>,
}

enum Next {
    /// A sampled token.
    Token(QueuedChoice),
    /// The constraint allows no further token: the text is complete.
    End,
}

impl Run {
    pub fn new(loaded: Rc<EngineModel>, slot: Rc<Slot>, request: &mut Request) -> Result<Self> {
        // Drawn once, so that a restart samples the same tokens.
        request.options.seed.get_or_insert_with(random_seed);
        let constraint = request.answering.constraint.take();
        let reader = std::mem::take(&mut request.answering.reader);
        let (options, tokenizer) = (&request.options, request.tokenizer.as_ref());
        let prompt = loaded.prompt(request.prompt.clone(), &request.media)?;
        let detokenizer = |tokenizer: &Tokenizer| {
            let skips = !options.special_tokens;
            let detokenizer = tokenizer.detokenizer(skips).keep(reader.special_tokens());
            match request.prompt.last() {
                Some(last) if request.answering.continues => detokenizer.after(*last),
                _ => Ok(detokenizer),
            }
        };
        Ok(Run {
            loaded,
            slot,
            hold: None,
            sampler: sampler(request, &prompt)?,
            constraint,
            accepted: 0,
            prompt_tokens: prompt.tokens.len(),
            prompt,
            ends: request.ends(),
            detokenizer: tokenizer.map(detokenizer).transpose()?,
            reader,
            stops: StopFilter::new(&options.stop),
            cached: None,
            prefilled: 0,
            reported: 0,
            queued: None,
            speculator: Speculator::default(),
            draft_model: request.draft.and_then(|id| find(id).ok()),
            given: Vec::new(),
            first_token: None,
            last_token: Duration::ZERO,
            outbox: VecDeque::new(),
        })
    }

    /// Whether everything was computed, and only events are left to be sent.
    pub fn is_over(&self) -> bool {
        matches!(self.outbox.back(), Some(Event::Finished(_)))
    }

    /// Whether the cache of a session holds tokens that are still to be given out: they belong to a step
    /// that came before a cancellation.
    pub fn owes(&self) -> bool {
        self.slot.lasts && !self.speculator.pending.is_empty()
    }

    pub fn is_unloaded(&self) -> bool {
        self.loaded.unloaded.get()
    }

    pub fn holds_slot(&mut self) -> bool {
        if self.hold.is_none() {
            self.hold = self.slot.hold();
        }
        self.hold.is_some()
    }

    /// Empties the cache, if it is this generation that changes it.
    pub fn forget(&self) {
        if self.hold.is_some() {
            self.slot.prefix_cache.borrow_mut().clear();
            self.slot.draft_model.take();
            self.slot.publish();
        }
    }

    /// After a failure of the device: drops everything that may hold what it has left. The prompt and
    /// the tokens that were given out are computed again, and the next token is sampled as it would
    /// have been.
    pub fn restart(&mut self, request: &Request) -> Result<()> {
        self.forget();
        (self.queued, self.prefilled) = (None, 0);
        self.speculator.pending.clear();
        self.loaded.forget_media();
        self.prompt = self.loaded.prompt(request.prompt.clone(), &request.media)?;
        self.sampler = sampler(request, &self.prompt)?;
        self.prompt.append(&self.given);
        self.given.iter().try_for_each(|id| self.sampler.replay(*id))
    }

    /// Computes until there is an event, or until other tasks may have a turn.
    pub fn advance(&mut self, request: &Request, started: Instant) -> Result<Option<Event>> {
        if self.prefilled == 0 {
            self.begin(request)?;
        }
        if self.prefilled < self.prompt.tokens.len() {
            return self.prefill(request);
        }
        self.prompt.release();
        if self.given.len() == request.options.max_tokens {
            return self.finish(request, FinishReason::Length).map(Some);
        }
        self.decode(request, started).map(Some)
    }

    fn begin(&mut self, request: &Request) -> Result<()> {
        let expected = request.options.max_tokens.min(EXPECTED_TOKENS);
        let positions = self.prompt.tokens.len() + expected;
        let others = self.loaded.slots();
        self.prefilled = self.slot.resume(&others, &self.prompt, positions)?;
        if self.cached.is_none() {
            memory::reset_peak_memory()?;
            self.cached = Some(self.prefilled);
        }
        Ok(())
    }

    /// One chunk of the prompt; the last one queues the first token.
    ///
    /// Only the last token needs the output of the last layer, so a chunk without that token leaves
    /// the output uncomputed. That saves more than a pass of its own costs when the chunk
    /// has more tokens than the model has layers.
    fn prefill(&mut self, request: &Request) -> Result<Option<Event>> {
        let total = self.prompt.tokens.len();
        let mark = request.marks.iter().copied().filter(|mark| *mark > self.prefilled).min();
        let most = if request.engine.expects_pause() { SHORT_CHUNK } else { usize::MAX };
        let end = self.prefilled.saturating_add(request.options.prefill_chunk.min(most));
        let end = self.prompt.border(self.prefilled, end.min(total).min(mark.unwrap_or(total)));
        let layers = self.slot.prefix_cache.borrow().cache.states.len();
        let end = if end == total && end - self.prefilled > layers {
            self.prompt.border(self.prefilled, total - 1)
        } else {
            end
        };
        let network = &**self.loaded.language()?;
        let chunk = self.prompt.chunk(network, self.prefilled, end)?;
        let hidden = {
            let cache = &mut self.slot.prefix_cache.borrow_mut().cache;
            cache.expect_length(total);
            prefill_embedded(network, &chunk, cache)?
        };
        if end == total && self.given.len() < request.options.max_tokens {
            let last = mlx::slice(&hidden, 1, hidden.dim(1) - 1, hidden.dim(1))?;
            let logits = network.logits(&last)?;
            self.queue(&logits)?;
            self.choose_next(&logits);
        } else {
            let cache = &mut self.slot.prefix_cache.borrow_mut().cache;
            eval(cache.arrays().into_iter().map(|array| &*array))?;
        }
        self.remember(&self.prompt.keys[self.prefilled..end], mark == Some(end));
        self.prefilled = end;
        let done = end.min(self.prompt_tokens);
        let is_news = done > self.reported;
        self.reported = self.reported.max(done);
        Ok(is_news.then_some(Event::Prefill { done, total: self.prompt_tokens }))
    }

    /// The next token, and the end of the text after the last one.
    fn decode(&mut self, request: &Request, started: Instant) -> Result<Event> {
        let is_known = self.queued.is_some() || !self.speculator.pending.is_empty();
        if !is_known && !self.speculate(request)? {
            self.queue_after_last()?;
        }
        let (sampled, ahead) = match self.speculator.pending.pop_front() {
            Some(sampled) => (sampled, None),
            None => {
                let choice = match self.queued.take().expect("it is queued above")? {
                    Next::Token(choice) => choice,
                    Next::End => return self.finish(request, FinishReason::Stop),
                };
                // The device computes the next logits while the host looks at this token.
                let is_ahead = self.queues_ahead(request);
                let ahead = is_ahead.then(|| self.forward(&choice.id)).transpose()?;
                (choice.read()?, ahead)
            }
        };
        if let Some(time) = self.speculator.note_read(ahead.is_some()) {
            let mut costs = self.loaded.costs.borrow_mut();
            costs.iter_mut().for_each(|costs| costs.add_step(time));
        }
        let Sampled { id, logprob, top } = sampled;
        self.last_token = started.elapsed();
        self.first_token.get_or_insert(self.last_token);
        if logprob.is_nan() {
            return Err(Error::NotANumber { position: self.position() });
        }
        if ahead.is_some() {
            self.remember(&[Key::token(id)], false);
        }
        if self.ends.contains(&id) {
            if ahead.is_none() {
                self.hold_end(request, id)?;
            }
            return self.finish(request, FinishReason::Stop);
        }
        let text = self.detokenizer.as_mut().map(|detokenizer| detokenizer.push(id));
        let parts = self.reader.push(&text.transpose()?.unwrap_or_default());
        if self.give(parts) {
            return self.finish_with(request, FinishReason::Stop);
        }
        self.given.push(id);
        match ahead {
            Some(logits) => self.choose_next(&logits),
            None if self.given.len() == request.options.max_tokens => self.accept_given()?,
            None => {}
        }
        let text = match self.outbox.front() {
            Some(Event::Text(text)) => text.clone(),
            _ => String::new(),
        };
        if !text.is_empty() {
            self.outbox.pop_front();
        }
        Ok(Event::Token(Token { id, logprob, text, top }))
    }

    /// Puts parts of the answer into the outbox, up to a stop text. Returns whether there was one.
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

    /// Whether the pass of the next token is queued before that token is read. Not if it has to be
    /// compiled first: the application would wait for a token that is there. Nor if draft tokens are to
    /// be verified behind it.
    fn queues_ahead(&mut self, request: &Request) -> bool {
        let goes_on = self.given.len() + 1 < request.options.max_tokens;
        let is_compiled = || self.loaded.has_compiled(&self.slot.prefix_cache.borrow().cache);
        goes_on && !request.engine.expects_pause() && is_compiled() && self.plan(request).is_none()
    }

    /// Queues what follows the token that was just given out, unless that was done before.
    pub fn queue_next(&mut self, request: &Request) {
        let goes_on = self.given.len() < request.options.max_tokens;
        if self.queued.is_none()
            && self.speculator.pending.is_empty()
            && goes_on
            && !request.engine.expects_pause()
            && self.plan(request).is_none()
            && let Err(error) = self.queue_after_last()
        {
            self.queued = Some(Err(error));
        }
    }

    /// Queues the pass of the token that ends the text, for the next request of the session, where
    /// speculation has kept it from being queued ahead.
    fn hold_end(&mut self, request: &Request, id: u32) -> Result<()> {
        let holds = self.slot.prefix_cache.borrow().keys.len();
        let is_due = self.slot.lasts
            && self.constraint.is_none()
            && holds == self.position()
            && request.options.speculation != Speculation::Off
            && !request.engine.expects_pause()
            && self.loaded.has_compiled(&self.slot.prefix_cache.borrow().cache);
        if is_due {
            self.forward(&Array::from_slice(&[id], &[1, 1]))?;
            self.queued = None;
            self.remember(&[Key::token(id)], false);
        }
        Ok(())
    }

    /// Queues the pass of the last token that was given out.
    fn queue_after_last(&mut self) -> Result<()> {
        let id = *self.given.last().expect("the prefill queues the first token");
        let logits = self.forward(&Array::from_slice(&[id], &[1, 1]))?;
        self.remember(&[Key::token(id)], false);
        self.choose_next(&logits);
        Ok(())
    }

    /// Records the keys of the positions that the cache has gained, and a checkpoint where another
    /// request may resume.
    pub fn remember(&self, keys: &[Key], is_marked: bool) {
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
            Some(choice) => self.queued = Some(Ok(Next::Token(choice.queue(states)?))),
            None => async_eval([logits].into_iter().chain(states))?,
        }
        tracing::trace!("queued a forward pass");
        Ok(())
    }

    /// With a constraint, samples the next token from logits that are already queued. An error waits
    /// until the tokens before it have been given out.
    fn choose_next(&mut self, logits: &Array) {
        if self.constraint.is_some() {
            self.queued = Some(self.accept_given().and_then(|()| self.choose(logits)));
        }
    }

    /// Tells the constraint of the tokens that it does not know yet.
    fn accept_given(&mut self) -> Result<()> {
        let Some(constraint) = &mut self.constraint else { return Ok(()) };
        self.given[self.accepted..].iter().try_for_each(|id| {
            self.accepted += 1;
            constraint.accept(*id, self.reader.phase(), self.reader.begun())
        })
    }

    fn choose(&mut self, logits: &Array) -> Result<Next> {
        let allowed = self.constraint.as_mut().map_or(Ok(Allowed::All), |rules| rules.mask())?;
        let choice = match allowed {
            Allowed::End => return Ok(Next::End),
            Allowed::All => self.sampler.choose(logits, None)?,
            Allowed::Tokens(mask) => {
                if !self.sampler.can_choose(&mask, logits.dim(-1) as u32) {
                    return Err(Error::NothingAllowed { position: self.position() });
                }
                self.sampler.choose(logits, Some(&mask))?
            }
        };
        Ok(Next::Token(choice.queue([].into_iter())?))
    }

    /// The position of the next token in the sequence.
    fn position(&self) -> usize {
        self.prompt_tokens + self.given.len()
    }

    /// Ends the text, with the incomplete characters that are left.
    pub fn finish(&mut self, request: &Request, finish_reason: FinishReason) -> Result<Event> {
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
        let (generated_tokens, cached_tokens) = (self.given.len(), self.cached.unwrap_or(0));
        let decoding = self.last_token.saturating_sub(first);
        let summary = Summary {
            finish_reason,
            prompt_tokens: self.prompt_tokens,
            cached_tokens,
            dropped_messages: request.dropped_messages,
            generated_tokens,
            drafted_tokens: self.speculator.drafted,
            accepted_tokens: self.speculator.accepted,
            time_to_first_token: first,
            prefill_rate: rate(self.prompt_tokens - cached_tokens, first),
            decode_rate: rate(generated_tokens.saturating_sub(1), decoding),
            peak_memory: memory::peak_memory()?,
        };
        self.outbox.push_back(Event::Finished(summary.clone()));
        Ok(self.outbox.pop_front().unwrap_or(Event::Finished(summary)))
    }
}

fn sampler(request: &Request, prompt: &EnginePrompt) -> Result<Sampler> {
    Sampler::new(&request.options, &prompt.tokens, &request.ends(), request.tokenizer.as_ref())
}
