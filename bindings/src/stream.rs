//! A running generation.

use crate::error::MynahError;
use mynah::{Canceller, Generation};
use std::sync::Arc;
use tokio::sync::Mutex;

/// What a stream yields.
#[derive(Clone, Debug, uniffi::Enum)]
pub enum GenerationEvent {
    /// So many tokens of the prompt are computed.
    Prefill {
        /// Tokens computed.
        done: u64,
        /// Tokens in all.
        total: u64,
    },
    /// The next token.
    Token {
        /// It.
        token: Token,
    },
    /// The end; nothing follows.
    Finished {
        /// What it was like.
        summary: Summary,
    },
}

/// A generated token.
#[derive(Clone, Debug, uniffi::Record)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// The characters that it completes; none while one is still in parts or may belong to a stop
    /// text.
    pub text: String,
    /// The natural logarithm of its probability, before anything was filtered.
    pub logprob: f32,
    /// The likeliest tokens in its place, best first, as many as were asked for.
    pub top: Vec<TokenProbability>,
}

/// A token that might have been.
#[derive(Clone, Debug, uniffi::Record)]
pub struct TokenProbability {
    /// Its id.
    pub id: u32,
    /// The natural logarithm of its probability.
    pub logprob: f32,
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

impl From<mynah::Event> for GenerationEvent {
    fn from(event: mynah::Event) -> Self {
        match event {
            mynah::Event::Prefill { done, total } => {
                GenerationEvent::Prefill { done: done as u64, total: total as u64 }
            }
            mynah::Event::Token(token) => GenerationEvent::Token {
                token: Token {
                    id: token.id,
                    text: token.text,
                    logprob: token.logprob,
                    top: token
                        .top
                        .into_iter()
                        .map(|(id, logprob)| TokenProbability { id, logprob })
                        .collect(),
                },
            },
            mynah::Event::Finished(summary) => {
                GenerationEvent::Finished { summary: summary.into() }
            }
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
            },
            remaining_text: summary.remaining_text,
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
    /// What ended the last batch.
    error: Option<mynah::Error>,
}

impl GenerationStream {
    pub(crate) fn new(generation: Generation) -> Arc<Self> {
        let canceller = generation.canceller();
        let prompt = generation.prompt_tokens().to_vec();
        let reader = Mutex::new(Reader { generation, error: None });
        Arc::new(GenerationStream { reader, canceller, prompt })
    }
}

#[uniffi::export]
impl GenerationStream {
    /// The tokens that it continues.
    pub fn prompt_tokens(&self) -> Vec<u32> {
        self.prompt.clone()
    }

    /// The next event; none after the end and after an error.
    ///
    /// # Errors
    /// What stopped the generation.
    pub async fn next(&self) -> Result<Option<GenerationEvent>, MynahError> {
        Ok(self.next_batch(1).await?.pop())
    }

    /// The next event and those that are there already, up to `max` in all; empty after the end and
    /// after an error. To cross the boundary once for many events costs less.
    ///
    /// # Errors
    /// What stopped the generation, after all events before it.
    pub async fn next_batch(&self, max: u32) -> Result<Vec<GenerationEvent>, MynahError> {
        let mut reader = self.reader.lock().await;
        if let Some(error) = reader.error.take() {
            return Err(error.into());
        }
        let mut events = Vec::new();
        let mut next = if max > 0 { reader.generation.next().await } else { None };
        while let Some(event) = next {
            match event {
                Ok(event) => events.push(event.into()),
                Err(error) if events.is_empty() => return Err(error.into()),
                Err(error) => {
                    reader.error = Some(error);
                    break;
                }
            }
            let goes_on = events.len() < max as usize;
            next = if goes_on { reader.generation.try_next() } else { None };
        }
        Ok(events)
    }

    /// Ends the generation after the step that is being computed; the stream still yields
    /// `Finished`.
    pub fn cancel(&self) {
        self.canceller.cancel();
    }
}
