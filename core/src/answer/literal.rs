//! Calls whose arguments are literals of a language.

use crate::answer::{
    calls::Draft,
    input::{Input, Progress},
    language::Language,
};
use serde_json::Value as Json;

/// A call with literals.
#[derive(Debug)]
pub(super) struct LiteralCall {
    language: Language,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Name,
    Key,
    Value,
}

impl LiteralCall {
    pub fn new(language: Language) -> Self {
        LiteralCall { language, place: Place::Name }
    }

    pub fn advance(&mut self, input: &mut Input, draft: &mut Draft) -> Progress {
        let (opening, closing, equals) = match self.language {
            Language::Python => ('(', ')', '='),
            Language::Braces { .. } => ('{', '}', ':'),
        };
        match self.place {
            Place::Name => {
                let Some(at) = input.rest().find(opening) else { return Progress::More };
                let name = input.take(at);
                input.take(1);
                let name = name.trim();
                draft.name = Some(name.strip_prefix("call:").unwrap_or(name).to_string());
                draft.arguments.push('{');
                self.place = Place::Key;
            }
            Place::Key => {
                input.skip_space();
                let Some(next) = input.rest().chars().next() else { return Progress::More };
                if next == closing {
                    input.take(1);
                    draft.arguments.push('}');
                    return Progress::Complete;
                }
                if next == ',' {
                    input.take(1);
                    return Progress::Again;
                }
                let Some(at) = self.language.end(input.rest(), &[equals]) else {
                    return Progress::More;
                };
                let key = input.take(at);
                if !input.rest().starts_with(equals) {
                    return Progress::Broken("the call has an argument without a name".into());
                }
                input.take(1);
                if draft.arguments.len() > 1 {
                    draft.arguments += ", ";
                }
                draft.arguments += &Json::from(self.language.key(key.trim())).to_string();
                draft.arguments += ": ";
                self.place = Place::Value;
            }
            Place::Value => {
                let Some(end) = self.language.end(input.rest(), &[',', closing]) else {
                    return Progress::More;
                };
                let text = input.take(end);
                match self.language.value(text.trim()) {
                    Some(value) => draft.arguments += &value.to_string(),
                    None => return Progress::Broken(format!("`{}` is no value", text.trim())),
                }
                self.place = Place::Key;
            }
        }
        Progress::Again
    }
}
