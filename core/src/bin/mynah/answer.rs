//! Reads a generation to its end and prints it.

use crate::{
    Failure, interrupts,
    progress::Progress,
    terminal::{print, print_dim, say},
};
use mynah::{Answer, Error, Event, FinishReason, GenerateOptions, Generation, Summary, Token};
use std::io::{self, IsTerminal};

/// How an answer ended.
pub enum End {
    /// The model ended it, or the user.
    Usual,
    /// It has as many tokens as the options allow.
    MaxTokens,
    /// It has reached the end of the context.
    ContextIsFull,
}

impl End {
    pub fn of(summary: &Summary, options: &GenerateOptions) -> Self {
        match summary.finish_reason {
            FinishReason::Length if summary.generated_tokens < options.max_tokens => {
                End::ContextIsFull
            }
            FinishReason::Length => End::MaxTokens,
            _ => End::Usual,
        }
    }
}

/// Waits for the end of a generation and shows each event as it arrives.
pub async fn follow(
    mut generation: Generation,
    mut show: impl FnMut(&Event) -> io::Result<()>,
) -> Result<(Answer, Summary), Failure> {
    interrupts::set_running(Some(generation.canceller()));
    let mut answer = Answer::default();
    let mut progress = Some(Progress::default());
    let summary = loop {
        let event = generation.next().await;
        let event =
            event.unwrap_or_else(|| Err(Error::Internal("the answer has no end".into())))?;
        match &event {
            Event::Prefill { done, total } => {
                let share = *done as f32 / *total as f32;
                progress.iter_mut().for_each(|line| line.show_share("prefill", share));
            }
            Event::Finished(summary) => break summary.clone(),
            event => {
                progress = None;
                show(event)?;
            }
        }
        answer.push(event);
    };
    interrupts::set_running(None);
    Ok((answer, summary))
}

/// Shows the text of an answer, the thoughts before it dim on a terminal, and its calls.
pub fn shown() -> impl FnMut(&Event) -> io::Result<()> {
    let mut is_thinking = false;
    move |event| match event {
        // Elsewhere only the answer counts.
        Event::Reasoning(_) if !io::stdout().is_terminal() => Ok(()),
        Event::Reasoning(text) => {
            is_thinking = true;
            print_dim(text)
        }
        Event::Token(Token { text, .. }) | Event::Text(text) if !text.is_empty() => {
            if std::mem::take(&mut is_thinking) {
                print("\n\n")?;
            }
            print(text)
        }
        Event::ToolCall(call) => {
            print(&format!("{}({})\n", call.name, serde_json::to_string(&call.arguments)?))
        }
        Event::RejectedToolCall(call) => {
            print(&call.raw)?;
            say(&format!("mynah: this is no call of a tool: {}", call.reason));
            Ok(())
        }
        _ => Ok(()),
    }
}
