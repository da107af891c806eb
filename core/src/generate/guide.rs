//! Steers an answer to what a request asks of it: thoughts within their budget, text of a grammar,
//! calls with arguments of their schemas.

use crate::{
    answer::{Dialect, Grammar, Phase},
    error::{Error, Result},
    generate::{Allowed, Constraint, TokenMask},
    text::Tokenizer,
};
use std::{collections::VecDeque, sync::Arc};

/// What a request asks of its answer.
#[derive(Default)]
pub(crate) struct Wishes {
    /// The maximum number of tokens of thoughts.
    pub budget: Option<usize>,
    /// The grammar of the answer behind its thoughts.
    pub answer: Option<Grammar>,
    /// Whether that grammar contains the header of the message.
    pub has_header: bool,
    /// The grammar of a block of calls, behind the mark that opens it.
    pub calls: Option<Grammar>,
    /// The texts that may open thoughts before the answer.
    pub thoughts: Vec<String>,
    /// The texts that may stand in place of the answer: marks that open calls, headers of messages.
    pub openings: Vec<String>,
    /// The tokens that end the answer.
    pub ends: Vec<u32>,
}

/// The model whose answer is steered.
pub(crate) struct Guided {
    pub dialect: Arc<Dialect>,
    pub tokenizer: Tokenizer,
    /// The size of the vocabulary in tokens.
    pub vocabulary: u32,
}

/// The constraint of a request.
pub(crate) struct Guide {
    model: Guided,
    wishes: Wishes,
    /// The tokens of the texts that may open thoughts, until they have been opened.
    thoughts: Vec<VecDeque<u32>>,
    /// The tokens of the other openings.
    openings: Vec<VecDeque<u32>>,
    /// The tokens that must come next.
    forced: VecDeque<u32>,
    stage: Stage,
    /// The phase of the last token.
    phase: Phase,
    has_calls: bool,
}

/// What is asked of the next token.
enum Stage {
    /// Nothing.
    Free,
    /// To begin the answer or an opening.
    Start,
    /// To continue one of these openings.
    Opening(Vec<VecDeque<u32>>),
    /// To continue the answer.
    Answer,
    /// To continue a block of calls.
    Calls(Box<Grammar>),
    /// To end the answer, or to open further calls.
    Over,
}

impl Guide {
    /// A guide of an answer that begins in this phase.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`].
    pub fn new(model: Guided, wishes: Wishes, phase: Phase) -> Result<Self> {
        let tokens = |text: &String| model.tokenizer.encode(text, false).map(VecDeque::from);
        let thoughts = wishes.thoughts.iter().map(tokens).collect::<Result<_>>()?;
        let openings = wishes.openings.iter().map(tokens).collect::<Result<_>>()?;
        let mut guide = Guide {
            model,
            wishes,
            thoughts,
            openings,
            forced: VecDeque::new(),
            stage: Stage::Free,
            phase,
            has_calls: false,
        };
        guide.close_thoughts(phase)?;
        guide.enter(phase, "")?;
        Ok(guide)
    }

    /// Closes the thoughts for the model when their budget is spent.
    fn close_thoughts(&mut self, phase: Phase) -> Result<()> {
        if let Phase::Thoughts(marks) = phase
            && self.wishes.budget == Some(0)
            && self.forced.is_empty()
        {
            let closing = self.model.dialect.closing(marks);
            self.forced = self.model.tokenizer.encode(&closing, false)?.into();
        }
        Ok(())
    }

    /// Enters a phase, of which the text has this already.
    fn enter(&mut self, phase: Phase, begun: &str) -> Result<()> {
        self.phase = phase;
        let has_answer = self.wishes.answer.is_some();
        self.stage = match phase {
            Phase::Calls => {
                self.has_calls = true;
                let mut calls = self.wishes.calls.as_ref().map(Grammar::fresh);
                match calls.take_if(|calls| calls.accept_text(begun)) {
                    Some(calls) => Stage::Calls(Box::new(calls)),
                    None => Stage::Free,
                }
            }
            Phase::Thoughts(_) => {
                self.thoughts.clear();
                Stage::Free
            }
            Phase::Header if has_answer && self.wishes.has_header => Stage::Start,
            Phase::Header if has_answer => match self.openings_after(begun)? {
                openings if openings.is_empty() => Stage::Free,
                openings => Stage::Opening(openings),
            },
            Phase::Beginning | Phase::Text if has_answer && self.has_calls => Stage::Over,
            Phase::Beginning | Phase::Text if has_answer => match begun.trim_start() {
                "" => Stage::Start,
                begun => {
                    let answer = self.wishes.answer.as_mut();
                    if !answer.is_some_and(|answer| answer.accept_text(begun)) {
                        return Err(Error::Internal(format!(
                            "the token that ended the thoughts began the answer with {begun:?}"
                        )));
                    }
                    Stage::Answer
                }
            },
            _ => Stage::Free,
        };
        Ok(())
    }

