//! Following a generation to its end.

use crate::{
    Failure,
    terminal::{Interrupts, Progress},
};
use mynah::{Error, Event, Generation, Summary, Token};
use std::io;

/// All that was generated.
pub struct Answer {
    pub tokens: Vec<Token>,
    pub summary: Summary,
}

impl Answer {
    pub fn text(&self) -> String {
        let pieces = self.tokens.iter().map(|token| token.text.as_str());
        pieces.chain([self.summary.remaining_text.as_str()]).collect()
    }
}

/// Waits for the end of a generation and shows each piece of text when it is there.
pub async fn follow(
    mut generation: Generation,
    interrupts: &Interrupts,
    mut show: impl FnMut(&str) -> io::Result<()>,
) -> Result<Answer, Failure> {
    interrupts.set(Some(generation.canceller()));
    let mut tokens = Vec::new();
    let mut progress = Some(Progress::default());
    let summary = loop {
        let event = generation.next().await;
        match event.unwrap_or_else(|| Err(Error::Internal("the answer has no end".into())))? {
            Event::Prefill { done, total } => {
                let share = done as f32 / total as f32;
                progress.iter_mut().for_each(|line| line.show_share("reading the prompt", share));
            }
            Event::Token(token) => {
                progress = None;
                show(&token.text)?;
                tokens.push(token);
            }
            Event::Finished(summary) => break summary,
        }
    };
    drop(progress);
    interrupts.set(None);
    show(&summary.remaining_text)?;
    Ok(Answer { tokens, summary })
}
