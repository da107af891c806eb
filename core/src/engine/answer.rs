//! A whole answer, put together from the events of its generation.

use crate::{
    answer::{RejectedToolCall, ToolCall},
    engine::{Event, FinishReason, Generation, Summary, Token},
    error::{Error, Result},
    text::{Content, Message},
};

/// The answer of a [`Generation`], or what has arrived of it.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Answer {
    /// The text.
    pub text: String,
    /// The thoughts before the text.
    pub reasoning: String,
    /// The calls of tools, in their order.
    pub tool_calls: Vec<ToolCall>,
    /// What the model wrote as calls, and what are none.
    pub rejected_tool_calls: Vec<RejectedToolCall>,
    /// The generated tokens.
    pub tokens: Vec<Token>,
    /// The statistics, once the generation has ended.
    pub summary: Option<Summary>,
}

impl Answer {
    /// Adds an event.
    pub fn push(&mut self, event: Event) {
        match event {
            Event::Token(token) => {
                self.text += &token.text;
                self.tokens.push(token);
            }
            Event::Text(text) => self.text += &text,
            Event::Reasoning(text) => self.reasoning += &text,
            Event::ToolCall(call) => self.tool_calls.push(call),
            Event::RejectedToolCall(call) => self.rejected_tool_calls.push(call),
            Event::Finished(summary) => self.summary = Some(summary),
            Event::Prefill { .. } | Event::ToolCallDelta(_) => {}
        }
    }

    /// Whether the application cancelled the generation.
    pub fn is_cancelled(&self) -> bool {
        let reason = self.summary.as_ref().map(|summary| summary.finish_reason);
        reason == Some(FinishReason::Cancelled)
    }

    /// The answer as a message of the transcript. The chat template decides what of earlier thoughts
    /// the model sees.
    pub fn message(&self) -> Message {
        let has_calls = !self.tool_calls.is_empty();
        let has_text = !self.text.is_empty() || !has_calls;
        Message {
            role: "assistant".into(),
            content: has_text.then(|| Content::Text(self.text.clone())),
            reasoning_content: Some(self.reasoning.clone()).filter(|text| !text.is_empty()),
            tool_calls: has_calls.then(|| self.tool_calls.iter().map(ToolCall::to_json).collect()),
            ..Message::default()
        }
    }
}

impl Generation {
    /// Reads the generation to its end.
    ///
    /// # Errors
    /// Those of the computation.
    pub async fn answer(mut self) -> Result<Answer> {
        let mut answer = Answer::default();
        while let Some(event) = self.next().await {
            answer.push(event?);
        }
        match answer.summary {
            Some(_) => Ok(answer),
            None => Err(Error::Internal("the answer has no end".into())),
        }
    }
}
