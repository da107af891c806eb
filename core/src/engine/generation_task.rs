//! The task of a generation on the engine thread: its turns, its end, and its way back after a failure
//! of the device.

use crate::{
    engine::{
        device,
        engine_model::EngineModel,
        generation::Run,
        prefix_cache::Slot,
        request::Request,
        stream::{Event, FinishReason, Generation, Outlet},
        thread::{Task, Turn},
    },
    error::{Error, Result},
};
use std::{rc::Rc, time::Instant};
use tracing::Span;

/// How often the device may fail a generation that gives out nothing meanwhile.
const MOST_FAILURES: usize = 3;

impl Request {
    /// Starts the generation with the model and the cache that `find` returns on the engine thread.
    pub(crate) fn start(
        mut self,
        find: impl FnOnce() -> Result<(Rc<EngineModel>, Rc<Slot>)> + Send + 'static,
    ) -> Generation {
        let (generation, outlet) = Generation::new(self.engine, self.prompt.clone());
        let (engine, caller) = (self.engine, Span::current());
        engine.start(move || {
            let started = Instant::now();
            let phase = match find().and_then(|(loaded, slot)| Run::new(loaded, slot, &mut self)) {
                Ok(run) => Phase::Running(Box::new(run)),
                Err(error) => Phase::Failed(Some(error)),
            };
            let span = tracing::info_span!(parent: &caller, "prefill", tokens = self.prompt.len());
            span.in_scope(|| tracing::info!("prefill started"));
            let (failures, is_over) = (0, false);
            let request = self;
            Box::new(GenerationTask {
                request,
                phase,
                outlet,
                started,
                failures,
                is_over,
                caller,
                span,
            })
        });
        generation
    }
}

struct GenerationTask {
    request: Request,
    phase: Phase,
    outlet: Outlet,
    started: Instant,
    /// How often the device has failed it since its last event.
    failures: usize,
    /// Whether the last event has been sent.
    is_over: bool,
    /// The span in which the application started the generation.
    caller: Span,
    /// The span of the prefill, then that of the decoding.
    span: Span,
}

enum Phase {
    Failed(Option<Error>),
    Running(Box<Run>),
}

impl Task for GenerationTask {
    fn step(&mut self) -> Turn {
        let _span = self.span.clone().entered();
        if self.is_over || self.outlet.is_closed() {
            self.settle();
            return Turn::Done;
        }
        if self.is_unloaded() {
            self.phase = Phase::Failed(Some(Error::Unloaded));
        }
        if self.outlet.is_full() {
            return Turn::Parked;
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
            Ok(Some(event))
        } else if self.outlet.is_cancelled() && !run.owes() {
            run.finish(&self.request, FinishReason::Cancelled).map(Some)
        } else if run.holds_slot() {
            run.advance(&self.request, self.started)
        } else {
            return Turn::Parked;
        };
        match event {
            Ok(event) => {
                let slot = run.slot.clone();
                slot.publish();
                event.into_iter().for_each(|event| self.send(event));
                slot.publish();
                // Only the cache of a session has a later reader, who must be able to trust it.
                if self.is_over && !slot.lasts { Turn::Done } else { Turn::Ready }
            }
            Err(error) if device::has_failed() && self.failures < MOST_FAILURES => {
                tracing::warn!(%error, "the device failed a step, which is computed again");
                self.failures += 1;
                Turn::Ready
            }
            Err(error) => {
                self.fail(error);
                Turn::Done
            }
        }
    }

    fn is_ending(&self) -> bool {
        let has_summary = matches!(&self.phase, Phase::Running(run) if run.is_over());
        let is_unwanted = self.outlet.is_cancelled() || self.outlet.is_closed();
        self.is_over || has_summary || is_unwanted || self.is_unloaded()
    }

    fn fail(&mut self, error: Error) {
        let error = match error {
            Error::Mlx(reason) if device::has_failed() => Error::device(reason),
            error => error,
        };
        // These are found before the cache changes. After any other failure, it may be half written.
        if matches!(error, Error::MemoryLimit { .. } | Error::NothingAllowed { .. }) {
            self.settle();
        } else if let Phase::Running(run) = &self.phase {
            run.forget();
        }
        tracing::info!(kind = ?error.kind(), "generation failed");
        self.outlet.send(Err(error));
    }

    fn distrust(&mut self) {
        let Phase::Running(run) = &mut self.phase else { return };
        if self.is_over || run.is_over() {
            run.forget();
        } else if let Err(error) = run.restart(&self.request) {
            self.phase = Phase::Failed(Some(error));
        }
    }
}

impl GenerationTask {
    fn send(&mut self, event: Event) {
        self.span = log(&event, &self.caller).unwrap_or(self.span.clone());
        self.is_over = matches!(event, Event::Finished(_));
        self.failures = 0;
        let is_token = matches!(event, Event::Token(_));
        self.outlet.send(Ok(event));
        if is_token && let Phase::Running(run) = &mut self.phase {
            run.queue_next(&self.request);
        }
    }

    /// Waits for what is queued, so that a later request can trust the cache.
    fn settle(&self) {
        if let Phase::Running(run) = &self.phase
            && run.slot.lasts
            && device::settle().is_err()
        {
            run.forget();
        }
    }

    fn is_unloaded(&self) -> bool {
        // A generation with a summary has computed everything.
        matches!(&self.phase, Phase::Running(run)
            if run.is_unloaded() && !run.is_over())
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
                drafted_tokens = summary.drafted_tokens,
                accepted_tokens = summary.accepted_tokens,
                prefill_rate = summary.prefill_rate,
                decode_rate = summary.decode_rate,
                peak_memory = summary.peak_memory,
                "generation finished"
            );
            None
        }
    }
}
