//! The prompt of a request.

use crate::text::{Message, TemplateOptions};

/// The prompt of a request. A string becomes [`Prompt::Text`], a list of messages [`Prompt::Chat`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Prompt {
    /// A user's message, rendered with the checkpoint's chat template; a checkpoint without a chat
    /// template continues it as [`Prompt::Raw`] text.
    Text(String),
    /// Text to continue without a chat template. The tokenizer adds its special tokens, such as the
    /// beginning of the sequence.
    Raw(String),
    /// Token ids, as they are.
    Tokens(Vec<u32>),
    /// A conversation, rendered with the checkpoint's chat template.
    Chat(Vec<Message>, TemplateOptions),
}

impl Prompt {
    /// The prompt with [`Prompt::Text`] replaced by what it stands for.
    pub(crate) fn resolved(self, has_template: bool) -> Self {
        match self {
            Prompt::Text(text) if has_template => vec![Message::user(&text)].into(),
            prompt => prompt.raw(),
        }
    }

    /// The prompt with [`Prompt::Text`] replaced by raw text.
    pub(crate) fn raw(self) -> Self {
        match self {
            Prompt::Text(text) => Prompt::Raw(text),
            prompt => prompt,
        }
    }
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Prompt::Text(text.into())
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Prompt::Text(text)
    }
}

impl From<Vec<Message>> for Prompt {
    fn from(messages: Vec<Message>) -> Self {
        Prompt::Chat(messages, TemplateOptions::default())
    }
}

impl From<Message> for Prompt {
    fn from(message: Message) -> Self {
        vec![message].into()
    }
}
