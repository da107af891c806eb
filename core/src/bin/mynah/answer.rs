//! Reads a generation to its end and prints it.

use crate::{
    Failure,
    terminal::{Interrupts, Progress},
};
use mynah::{Error, Event, Generation, Summary, Token};
use std::io;

/// A finished generation.
pub struct Answer {
    pub tokens: Vec<Token>,
    pub text: String,
    pub summary: Summary,
}

/// Waits for the end of a generation and shows each piece of text as it arrives.
pub async fn follow(
    mut generation: Generation,
    interrupts: &Interrupts,
    mut show: impl FnMut(&str) -> io::Result<()>,
) -> Result<Answer, Failure> {
    interrupts.set(Some(generation.canceller()));
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
    interrupts.set(None);
    Ok(Answer { tokens, text, summary })
}
