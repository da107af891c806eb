//! A running generation.

use crate::error::MynahError;
use mynah::{Canceller, Event, Generation};
use std::sync::Arc;
use tokio::sync::Mutex;

/// Some events of a stream in their order: steps of the prefill, then tokens, then the end. Tokens
/// are packed because records cross the boundary field by field, which costs several times as much.
#[derive(Clone, Debug, Default, uniffi::Record)]
pub struct EventBatch {
    /// How far the prompt is computed.
    pub prefills: Vec<Prefill>,
    /// The tokens one after the other, each of them
    ///
    /// | bytes | |
    /// |---|---|
    /// | 4 | its id |
    /// | 4 | the natural logarithm of its probability, before anything was filtered |
    /// | 4 | the length of its text in bytes |
    /// | 4 | the number of candidates |
    /// | … | the characters that it completes; none while one is in parts or may belong to a stop text |
    /// | 8 each | the likeliest tokens in its place, best first: their ids and logarithms |
    ///
    /// with integers without a sign and floats of 32 bits, little end first, and text in UTF-8.
    pub tokens: Vec<u8>,
    /// The end; nothing follows.
    pub summary: Option<Summary>,
}

/// So many tokens of the prompt are computed.
#[derive(Clone, Copy, Debug, uniffi::Record)]
pub struct Prefill {
    /// Tokens computed.
    pub done: u64,
    /// Tokens in all.
    pub total: u64,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, uniffi::Enum)]
pub enum FinishReason {
    /// The model ended its text.
    Stop,
    /// As many tokens as wanted were generated, or the model's context is full.
    Length,
    /// Somebody cancelled it.
    Cancelled,
}

/// What a generation was like.
#[derive(Clone, Debug, uniffi::Record)]
pub struct Summary {
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// The end of the text that no token carried.
    pub remaining_text: String,
    /// Length of the prompt in tokens.
    pub prompt_tokens: u64,
    /// How many of them a session remembered.
    pub cached_tokens: u64,
    /// How many messages were left out because they did not fit.
    pub dropped_messages: u64,
    /// Tokens generated, without the one that ended the text.
    pub generated_tokens: u64,
    /// From the request to the first token, in seconds.
    pub time_to_first_token: f64,
    /// Computed prompt tokens a second.
    pub prefill_tokens_per_second: f64,
    /// Generated tokens a second, after the first.
    pub tokens_per_second: f64,
    /// The most bytes that arrays took at once.
    pub peak_memory: u64,
}

impl EventBatch {
    fn push(&mut self, event: Event) {
        match event {
            Event::Prefill { done, total } => {
                self.prefills.push(Prefill { done: done as u64, total: total as u64 });
            }
            Event::Token(token) => self.push_token(&token),
            Event::Finished(summary) => self.summary = Some(summary.into()),
            _ => {}
        }
    }

    fn push_token(&mut self, token: &mynah::Token) {
        let lengths = [token.text.len() as u32, token.top.len() as u32];
        self.tokens.extend(token.id.to_le_bytes());
        self.tokens.extend(token.logprob.to_le_bytes());
        self.tokens.extend(lengths.into_iter().flat_map(u32::to_le_bytes));
        self.tokens.extend(token.text.as_bytes());
        for (id, logprob) in &token.top {
            self.tokens.extend(id.to_le_bytes());
            self.tokens.extend(logprob.to_le_bytes());
        }
    }
}

impl From<mynah::Summary> for Summary {
    fn from(summary: mynah::Summary) -> Self {
        Summary {
            finish_reason: match summary.finish_reason {
                mynah::FinishReason::Stop => FinishReason::Stop,
                mynah::FinishReason::Length => FinishReason::Length,
                mynah::FinishReason::Cancelled => FinishReason::Cancelled,
                _ => FinishReason::Stop,
            },
            remaining_text: String::new(),
            prompt_tokens: summary.prompt_tokens as u64,
            cached_tokens: summary.cached_tokens as u64,
            dropped_messages: summary.dropped_messages as u64,
            generated_tokens: summary.generated_tokens as u64,
            time_to_first_token: summary.time_to_first_token.as_secs_f64(),
            prefill_tokens_per_second: summary.prefill_rate,
            tokens_per_second: summary.decode_rate,
            peak_memory: summary.peak_memory as u64,
        }
    }
}

