//! The drafts of one generation: where they come from, whether they are verified, and what a verify pass
//! has given.

use crate::generate::{Costs, Governor, LENGTHS, Lookup, MUCH, Sampled, Speculation};
use std::{
    collections::VecDeque,
    mem,
    time::{Duration, Instant},
};

/// The longest verify pass of [`Speculation::Always`].
const ALWAYS: usize = 8;

/// Where drafts come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Earlier tokens of the sequence.
    Lookup,
    /// A draft model.
    Model,
}

/// The number of sources.
pub(super) const SOURCES: usize = 2;

/// A verify pass that pays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub source: Source,
    /// The tokens of the pass: the last one that was given out, and the draft.
    pub length: usize,
}

/// What a generation allows.
pub(super) struct Limits {
    pub speculation: Speculation,
    /// The most tokens of a pass.
    pub room: usize,
    /// Whether there is a draft model.
    pub has_model: bool,
}

/// The drafts of one generation.
#[derive(Default)]
pub(super) struct Speculator {
    lookup: Lookup,
    of_lookup: Governor,
    of_model: Governor,
    /// Sampled tokens that are still to be given out. The cache holds all but the last one.
    pub pending: VecDeque<Sampled>,
    /// The number of draft tokens that were verified.
    pub drafted: usize,
    /// The number of those that were right.
    pub accepted: usize,
    /// When a token was read whose successor was queued before.
    last_read: Option<Instant>,
}

impl Speculator {
    /// Follows the sequence to its end: the prompt, and the tokens that were given out.
    fn follow(&mut self, prompt: &[u32], given: &[u32]) {
        let known = self.lookup.len();
        for id in &prompt[known.min(prompt.len())..] {
            self.lookup.push(*id);
        }
        for id in &given[known.saturating_sub(prompt.len())..] {
            let agreement = self.lookup.agrees();
            if let (Some(is_right), Some(agreement)) = (self.lookup.push(*id), agreement) {
                self.of_lookup.observe(agreement, is_right);
            }
        }
    }

    /// How draft tokens after these are to be verified, if that pays. With a draft model, only long
    /// agreements are looked up.
    pub fn plan(
        &mut self,
        prompt: &[u32],
        given: &[u32],
        costs: &[Costs; SOURCES],
        limits: &Limits,
    ) -> Option<Plan> {
        let Limits { speculation, room, has_model } = *limits;
        if speculation == Speculation::Off {
            return None;
        }
        self.follow(prompt, given);
        let length = |governor: &Governor, source: Source, agreement: usize| {
            let length = match speculation {
                Speculation::Always => {
                    let most = room.min(ALWAYS);
                    LENGTHS.into_iter().rev().find(|length| *length <= most)
                }
                _ => governor.choose(&costs[source as usize], agreement, room),
            };
            length.map(|length| Plan { source, length })
        };
        let agreement = self.lookup.agrees().filter(|count| !has_model || *count >= MUCH);
        let found = agreement.and_then(|count| length(&self.of_lookup, Source::Lookup, count));
        let drafted = || has_model.then(|| length(&self.of_model, Source::Model, MUCH)).flatten();
        found.or_else(drafted)
    }

    /// The next `count` tokens by lookup.
    pub fn lookup(&self, count: usize) -> Vec<u32> {
        self.lookup.draft(count)
    }

    /// Notes how many draft tokens of a verify pass were right.
    pub fn note_pass(&mut self, plan: &Plan, right: usize) {
        let drafted = plan.length - 1;
        self.drafted += drafted;
        self.accepted += right;
        // Those of a lookup are counted as the tokens are followed.
        if plan.source == Source::Model {
            (0..right).for_each(|_| self.of_model.observe(MUCH, true));
            (right..drafted.min(right + 1)).for_each(|_| self.of_model.observe(MUCH, false));
        }
    }

    /// Notes that a token was read, and whether its successor was queued before. Returns the time of the
    /// decode step, if nothing else was computed since the token before.
    pub fn note_read(&mut self, is_queued_ahead: bool) -> Option<Duration> {
        if is_queued_ahead {
            self.of_model.forget();
        }
        let now = is_queued_ahead.then(Instant::now);
        let before = mem::replace(&mut self.last_read, now);
        before.zip(now).map(|(before, now)| now - before)
    }
}
