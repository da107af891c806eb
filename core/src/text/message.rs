//! The messages of a conversation, in the shape of the OpenAI API.

use crate::{
    error::{Error, Result},
    media::Attachment,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// One message of a conversation, in the shape of the OpenAI API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// The role: `system`, `user`, `assistant`, `tool`, or another one that the template knows.
    pub role: String,
    /// The text or the parts of the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
    /// The name of the speaker or of the tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The reasoning before the assistant's answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// The calls that the assistant makes: `{"type": "function", "function": {"name", "arguments"}}`. The arguments are
    /// an object or its JSON as text; templates get the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<Json>>,
    /// The id of the call that a tool message answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Every other key, passed to the template unchanged.
    #[serde(flatten)]
    pub other: Map<String, Json>,
}

/// The content of a message: text, or parts of text and media.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// Plain text.
    Text(String),
    /// Text and media in their order.
    Parts(Vec<Part>),
    /// Any other JSON, passed to the template unchanged.
    Other(Json),
}

/// One part of a [`Content`], such as `{"type": "text", "text": "…"}` or `{"type": "image"}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// `text`, `image`, `audio`, `video`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The text of a text part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The picture or the clip of a part that is one. It is no part of the JSON.
    #[serde(skip)]
    pub media: Option<Attachment>,
    /// Every other key, passed to the template unchanged.
    #[serde(flatten)]
    pub other: Map<String, Json>,
}

impl Message {
    /// A message with text.
    pub fn new(role: &str, text: &str) -> Self {
        let content = Some(Content::Text(text.into()));
        Message { role: role.into(), content, ..Default::default() }
    }

    /// A system prompt.
    pub fn system(text: &str) -> Self {
        Message::new("system", text)
    }

    /// A user's message.
    pub fn user(text: &str) -> Self {
        Message::new("user", text)
    }

    /// The result of a call of a tool.
    pub fn tool(call_id: &str, name: &str, result: &str) -> Self {
        let (tool_call_id, name) = (Some(call_id.into()), Some(name.into()));
        Message { tool_call_id, name, ..Message::new("tool", result) }
    }

    /// An assistant's message.
    pub fn assistant(text: &str) -> Self {
        Message::new("assistant", text)
    }
}

/// Joins the text parts of each message, for a model that takes text only.
///
/// # Errors
/// [`Error::UnsupportedPart`] for an image or any other part that is not text.
pub fn text_only(messages: &[Message]) -> Result<Vec<Message>> {
    let each = |(index, message): (usize, &Message)| {
        let mut message = message.clone();
        if let Some(Content::Parts(parts)) = &message.content {
            let text = |part: &Part| match &part.text {
                Some(text) if part.kind == "text" => Ok(text.clone()),
                _ => Err(Error::UnsupportedPart { message: index, kind: part.kind.clone() }),
            };
            message.content = Some(Content::Text(parts.iter().map(text).collect::<Result<_>>()?));
        }
        Ok(message)
    };
    messages.iter().enumerate().map(each).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn parts_of_text_become_text_and_others_are_errors() {
        let message = |parts: Json| -> Message {
            serde_json::from_value(json!({"role": "user", "content": parts, "x": 1})).unwrap()
        };
        let text = |text: &str| json!({"type": "text", "text": text});
        let joined = text_only(&[message(json!([text("a "), text("b")]))]).unwrap();
        assert_eq!(joined, [message(json!("a b"))]);
        let plain = [Message::user("hi"), message(json!({"rain": true}))];
        assert_eq!(text_only(&plain).unwrap(), plain);
        for (part, kind) in [
            (json!({"type": "image", "url": "a.png"}), "image"),
            (json!({"type": "image", "text": "a picture"}), "image"),
            (json!({"type": "text"}), "text"),
        ] {
            let error = text_only(&[plain[0].clone(), message(json!([text("a"), part]))]);
            let message = error.unwrap_err().to_string();
            let expected = format!("a part of type `{kind}`, which the model does not accept");
            assert_eq!(message, format!("message 1 has {expected}"));
        }
    }
}