/// A running generation, which waits for its reader. Dropping it stops the device.
#[derive(uniffi::Object)]
pub struct GenerationStream {
    reader: Mutex<Reader>,
    canceller: Canceller,
    prompt: Vec<u32>,
}

struct Reader {
    generation: Generation,
    /// What came after the last batch.
    error: Option<mynah::Error>,
    /// The text that no token carried.
    rest: String,
}

impl Reader {
    fn batch(
        &mut self,
        events: impl IntoIterator<Item = mynah::Result<Event>>,
    ) -> Result<EventBatch, MynahError> {
        let mut batch = EventBatch::default();
        let mut is_empty = true;
        for event in events {
            match event {
                Ok(Event::Text(text)) => self.rest += &text,
                Ok(event) => batch.push(event),
                Err(error) => {
                    self.error = Some(error);
                    break;
                }
            }
            is_empty = false;
        }
        if let Some(summary) = &mut batch.summary {
            summary.remaining_text = std::mem::take(&mut self.rest);
        }
        match self.error.take_if(|_| is_empty) {
            Some(error) => Err(error.into()),
            None => Ok(batch),
        }
    }
}

impl GenerationStream {
    pub(crate) fn new(generation: Generation) -> Arc<Self> {
        let canceller = generation.canceller();
        let prompt = generation.prompt_tokens().to_vec();
        let reader = Mutex::new(Reader { generation, error: None, rest: String::new() });
        Arc::new(GenerationStream { reader, canceller, prompt })
    }
}

#[uniffi::export]
impl GenerationStream {
    /// The tokens that it continues.
    pub fn prompt_tokens(&self) -> Vec<u32> {
        self.prompt.clone()
    }

    /// The events that are there already, up to `max`; empty when there are none, after the end,
    /// after an error and while somebody else reads.
    ///
    /// # Errors
    /// What stopped the generation, after all events before it.
    pub fn ready(&self, max: u32) -> Result<EventBatch, MynahError> {
        let Ok(mut reader) = self.reader.try_lock() else { return Ok(EventBatch::default()) };
        let events = reader.generation.ready(max as usize);
        reader.batch(events)
    }

    /// The next event, and those that are there already, up to `max` in all; empty after the end and
    /// after an error.
    ///
    /// # Errors
    /// What stopped the generation, after all events before it.
    pub async fn next(&self, max: u32) -> Result<EventBatch, MynahError> {
        let mut reader = self.reader.lock().await;
        let mut first = reader.generation.next().await;
        // An empty batch would be the end.
        while let Some(Ok(Event::Text(text))) = &first {
            reader.rest += text;
            first = reader.generation.next().await;
        }
        let rest = reader.generation.ready(max.saturating_sub(1) as usize);
        reader.batch(first.into_iter().chain(rest))
    }

    /// Ends the generation after the step that is being computed; the stream still yields its end.
    pub fn cancel(&self) {
        self.canceller.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_packed_one_after_the_other() {
        let mut batch = EventBatch::default();
        batch.push(Event::Prefill { done: 3, total: 4 });
        let (text, top) = ("é", vec![(7, -0.5), (0x0102_0304, f32::NEG_INFINITY)]);
        let mut token = mynah::Token::new(0x0102_0304, 1.0, text);
        token.top = top;
        batch.push(Event::Token(token));
        batch.push(Event::Token(mynah::Token::new(7, -2.0, "")));
        let expected: [&[u8]; 12] = [
            &[4, 3, 2, 1],
            &[0, 0, 0x80, 0x3f],
            &[2, 0, 0, 0],
            &[2, 0, 0, 0],
            &[0xc3, 0xa9],
            &[7, 0, 0, 0],
            &[0, 0, 0, 0xbf],
            &[4, 3, 2, 1],
            &[0, 0, 0x80, 0xff],
            &[7, 0, 0, 0],
            &[0, 0, 0, 0xc0],
            &[0; 8],
        ];
        assert_eq!(batch.tokens, expected.concat());
        assert_eq!((batch.prefills[0].done, batch.prefills[0].total), (3, 4));
        assert!(batch.summary.is_none());
    }
}
