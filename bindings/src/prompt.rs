//! Prompts and messages.

use crate::{
    error::MynahError,
    media::{Image, Video},
};
use std::{collections::HashMap, sync::Arc};

/// What the model continues.
#[derive(Clone, Debug, uniffi::Enum)]
pub enum Prompt {
    /// A message of the user, through the chat template; raw text where the checkpoint has none.
    Text {
        /// The message.
        text: String,
    },
    /// Raw text that the model continues, with the special tokens that its tokenizer adds.
    Raw {
        /// The text.
        text: String,
    },
    /// Token ids, unchanged.
    Tokens {
        /// The ids.
        tokens: Vec<u32>,
    },
    /// Messages, through the chat template.
    Chat {
        /// The messages.
        messages: Vec<ChatMessage>,
        /// How to render them.
        options: ChatTemplateOptions,
    },
}

/// One message of a transcript.
#[derive(Clone, Debug, uniffi::Record)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, or another role that the template knows.
    pub role: String,
    /// The content in its order.
    pub content: Vec<Content>,
    /// What the assistant reasoned before it answered.
    #[uniffi(default = None)]
    pub reasoning: Option<String>,
    /// The name of the speaker.
    #[uniffi(default = None)]
    pub name: Option<String>,
    /// The calls that the assistant makes.
    #[uniffi(default = [])]
    pub tool_calls: Vec<ToolCall>,
    /// The id of the call whose result a message of the role `tool` is.
    #[uniffi(default = None)]
    pub tool_call_id: Option<String>,
}

/// A call of a tool.
#[derive(Clone, Debug, uniffi::Record)]
pub struct ToolCall {
    /// The id that the message with the result repeats.
    pub id: String,
    /// The name of the tool.
    pub name: String,
    /// The arguments: a JSON object.
    pub arguments: String,
}

/// A function that the model may call.
#[derive(Clone, Debug, uniffi::Record)]
pub struct Tool {
    /// The name: letters, digits, `_`, `-` and `.`.
    pub name: String,
    /// What the tool does and when to call it, for the model.
    pub description: String,
    /// The JSON schema of the arguments, an object.
    pub parameters: String,
}

/// One part of the content of a message. Later versions add kinds.
#[derive(Clone, Debug, uniffi::Enum)]
pub enum Content {
    /// Text.
    Text {
        /// The text.
        text: String,
    },
    /// A picture.
    Image {
        /// The picture.
        image: Arc<Image>,
    },
    /// A clip.
    Video {
        /// The clip.
        video: Arc<Video>,
    },
}

/// How to render messages.
#[derive(Clone, Debug, Default, uniffi::Record)]
pub struct ChatTemplateOptions {
    /// Whether to end with the header of an assistant's message; `true` by default.
    #[uniffi(default = None)]
    pub add_generation_prompt: Option<bool>,
    /// Whether to leave the last message open, so that the model continues it; `false` by default.
    #[uniffi(default = None)]
    pub continue_final_message: Option<bool>,
    /// Further variables for the template, such as `enable_thinking`: JSON values by name.
    #[uniffi(default)]
    pub variables: HashMap<String, String>,
    /// The functions that the model may call.
    #[uniffi(default = [])]
    pub tools: Vec<Tool>,
    /// Which of several named templates to use, such as `rag`.
    #[uniffi(default = None)]
    pub template: Option<String>,
    /// Whether control tokens in messages are plain text; `true` by default.
    #[uniffi(default = None)]
    pub sanitize_control_tokens: Option<bool>,
}

impl TryFrom<Prompt> for mynah::Prompt {
    type Error = MynahError;

    fn try_from(prompt: Prompt) -> Result<Self, MynahError> {
        Ok(match prompt {
            Prompt::Text { text } => mynah::Prompt::Text(text),
            Prompt::Raw { text } => mynah::Prompt::Raw(text),
            Prompt::Tokens { tokens } => mynah::Prompt::Tokens(tokens),
            Prompt::Chat { messages, options } => {
                mynah::Prompt::Chat(core_messages(messages)?, options.try_into()?)
            }
        })
    }
}

/// Messages as the core takes them.
pub(crate) fn core_messages(messages: Vec<ChatMessage>) -> Result<Vec<mynah::Message>, MynahError> {
    messages.into_iter().map(mynah::Message::try_from).collect()
}

impl TryFrom<ChatMessage> for mynah::Message {
    type Error = MynahError;

    fn try_from(message: ChatMessage) -> Result<Self, MynahError> {
        let content = match <[Content; 1]>::try_from(message.content) {
            Ok([Content::Text { text }]) => mynah::Content::Text(text),
            Ok([part]) => mynah::Content::Parts(vec![part.into()]),
            Err(parts) => mynah::Content::Parts(parts.into_iter().map(mynah::Part::from).collect()),
        };
        let calls = message.tool_calls.into_iter().map(ToolCall::into_json);
        let calls = calls.collect::<Result<Vec<_>, _>>()?;
        let is_empty = matches!(&content, mynah::Content::Parts(parts) if parts.is_empty());
        Ok(mynah::Message {
            role: message.role,
            content: Some(content).filter(|_| !is_empty || calls.is_empty()),
            name: message.name,
            reasoning_content: message.reasoning,
            tool_calls: Some(calls).filter(|calls| !calls.is_empty()),
            tool_call_id: message.tool_call_id,
            ..mynah::Message::default()
        })
    }
}

impl ToolCall {
    fn into_json(self) -> Result<serde_json::Value, MynahError> {
        match serde_json::from_str(&self.arguments) {
            Ok(arguments) => Ok(mynah::ToolCall::new(self.id, self.name, arguments).to_json()),
            Err(error) => {
                Err(MynahError::invalid(format!("arguments of the call `{}`: {error}", self.id)))
            }
        }
    }
}

impl Tool {
    fn into_json(self) -> Result<serde_json::Value, MynahError> {
        match serde_json::from_str(&self.parameters) {
            Ok(parameters) => {
                Ok(mynah::Tool::new(self.name, self.description, parameters).to_json())
            }
            Err(error) => {
                Err(MynahError::invalid(format!("parameters of the tool `{}`: {error}", self.name)))
            }
        }
    }
}

impl From<Content> for mynah::Part {
    fn from(content: Content) -> Self {
        match content {
            Content::Text { text } => mynah::Part::text(&text),
            Content::Image { image } => mynah::Part::media(image.0.clone()),
            Content::Video { video } => mynah::Part::media(video.0.clone()),
        }
    }
}

impl TryFrom<ChatTemplateOptions> for mynah::TemplateOptions {
    type Error = MynahError;

    fn try_from(options: ChatTemplateOptions) -> Result<Self, MynahError> {
        let defaults = mynah::TemplateOptions::default();
        let parse = |(name, value): (String, String)| match serde_json::from_str(&value) {
            Ok(value) => Ok((name, value)),
            Err(error) => Err(MynahError::invalid(format!("template variable `{name}`: {error}"))),
        };
        let prompt = options.add_generation_prompt.unwrap_or(defaults.add_generation_prompt);
        let goes_on = options.continue_final_message.unwrap_or(defaults.continue_final_message);
        let sanitize = options.sanitize_control_tokens.unwrap_or(defaults.sanitize_control_tokens);
        Ok(defaults
            .add_generation_prompt(prompt)
            .continue_final_message(goes_on)
            .sanitize_control_tokens(sanitize)
            .variables(options.variables.into_iter().map(parse).collect::<Result<_, _>>()?)
            .tools(options.tools.into_iter().map(Tool::into_json).collect::<Result<_, _>>()?)
            .name(options.template))
    }
}
