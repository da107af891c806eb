//! Speculation of one generation: where its draft tokens come from, whether they are verified, and the
//! tokens that a verify pass has given.

use crate::generate::{Costs, Governor, LENGTHS, Lookup, Sampled, Speculation};
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// The longest verify pass of [`Speculation::Always`].
const ALWAYS: usize = 8;

/// The drafts of one generation.
#[derive(Default)]
pub(super) struct Speculator {
    lookup: Lookup,
    governor: Governor,
    /// Sampled tokens that the cache holds but for the last one, and that are still to be given out.
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
            if let (Some(agreement), Some(is_right)) = (agreement, self.lookup.push(*id)) {
                self.governor.observe(agreement, is_right);
            }
        }
    }

    /// The draft tokens after the tokens that were given out, if it pays to verify them in a pass of at
    /// most `room` tokens.
    pub fn draft(
        &mut self,
        (prompt, given): (&[u32], &[u32]),
        speculation: Speculation,
        costs: &Costs,
        room: usize,
    ) -> Option<Vec<u32>> {
        if speculation == Speculation::Off {
            return None;
        }
        self.follow(prompt, given);
        let agreement = self.lookup.agrees()?;
        let length = match speculation {
            Speculation::Always => {
                let most = room.min(ALWAYS);
                LENGTHS.into_iter().rev().find(|length| *length <= most)
            }
            _ => self.governor.choose(costs, agreement, room),
        };
        Some(self.lookup.draft(length? - 1))
    }

    /// Notes that a token was read, and whether its successor was queued before. Returns the time of the
    /// decode step, if nothing else was computed since the token before.
    pub fn note_read(&mut self, is_queued_ahead: bool) -> Option<Duration> {
        let now = is_queued_ahead.then(Instant::now);
        let before = std::mem::replace(&mut self.last_read, now);
        before.zip(now).map(|(before, now)| now - before)
    }
}