    fn all_openings(&self) -> Vec<VecDeque<u32>> {
        [&self.thoughts[..], &self.openings].concat()
    }

    /// What is left of the openings that begin with this text.
    fn openings_after(&self, begun: &str) -> Result<Vec<VecDeque<u32>>> {
        if begun.is_empty() {
            return Ok(self.all_openings());
        }
        let thoughts = self.wishes.thoughts.iter().filter(|_| !self.thoughts.is_empty());
        let rests =
            thoughts.chain(&self.wishes.openings).filter_map(|text| text.strip_prefix(begun));
        let tokens = |text: &str| self.model.tokenizer.encode(text, false).map(VecDeque::from);
        rests.filter(|rest| !rest.is_empty()).map(tokens).collect()
    }

    /// The tokens with which an answer or an opening continues.
    fn allowed(&mut self) -> Result<Allowed> {
        let firsts = |openings: &[VecDeque<u32>]| -> Vec<u32> {
            openings.iter().filter_map(|opening| opening.front().copied()).collect()
        };
        let all = self.all_openings();
        let (grammar, openings) = match &mut self.stage {
            Stage::Free if self.wishes.answer.is_some() => {
                let mut mask = TokenMask::all(self.model.vocabulary);
                self.wishes.ends.iter().for_each(|end| mask.remove(*end));
                return Ok(Allowed::Tokens(mask));
            }
            Stage::Free => return Ok(Allowed::All),
            Stage::Opening(paths) => (None, firsts(paths)),
            Stage::Start => (self.wishes.answer.as_mut(), firsts(&all)),
            Stage::Answer => (self.wishes.answer.as_mut(), Vec::new()),
            Stage::Calls(calls) => (Some(&mut **calls), Vec::new()),
            Stage::Over if self.wishes.ends.is_empty() => return Ok(Allowed::End),
            Stage::Over => {
                let mut mask = TokenMask::default();
                self.wishes.ends.iter().for_each(|end| mask.insert(*end));
                return Ok(Allowed::Tokens(mask));
            }
        };
        let mut mask = TokenMask::default();
        if let Some(grammar) = grammar {
            if grammar.is_complete() {
                return Ok(Allowed::End);
            }
            let admitted = grammar.mask()?;
            mask = TokenMask::from_bits(admitted.tokens);
            for end in &self.wishes.ends {
                if admitted.end { mask.insert(*end) } else { mask.remove(*end) }
            }
        }
        openings.into_iter().for_each(|id| mask.insert(id));
        Ok(Allowed::Tokens(mask))
    }

    /// Advances the stage by a token that is not forced.
    fn advance(&mut self, id: u32, phase: Phase, begun: &str) -> Result<()> {
        match &mut self.stage {
            Stage::Start => {
                if let Some(answer) = &mut self.wishes.answer
                    && answer.admits(id)?
                {
                    self.stage = Stage::Answer;
                    return answer.accept(id);
                }
                self.stage = Stage::Opening(self.all_openings());
                self.advance(id, phase, begun)
            }
            Stage::Opening(paths) => {
                paths.retain_mut(|path| path.pop_front() == Some(id));
                if paths.iter().any(VecDeque::is_empty) {
                    self.stage = Stage::Free;
                    if phase != self.phase {
                        self.enter(phase, begun)?;
                    }
                }
                Ok(())
            }
            Stage::Answer => self.wishes.answer.iter_mut().try_for_each(|answer| answer.accept(id)),
            Stage::Calls(calls) => {
                calls.accept(id)?;
                if calls.is_complete() {
                    self.stage = Stage::Free;
                    if phase != self.phase {
                        self.enter(phase, begun)?;
                    }
                }
                Ok(())
            }
            Stage::Free | Stage::Over if phase != self.phase => self.enter(phase, begun),
            Stage::Free | Stage::Over => Ok(()),
        }
    }
}

impl Constraint for Guide {
    fn mask(&mut self) -> Result<Allowed> {
        match self.forced.front() {
            Some(id) => Ok(Allowed::Tokens([*id].into_iter().collect())),
            None => self.allowed(),
        }
    }

    fn accept(&mut self, id: u32, phase: Phase, begun: &str) -> Result<()> {
        if self.forced.front() == Some(&id) {
            self.forced.pop_front();
            if self.forced.is_empty() && phase != self.phase {
                self.enter(phase, begun)?;
            }
        } else {
            if let (Phase::Thoughts(_), Some(budget)) = (phase, &mut self.wishes.budget) {
                *budget = budget.saturating_sub(1);
            }
            self.advance(id, phase, begun)?;
        }
        self.close_thoughts(phase)
    }
}
