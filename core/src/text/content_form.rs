//! The form in which chat templates take messages of parts of text and media.

use crate::text::jinja::{Text, Value, from_json};
use serde_json::{Value as Json, json};

/// The form in which a chat template takes the content of messages.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum ContentForm {
    /// Strings and lists of parts, as the application wrote them.
    #[default]
    AsWritten,
    /// Lists of parts only.
    Parts,
    /// Strings only. The text of this marker stands for a picture; `{}` in it is the number of the
    /// picture in the conversation, from 1 on.
    Strings(String),
}

impl ContentForm {
    /// The form that a template takes, found out from what it renders of a user's message with a content.
    pub fn of(marker: &str, render: impl Fn(Json) -> Option<String>) -> Self {
        const PROBE: &str = "0a1b2c";
        let writes = |content: Json, what: &[&str]| {
            render(content).is_some_and(|text| what.iter().all(|what| text.contains(what)))
        };
        let parts = json!([{"type": "image"}, {"type": "text", "text": PROBE}]);
        match writes(parts, &[PROBE, marker]) {
            false => ContentForm::Strings(format!("{marker}\n")),
            true if writes(json!(PROBE), &[PROBE]) => ContentForm::AsWritten,
            true => ContentForm::Parts,
        }
    }

    /// The content of a message as the template gets it; `None` leaves it as it is. `pictures` counts
    /// those of the conversation.
    pub fn apply(&self, content: &Json, is_given: bool, pictures: &mut usize) -> Option<Value> {
        match (self, content) {
            (ContentForm::Parts, Json::String(text)) => {
                Some(from_json(&json!([{"type": "text", "text": text}]), is_given))
            }
            (ContentForm::Strings(marker), Json::Array(parts)) => {
                let mut out = Text::default();
                for part in parts {
                    match part.get("text").and_then(Json::as_str) {
                        Some(text) => out.push_str(text, is_given),
                        None => {
                            *pictures += 1;
                            out.push_str(&marker.replace("{}", &pictures.to_string()), false);
                        }
                    }
                }
                Some(out.into())
            }
            _ => None,
        }
    }
}
