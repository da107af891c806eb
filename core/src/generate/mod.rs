//! From a prompt to a stream of tokens.

mod engine;
mod prompt_cache;
mod sampler;
mod score;
mod session;
mod stream;

pub use engine::Engine;
pub use score::Score;
pub use session::{Overflow, Session, SessionOptions};
pub use stream::{Canceller, Event, FinishReason, Generation, Summary, Token};

pub(crate) use engine::Turn;
pub(crate) use prompt_cache::{PromptCache, Slot};
pub(crate) use score::score;
pub(crate) use stream::Request;

use crate::{
    error::{Error, Result},
    text::{Message, TemplateOptions},
};

/// What to continue.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// Token ids, as they are.
    Tokens(Vec<u32>),
    /// Text, with the tokens that the tokenizer puts around it.
    Text(String),
    /// A conversation, through the checkpoint's chat template.
    Chat(Vec<Message>, TemplateOptions),
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Prompt::Text(text.into())
    }
}

impl From<Vec<Message>> for Prompt {
    fn from(messages: Vec<Message>) -> Self {
        Prompt::Chat(messages, TemplateOptions::default())
    }
}

/// How to continue.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// The most tokens to generate.
    pub max_tokens: usize,
    /// Flattens the distribution above 1 and sharpens it below; 0 always takes the likeliest token.
    pub temperature: f32,
    /// Draws from that many likeliest tokens; 0 from all.
    pub top_k: usize,
    /// Draws from the smallest set of likeliest tokens with this probability in sum; 1 from all.
    pub top_p: f32,
    /// Excludes tokens less likely than this share of the likeliest one.
    pub min_p: f32,
    /// Divides the logits of recent tokens; 1 does nothing.
    pub repetition_penalty: f32,
    /// How many tokens are recent.
    pub repetition_context: usize,
    /// Makes draws repeatable on the same machine.
    pub seed: Option<u64>,
    /// Goes on after the model has ended its text.
    pub ignore_end: bool,
    /// Further tokens that end the text.
    pub end_tokens: Vec<u32>,
    /// Tokens of the prompt that are computed in one step; a cancellation waits for at most one.
    pub prefill_chunk: usize,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions {
            max_tokens: 512,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            repetition_context: 20,
            seed: None,
            ignore_end: false,
            end_tokens: Vec::new(),
            prefill_chunk: 512,
        }
    }
}

impl GenerateOptions {
    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::Option`] with the option at fault.
    pub fn check(&self) -> Result<()> {
        let at_least = |option, value: f32, least: f32| {
            if value.is_finite() && value >= least { Ok(()) } else { Err(unfit(option, value)) }
        };
        at_least("temperature", self.temperature, 0.0)?;
        at_least("top_p", self.top_p, f32::MIN_POSITIVE)?;
        at_least("min_p", self.min_p, 0.0)?;
        at_least("repetition_penalty", self.repetition_penalty, f32::MIN_POSITIVE)?;
        for (option, value) in [("top_p", self.top_p), ("min_p", self.min_p)] {
            if value > 1.0 {
                return Err(unfit(option, value));
            }
        }
        if self.prefill_chunk == 0 {
            return Err(unfit("prefill_chunk", 0.0));
        }
        Ok(())
    }
}

fn unfit(option: &'static str, value: f32) -> Error {
    Error::option(option, format!("{value} is out of range"))
}
