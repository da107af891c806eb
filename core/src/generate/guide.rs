//! Steers an answer to what a request asks of it: thoughts within their budget.

use crate::{
    answer::{Dialect, Phase},
    error::Result,
    generate::{Allowed, Constraint},
    text::Tokenizer,
};
use std::{collections::VecDeque, sync::Arc};

/// The constraint of a request.
pub(crate) struct Guide {
    dialect: Arc<Dialect>,
    tokenizer: Tokenizer,
    /// The number of tokens that thoughts may still have.
    budget: Option<usize>,
    /// The tokens that must come next.
    forced: VecDeque<u32>,
}

impl Guide {
    /// A guide of an answer that begins in this phase.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`].
    pub fn new(
        dialect: Arc<Dialect>,
        tokenizer: Tokenizer,
        budget: Option<usize>,
        phase: Phase,
    ) -> Result<Self> {
        let mut guide = Guide { dialect, tokenizer, budget, forced: VecDeque::new() };
        guide.close_thoughts(phase)?;
        Ok(guide)
    }

    /// Closes the thoughts for the model when their budget is spent.
    fn close_thoughts(&mut self, phase: Phase) -> Result<()> {
        if let Phase::Thoughts(marks) = phase
            && self.budget == Some(0)
            && self.forced.is_empty()
        {
            let closing = self.dialect.closing(marks);
            self.forced = self.tokenizer.encode(&closing, false)?.into();
        }
        Ok(())
    }
}

impl Constraint for Guide {
    fn mask(&mut self) -> Result<Allowed> {
        Ok(match self.forced.front() {
            Some(id) => Allowed::Tokens([*id].into_iter().collect()),
            None => Allowed::All,
        })
    }

    fn accept(&mut self, id: u32, phase: Phase) -> Result<()> {
        if self.forced.front() == Some(&id) {
            self.forced.pop_front();
        } else if let (Phase::Thoughts(_), Some(budget)) = (phase, &mut self.budget) {
            *budget = budget.saturating_sub(1);
        }
        self.close_thoughts(phase)
    }
}
