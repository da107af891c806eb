//! Calls whose arguments are JSON: objects with a name and arguments, and names before an object.

use crate::answer::{
    Toolbox,
    calls::Draft,
    formats::Named,
    input::{Input, Progress},
    marks::{Found, find},
};
use serde_json::Value as Json;

/// The longest text before the end of a name, in bytes.
const LONGEST_NAME: usize = 300;

/// Finds the end of one JSON value in text that arrives in pieces.
#[derive(Debug, Default)]
pub(super) struct JsonScanner {
    depth: usize,
    in_string: bool,
    escaped: bool,
    begun: bool,
}

impl JsonScanner {
    /// The end of the value in the next piece.
    pub fn feed(&mut self, text: &str) -> Option<usize> {
        for (at, c) in text.char_indices() {
            if self.in_string {
                match c {
                    _ if self.escaped => self.escaped = false,
                    '\\' => self.escaped = true,
                    '"' => {
                        self.in_string = false;
                        if self.depth == 0 {
                            return Some(at + 1);
                        }
                    }
                    _ => {}
                }
                continue;
            }
            match c {
                '"' if self.begun && self.depth == 0 => return Some(at),
                '"' => self.in_string = true,
                '{' | '[' => self.depth += 1,
                // The end of a number or a word.
                '}' | ']' | ',' if self.depth == 0 => return Some(at),
                '}' | ']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Some(at + 1);
                    }
                }
                c if c.is_whitespace() && self.depth == 0 => {
                    if self.begun {
                        return Some(at);
                    }
                    continue;
                }
                _ => {}
            }
            self.begun = true;
        }
        None
    }
}

/// The whole JSON value at the beginning of a text.
fn whole(text: &str) -> Option<&str> {
    JsonScanner::default().feed(text).map(|end| &text[..end])
}

/// A call as a JSON object.
#[derive(Debug, Default)]
pub(super) struct JsonCall {
    place: JsonPlace,
    /// The number of objects around the name and the arguments, without the outer one.
    nested: usize,
    by_name: bool,
}

#[derive(Debug, Default)]
enum JsonPlace {
    #[default]
    Start,
    Key,
    Colon(Role),
    Value(Role),
    Arguments(JsonScanner),
}

/// What a key of a call stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Name,
    Arguments,
    Id,
    Other,
}

impl JsonCall {
    pub fn new(by_name: bool) -> Self {
        JsonCall { by_name, ..JsonCall::default() }
    }

    pub fn advance(&mut self, input: &mut Input, draft: &mut Draft, tools: &Toolbox) -> Progress {
        if !matches!(self.place, JsonPlace::Arguments(_)) {
            input.skip_space();
        }
        let Some(next) = input.rest().chars().next() else { return Progress::More };
        match &mut self.place {
            JsonPlace::Start => {
                input.take(1);
                self.place = JsonPlace::Key;
            }
            JsonPlace::Key if next == ',' => drop(input.take(1)),
            JsonPlace::Key if next == '}' => {
                input.take(1);
                if self.nested == 0 {
                    return Progress::Complete;
                }
                self.nested -= 1;
            }
            JsonPlace::Key if next == '"' => {
                let Some(key) = whole(input.rest()) else { return Progress::More };
                let length = key.len();
                let Ok(key) = serde_json::from_str::<String>(key) else {
                    return Progress::Broken("the JSON of the call has a malformed key".into());
                };
                input.take(length);
                self.place = JsonPlace::Colon(self.role(&key, draft, tools));
            }
            JsonPlace::Key => {
                return Progress::Broken("the JSON of the call is malformed".into());
            }
            JsonPlace::Colon(role) if next == ':' => {
                input.take(1);
                self.place = JsonPlace::Value(*role);
            }
            JsonPlace::Colon(_) => {
                return Progress::Broken("the JSON of the call is malformed".into());
            }
            JsonPlace::Value(Role::Arguments) if next != '"' => {
                self.place = JsonPlace::Arguments(JsonScanner::default());
            }
            JsonPlace::Value(Role::Name) if next == '{' => {
                input.take(1);
                self.nested += 1;
                self.place = JsonPlace::Key;
            }
            JsonPlace::Value(role) => {
                let Some(value) = whole(input.rest()) else { return Progress::More };
                let length = value.len();
                let value: Json = serde_json::from_str(value).unwrap_or(Json::Null);
                input.take(length);
                match (*role, value) {
                    (Role::Name, Json::String(name)) => draft.name = Some(name),
                    // Arguments as a string of JSON.
                    (Role::Arguments, Json::String(text)) => draft.arguments = text,
                    (Role::Id, Json::String(id)) => draft.id = Some(id),
                    (Role::Id, Json::Number(id)) => draft.id = Some(id.to_string()),
                    _ => {}
                }
                self.place = JsonPlace::Key;
            }
            JsonPlace::Arguments(scanner) => {
                let end = scanner.feed(input.rest());
                let text = input.take(end.unwrap_or(input.rest().len()));
                draft.arguments += &text;
                if end.is_some() {
                    self.place = JsonPlace::Key;
                }
            }
        }
        Progress::Again
    }

