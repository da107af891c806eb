//! Reads a generation to its end and prints it.

use crate::{
    Failure,
    terminal::{Interrupts, Progress, say},
};
use mynah::{Answer, Error, Event, Generation, Token};
use std::io::{self, IsTerminal, Write};

/// Shows thoughts dim on a terminal; elsewhere only the answer counts.
fn show_thoughts(text: &str) -> io::Result<()> {
    let mut out = io::stdout();
    if !out.is_terminal() {
        return Ok(());
    }
    let is_harmless = |c: &char| !c.is_control() || ['\n', '\t'].contains(c);
    let text: String = text.chars().filter(is_harmless).collect();
    write!(out, "\x1b[2m{text}\x1b[0m")?;
    out.flush()
}

/// Waits for the end of a generation and shows each event as it arrives.
pub async fn follow(
    mut generation: Generation,
    interrupts: &Interrupts,
    mut show: impl FnMut(&Event) -> io::Result<()>,
) -> Result<Answer, Failure> {
    interrupts.set(Some(generation.canceller()));
    let mut answer = Answer::default();
    let mut progress = Some(Progress::default());
    while answer.summary.is_none() {
        let event = generation.next().await;
        let event =
            event.unwrap_or_else(|| Err(Error::Internal("the answer has no end".into())))?;
        if let Event::Prefill { done, total } = event {
            let share = done as f32 / total as f32;
            progress.iter_mut().for_each(|line| line.show_share("prefill", share));
        } else {
            progress = None;
            show(&event)?;
        }
        answer.push(event);
    }
    interrupts.set(None);
    Ok(answer)
}

/// Shows the text of an answer and, dim, the thoughts before it.
pub fn shown(
    mut print: impl FnMut(&str) -> io::Result<()>,
) -> impl FnMut(&Event) -> io::Result<()> {
    let mut is_thinking = false;
    move |event| match event {
        Event::Reasoning(text) => {
            is_thinking = io::stdout().is_terminal();
            show_thoughts(text)
        }
        Event::Token(Token { text, .. }) | Event::Text(text) if !text.is_empty() => {
            if std::mem::take(&mut is_thinking) {
                print("\n\n")?;
            }
            print(text)
        }
        Event::ToolCall(call) => print(&format!("{}({})\n", call.name, json(&call.arguments))),
        Event::RejectedToolCall(call) => {
            print(&call.raw)?;
            say(&format!("mynah: this is no call of a tool: {}", call.reason));
            Ok(())
        }
        _ => Ok(()),
    }
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
