//! What an application asks a model to continue.

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
