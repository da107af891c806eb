//! Calls with tags around the name and each argument. The values are text; what they mean follows from
//! the schema of the tool.

use crate::answer::{
    Toolbox,
    calls::Draft,
    formats::{Tags, XTML_JSON},
    input::{Input, Progress},
    marks::{Found, begins, find},
    schema::{self, Subschema},
};
use serde_json::{Map, Value as Json};

/// A call in tags.
#[derive(Debug)]
pub(super) struct TagsCall {
    syntax: &'static Tags,
    /// The mark that closes the block of calls, which closes a call without a mark of its own.
    block_close: &'static [&'static str],
    place: Place,
}

#[derive(Debug)]
enum Place {
    Name,
    Attributes,
    /// Before a key or the end.
    Between,
    Key,
    KeyAttributes(String),
    ValueOpen(Value),
    Value(Value),
    Object,
}

/// A value of which a part was read.
#[derive(Debug)]
struct Value {
    key: String,
    /// Whether it can only be a string, whose parts are given out as they arrive.
    is_string: bool,
    text: String,
    begun: bool,
    /// Whether it stands between line breaks that belong to the tags.
    is_padded: bool,
}

/// What follows a text in the input.
enum Next {
    Yes,
    No,
    More,
}

impl TagsCall {
    pub fn new(syntax: &'static Tags, block_close: &'static [&'static str]) -> Self {
        TagsCall { syntax, block_close, place: Place::Name }
    }

    pub fn advance(&mut self, input: &mut Input, draft: &mut Draft, tools: &Toolbox) -> Progress {
        let syntax = self.syntax;
        match std::mem::replace(&mut self.place, Place::Between) {
            Place::Name => {
                let mut ends = vec![syntax.name_end];
                if syntax.close.is_empty() {
                    ends.push(syntax.key_open);
                    ends.extend(self.block_close);
                }
                let Found::Mark { at, index } = find(input.rest(), &ends, input.ended()) else {
                    self.place = Place::Name;
                    return Progress::More;
                };
                let name = input.take(at);
                draft.name = Some(name.trim().into());
                draft.arguments.push('{');
                if index == 0 {
                    input.take(syntax.name_end.len());
                }
                if !syntax.attributes_end.is_empty() {
                    self.place = Place::Attributes;
                }
            }
            Place::Attributes => {
                if self.attributes(input).is_none() {
                    self.place = Place::Attributes;
                    return Progress::More;
                }
            }
            Place::Between => return self.between(input, draft),
            Place::Key => {
                let Some(at) = input.rest().find(syntax.key_end) else {
                    self.place = Place::Key;
                    return Progress::More;
                };
                let key = input.take(at);
                input.take(syntax.key_end.len());
                self.place = Place::KeyAttributes(key.trim().to_string());
            }
            Place::KeyAttributes(key) => {
                let Some(attributes) = self.attributes(input) else {
                    self.place = Place::KeyAttributes(key);
                    return Progress::More;
                };
                let mut value = Value::new(key, &attributes, draft, tools);
                value.is_string &= !syntax.has_cdata;
                self.place = Place::ValueOpen(value);
            }
            Place::ValueOpen(value) if syntax.value_open.is_empty() => {
                self.place = Place::Value(value);
            }
            Place::ValueOpen(value) => {
                input.skip_space();
                if input.rest().starts_with(syntax.value_open) {
                    input.take(syntax.value_open.len());
                    self.place = Place::Value(value);
                } else if begins(input.rest(), syntax.value_open) {
                    self.place = Place::ValueOpen(value);
                    return Progress::More;
                } else {
                    return Progress::Broken(format!("`{}` has no value", value.key));
                }
            }
            Place::Value(value) => return self.value(value, input, draft, tools),
            Place::Object => match input.rest().find(XTML_JSON[1]) {
                Some(end) => {
                    draft.arguments = input.take(end);
                    draft
                        .arguments
                        .truncate(draft.arguments.trim_end().trim_end_matches('}').len());
                    input.take(XTML_JSON[1].len());
                }
                None => {
                    self.place = Place::Object;
                    return Progress::More;
                }
            },
        }
        Progress::Again
    }

    /// The attributes of the tag that is open.
    fn attributes(&self, input: &mut Input) -> Option<String> {
        let end = self.syntax.attributes_end;
        let at = input.rest().find(end)?;
        let attributes = input.take(at);
        input.take(end.len());
        Some(attributes)
    }

    fn between(&mut self, input: &mut Input, draft: &mut Draft) -> Progress {
        let syntax = self.syntax;
        input.skip_space();
        // What begins with the mark of a key may be the end.
        if let Some(close) = self.closes().find(|close| input.rest().starts_with(**close)) {
            // The mark of the block is left for the block.
            if !syntax.close.is_empty() {
                input.take(close.len());
            }
            draft.arguments.push('}');
            return Progress::Complete;
        }
        let is_begun = self.closes().any(|close| begins(input.rest(), close));
        if is_begun || begins(input.rest(), syntax.key_open) {
            return Progress::More;
        }
        if input.rest().starts_with(syntax.key_open) {
            input.take(syntax.key_open.len());
            self.place = Place::Key;
            return Progress::Again;
        }
        if input.rest().starts_with(XTML_JSON[0]) && syntax.attributes_end == "<|sep|>" {
            if self.attributes(input).is_none() {
                return Progress::More;
            }
            self.place = Place::Object;
            return Progress::Again;
        }
        Progress::Broken("the call has text between its arguments".into())
    }

    fn closes(&self) -> impl Iterator<Item = &&'static str> {
        let own = Some(&self.syntax.close).filter(|close| !close.is_empty());
        own.into_iter().chain(self.block_close.iter().filter(|_| self.syntax.close.is_empty()))
    }