    fn role(&self, key: &str, draft: &mut Draft, tools: &Toolbox) -> Role {
        match key {
            _ if self.by_name && tools.schema(key).is_some() => {
                draft.name = Some(key.into());
                Role::Arguments
            }
            "name" | "tool_name" | "function" => Role::Name,
            "arguments" | "parameters" => Role::Arguments,
            "id" | "tool_call_id" => Role::Id,
            _ => Role::Other,
        }
    }
}

/// A call as a name and an object.
#[derive(Debug)]
pub(super) struct NamedCall {
    syntax: &'static Named,
    place: NamedPlace,
}

#[derive(Debug)]
enum NamedPlace {
    Name,
    /// Between the name and the object.
    Gap,
    Arguments(JsonScanner),
    Close,
}

impl NamedCall {
    pub fn new(syntax: &'static Named) -> Self {
        NamedCall { syntax, place: NamedPlace::Name }
    }

    /// A call whose name was read.
    pub fn after_name(syntax: &'static Named) -> Self {
        NamedCall { syntax, place: NamedPlace::Gap }
    }

    pub fn advance(&mut self, input: &mut Input, draft: &mut Draft) -> Progress {
        match &mut self.place {
            NamedPlace::Name => {
                let found = find(input.rest(), self.syntax.name_end, input.ended());
                let Found::Mark { at, index } = found else {
                    let is_long = input.rest().len() > LONGEST_NAME;
                    let reason = "the call has no end of its name";
                    return if is_long { Progress::Broken(reason.into()) } else { Progress::More };
                };
                let name = input.take(at);
                input.take(self.syntax.name_end[index].len());
                (draft.name, draft.id) = name_and_id(&name);
                self.place = NamedPlace::Gap;
            }
            NamedPlace::Gap => {
                input.skip_space();
                let rest = input.rest();
                if rest.is_empty() {
                    // Without arguments.
                    return if input.ended() { Progress::Complete } else { Progress::More };
                }
                match find(rest, self.syntax.close, input.ended()) {
                    Found::Mark { at: 0, .. } => self.place = NamedPlace::Close,
                    Found::Nothing { before: 0 } => return Progress::More,
                    _ if rest.starts_with('{') => {
                        self.place = NamedPlace::Arguments(JsonScanner::default());
                    }
                    // A kind, then the name in a line, then the object in a block of code.
                    _ if self.syntax.close.is_empty() => {
                        return Progress::Broken("the arguments are no JSON object".into());
                    }
                    _ => {
                        let Some((line, _)) = rest.split_once('\n') else { return Progress::More };
                        let length = line.len();
                        let line = input.take(length);
                        if !line.starts_with("```") {
                            draft.name = Some(line.trim().to_string());
                        }
                    }
                }
            }
            NamedPlace::Arguments(scanner) => {
                let end = scanner.feed(input.rest());
                let text = input.take(end.unwrap_or(input.rest().len()));
                draft.arguments += &text;
                if end.is_none() {
                    return Progress::More;
                }
                if self.syntax.close.is_empty() {
                    return Progress::Complete;
                }
                self.place = NamedPlace::Close;
            }
            NamedPlace::Close => {
                return match find(input.rest(), self.syntax.close, input.ended()) {
                    Found::Mark { at, index } => {
                        input.take(at + self.syntax.close[index].len());
                        Progress::Complete
                    }
                    Found::Nothing { before } => {
                        input.take(before);
                        if input.ended() { Progress::Complete } else { Progress::More }
                    }
                };
            }
        }
        Progress::Again
    }
}

/// The name of a tool, and the id of a call where the name contains one: `functions.name:0` of Kimi,
/// `name[CALL_ID]id` and `id<|tool_call:name|>name`.
pub(super) fn name_and_id(text: &str) -> (Option<String>, Option<String>) {
    let text = text.trim();
    if let Some((name, id)) = text.split_once("[CALL_ID]") {
        return (Some(name.trim().into()), Some(id.trim().into()));
    }
    if let Some((id, name)) = text.split_once("<|tool_call:name|>") {
        return (Some(name.trim().into()), Some(id.trim().into()));
    }
    let is_number = |tail: &str| !tail.is_empty() && tail.bytes().all(|b| b.is_ascii_digit());
    match text.rsplit_once(':') {
        Some((name, number)) if is_number(number) => {
            let name = name.strip_prefix("functions.").unwrap_or(name);
            (Some(name.into()), Some(text.into()))
        }
        _ => (Some(text.into()), None),
    }
}
