//! Reads a generation to its end and prints it.

use crate::{Failure, interrupts, progress::Progress};
use mynah::{Error, Event, FinishReason, GenerateOptions, Generation, Summary, Token};
use std::io;

/// A finished generation.
pub struct Answer {
    pub tokens: Vec<Token>,
    pub text: String,
    pub summary: Summary,
}

/// How an answer ended.
pub enum End {
    /// The model ended it, or the user.
    Usual,
    /// It has as many tokens as the options allow.
    MaxTokens,
    /// It has reached the end of the context.
    ContextIsFull,
}

impl Answer {
    pub fn end(&self, options: &GenerateOptions) -> End {
        match self.summary.finish_reason {
            FinishReason::Length if self.summary.generated_tokens < options.max_tokens => {
                End::ContextIsFull
            }
            FinishReason::Length => End::MaxTokens,
            _ => End::Usual,
        }
    }
}

/// Waits for the end of a generation and shows each piece of text as it arrives.
pub async fn follow(
    mut generation: Generation,
    mut show: impl FnMut(&str) -> io::Result<()>,
) -> Result<Answer, Failure> {
    interrupts::set_running(Some(generation.canceller()));
    let (mut tokens, mut text) = (Vec::new(), String::new());
    let mut progress = Some(Progress::default());
    let summary = loop {
        let event = generation.next().await;
        match event.unwrap_or_else(|| Err(Error::Internal("the answer has no end".into())))? {
            Event::Prefill { done, total } => {
                let share = done as f32 / total as f32;
                progress.iter_mut().for_each(|line| line.show_share("prefill", share));
            }
            Event::Token(token) => {
                progress = None;
                show(&token.text)?;
                text += &token.text;
                tokens.push(token);
            }
            Event::Text(rest) => {
                progress = None;
                show(&rest)?;
                text += &rest;
            }
            Event::Finished(summary) => break summary,
            _ => {}
        }
    };
    interrupts::set_running(None);
    Ok(Answer { tokens, text, summary })
}