    /// Reads on to the end of a value: the mark after which an argument or the end of the call
    /// follows. Values may contain the mark itself.
    fn value(
        &mut self,
        mut value: Value,
        input: &mut Input,
        draft: &mut Draft,
        tools: &Toolbox,
    ) -> Progress {
        let close = self.syntax.value_close.replace("{key}", &value.key);
        let rest = input.rest();
        let mut from = 0;
        let end = loop {
            match find(&rest[from..], &[&close], false) {
                Found::Nothing { before } => break Err(from + before),
                Found::Mark { at, .. } => match self.follows(&rest[from + at + close.len()..]) {
                    Next::Yes => break Ok(from + at),
                    Next::More if !input.ended() => break Err(from + at),
                    Next::More => break Ok(from + at),
                    Next::No => from += at + close.chars().next().map_or(1, char::len_utf8),
                },
            }
        };
        let (length, ended) = match end {
            Ok(length) => (length, true),
            Err(length) => (length, false),
        };
        let text = input.take(length);
        value.push(&text, self.syntax.padded, ended, draft);
        if !ended {
            self.place = Place::Value(value);
            return Progress::More;
        }
        input.take(close.len());
        value.finish(draft, tools);
        Progress::Again
    }

    /// Whether a key or the end of the call follows.
    fn follows(&self, text: &str) -> Next {
        let text = text.trim_start();
        let marks: Vec<&str> = self.closes().copied().chain([self.syntax.key_open]).collect();
        if marks.iter().any(|mark| text.starts_with(mark)) {
            Next::Yes
        } else if marks.iter().any(|mark| begins(text, mark)) {
            Next::More
        } else {
            Next::No
        }
    }
}

impl Value {
    /// The value of an argument. Its type is an attribute in some formats (`string="true"`,
    /// `type="string"`).
    fn new(key: String, attributes: &str, draft: &mut Draft, tools: &Toolbox) -> Self {
        let declared = [("string=\"true\"", true), ("string=\"false\"", false)];
        let declared = declared.iter().find(|(text, _)| attributes.contains(text));
        let declared = declared.map(|(_, is_string)| *is_string).or_else(|| {
            attributes.contains("type=\"").then(|| attributes.contains("type=\"string\""))
        });
        let name = draft.name.as_deref().unwrap_or_default();
        let schema = tools.argument(name, &key);
        let is_string = declared.unwrap_or_else(|| {
            schema.is_some_and(|Subschema { schema, root }| schema::is_string(schema, root))
        });
        if draft.arguments.len() > 1 {
            draft.arguments += ", ";
        }
        draft.arguments += &Json::from(key.as_str()).to_string();
        draft.arguments += ": ";
        Value { key, is_string, text: String::new(), begun: false, is_padded: false }
    }

    fn push(&mut self, text: &str, padded: bool, ended: bool, draft: &mut Draft) {
        self.text += text;
        if padded && !self.begun && self.text.is_empty() && !ended {
            return;
        }
        if padded && !self.begun && !self.text.is_empty() {
            if self.text.starts_with('\n') {
                self.text.remove(0);
                self.is_padded = true;
            }
            self.begun = true;
            if self.is_string {
                draft.arguments.push('"');
            }
        } else if self.is_string && !self.begun {
            draft.arguments.push('"');
            self.begun = true;
        }
        if ended && self.is_padded && self.text.ends_with('\n') {
            self.text.pop();
        }
        if self.is_string && self.begun {
            let held = self.is_padded && !ended && self.text.ends_with('\n');
            let end = self.text.len() - usize::from(held);
            let json = Json::from(&self.text[..end]).to_string();
            draft.arguments += &json[1..json.len() - 1];
            self.text.drain(..end);
        }
    }

    fn finish(self, draft: &mut Draft, tools: &Toolbox) {
        if self.is_string {
            draft.arguments += if self.begun { "\"" } else { "\"\"" };
            return;
        }
        let name = draft.name.as_deref().unwrap_or_default();
        let schema = tools.argument(name, &self.key);
        let value = match elements(&self.text) {
            Some(value) => value,
            None => schema::coerce(cdata(&self.text), schema),
        };
        draft.arguments += &value.to_string();
    }
}

fn cdata(text: &str) -> &str {
    let inner = text.trim().strip_prefix("<![CDATA[").and_then(|text| text.strip_suffix("]]>"));
    inner.unwrap_or(text)
}

/// The value of nested elements that begin with a mark: lists of `item` and objects by name.
fn elements(text: &str) -> Option<Json> {
    const MARK: &str = "]<]minimax[>[";
    let mut rest = text.trim();
    rest.starts_with(MARK).then_some(())?;
    let mut fields = Vec::new();
    while let Some(inner) = rest.strip_prefix(MARK) {
        let (key, after) = inner.strip_prefix('<')?.split_once('>')?;
        let close = format!("{MARK}</{key}>");
        let end = after.find(&close)?;
        let value = &after[..end];
        let value = elements(value).unwrap_or_else(|| schema::coerce(value, None));
        fields.push((key.to_string(), value));
        rest = after[end + close.len()..].trim_start();
    }
    let is_list = fields.iter().all(|(key, _)| key == "item");
    Some(match is_list {
        true => fields.into_iter().map(|(_, value)| value).collect(),
        false => Json::Object(Map::from_iter(fields)),
    })
}
