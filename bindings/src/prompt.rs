//! What a model shall continue.

use crate::error::MynahError;
use std::collections::HashMap;

/// What to continue.
#[derive(Clone, Debug, uniffi::Enum)]
pub enum Prompt {
    /// Token ids, as they are.
    Tokens {
        /// The ids.
        tokens: Vec<u32>,
    },
    /// A user's message where the checkpoint has a chat template, else raw text.
    Text {
        /// The text.
        text: String,
    },
    /// Raw text to continue, with the special tokens that the tokenizer adds.
    Raw {
        /// The text.
        text: String,
    },
    /// A conversation, through the checkpoint's chat template.
    Chat {
        /// Its messages.
        messages: Vec<Message>,
        /// How to render them.
        options: TemplateOptions,
    },
}

/// One message of a conversation.
#[derive(Clone, Debug, uniffi::Record)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
    /// What the assistant thought before it spoke.
    #[uniffi(default = None)]
    pub reasoning: Option<String>,
    /// The name of the speaker.
    #[uniffi(default = None)]
    pub name: Option<String>,
}

/// How to render a conversation.
#[derive(Clone, Debug, uniffi::Record)]
pub struct TemplateOptions {
    /// Whether to end with the header of an assistant's message; by default it does.
    #[uniffi(default = None)]
    pub add_generation_prompt: Option<bool>,
    /// Whether to end inside of the last message, so that the model goes on with it.
    #[uniffi(default = None)]
    pub continue_final_message: Option<bool>,
    /// More variables for the template, such as `enable_thinking`: values in JSON by name.
    #[uniffi(default)]
    pub variables: HashMap<String, String>,
    /// Which of several templates, such as `rag`.
    #[uniffi(default = None)]
    pub template: Option<String>,
}

impl TryFrom<Prompt> for mynah::Prompt {
    type Error = MynahError;

    fn try_from(prompt: Prompt) -> Result<Self, MynahError> {
        Ok(match prompt {
            Prompt::Tokens { tokens } => mynah::Prompt::Tokens(tokens),
            Prompt::Text { text } => mynah::Prompt::Text(text),
            Prompt::Raw { text } => mynah::Prompt::Raw(text),
            Prompt::Chat { messages, options } => {
                let messages = messages.into_iter().map(mynah::Message::from).collect();
                mynah::Prompt::Chat(messages, options.try_into()?)
            }
        })
    }
}

impl From<Message> for mynah::Message {
    fn from(message: Message) -> Self {
        mynah::Message {
            name: message.name,
            reasoning_content: message.reasoning,
            ..mynah::Message::new(&message.role, &message.content)
        }
    }
}

impl TryFrom<TemplateOptions> for mynah::TemplateOptions {
    type Error = MynahError;

    fn try_from(options: TemplateOptions) -> Result<Self, MynahError> {
        let defaults = mynah::TemplateOptions::default();
        let parse = |(name, value): (String, String)| match serde_json::from_str(&value) {
            Ok(value) => Ok((name, value)),
            Err(error) => {
                let reason = format!("template variable `{name}`: {error}");
                Err(MynahError::InvalidRequest { reason })
            }
        };
        let prompt = options.add_generation_prompt.unwrap_or(defaults.add_generation_prompt);
        let goes_on = options.continue_final_message.unwrap_or(defaults.continue_final_message);
        Ok(defaults
            .add_generation_prompt(prompt)
            .continue_final_message(goes_on)
            .variables(options.variables.into_iter().map(parse).collect::<Result<_, _>>()?)
            .name(options.template))
    }
}
