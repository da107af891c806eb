//! From a prompt to a stream of tokens.

mod engine;
mod options;
mod penalties;
mod prompt_cache;
mod sampler;
mod score;
mod session;
mod stream;

pub use engine::Engine;
pub use options::{Dry, GenerateOptions, Xtc};
pub use score::Score;
pub use session::{Overflow, Session, SessionOptions};
pub use stream::{Canceller, Event, FinishReason, Generation, Summary, Token};

pub(crate) use engine::Turn;
pub(crate) use prompt_cache::{PromptCache, Slot};
pub(crate) use score::{next_logits, score};
pub(crate) use stream::Request;

use crate::text::{Message, TemplateOptions};

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
