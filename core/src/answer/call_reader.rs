//! Reads one block of calls from text that arrives in pieces.

use crate::answer::{
    Part, RejectedToolCall, ToolCall, Toolbox,
    calls::{Draft, LONGEST_CALL},
    formats::{Format, Kind, MESSAGE, Syntax},
    input::{Input, Progress},
    json::{JsonCall, NamedCall},
    language::Language,
    literal::LiteralCall,
    marks::{Found, begins, find},
    tags::TagsCall,
};
use std::hash::{DefaultHasher, Hash, Hasher};

/// What reading a block of calls led to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// More text is needed.
    More,
    /// The block has ended.
    Closed,
    /// The text was no call after all.
    Text(String),
}

/// The facts of a request that its calls are read with.
#[derive(Debug)]
pub(super) struct Calls<'a> {
    pub tools: &'a Toolbox,
    pub parts: &'a mut Vec<Part>,
    /// The number of calls so far.
    pub count: &'a mut usize,
    /// Makes the ids of this answer differ from those of others.
    pub salt: u64,
}

/// A block of calls of which a part was read.
#[derive(Debug)]
pub(super) struct CallReader {
    format: &'static Format,
    place: Place,
    draft: Draft,
    /// Whether the block has a call.
    has_calls: bool,
    in_list: bool,
}

#[derive(Debug)]
enum Place {
    Between,
    Call(Call),
    /// What is no call, up to the next mark, and what is wrong with it.
    Skipped(Option<String>),
}

#[derive(Debug)]
enum Call {
    Json(JsonCall),
    Named(NamedCall),
    Tags(TagsCall),
    Literal(LiteralCall),
}

impl CallReader {
    /// A block whose opening mark was taken, or which has none.
    pub fn new(format: &'static Format) -> Self {
        let (place, draft) = (Place::Between, Draft::default());
        CallReader { format, place, draft, has_calls: false, in_list: false }
    }

    /// A message to a function.
    pub fn message(format: &'static Format, name: &str) -> Self {
        let place = Place::Call(Call::Named(NamedCall::after_name(&MESSAGE)));
        CallReader { place, draft: Draft::named(name), ..CallReader::new(format) }
    }

    pub fn advance(&mut self, input: &mut Input, calls: &mut Calls<'_>) -> Outcome {
        loop {
            let outcome = match &mut self.place {
                Place::Between => self.begin(input, calls),
                Place::Call(_) => self.call(input, calls),
                Place::Skipped(_) => self.skip(input, calls),
            };
            if let Some(outcome) = outcome {
                return outcome;
            }
        }
    }

    /// Finds the next call or the end of the block.
    fn begin(&mut self, input: &mut Input, calls: &Calls<'_>) -> Option<Outcome> {
        let is_open = self.format.close.is_empty();
        loop {
            input.skip_space();
            if self.has_calls {
                let rest = input.rest();
                let open = self.format.open.iter().find(|open| rest.starts_with(**open));
                if open.is_some() && is_open {
                    return Some(Outcome::Closed);
                }
                if self.format.open.iter().any(|open| !rest.is_empty() && begins(rest, open))
                    && !input.ended()
                {
                    return Some(Outcome::More);
                }
            }
            match input.rest().chars().next() {
                Some(',' | ';') => drop(input.take(1)),
                Some('[') if self.has_lists() && !self.in_list => {
                    input.take(1);
                    self.in_list = true;
                }
                Some(']') if self.in_list => {
                    input.take(1);
                    self.in_list = false;
                    if is_open && self.has_calls {
                        return Some(Outcome::Closed);
                    }
                }
                _ => break,
            }
        }
        let rest = input.rest();
        if let Some(close) = self.format.close.iter().find(|close| rest.starts_with(**close))
            && self.has_calls
        {
            input.take(close.len());
            return Some(Outcome::Closed);
        }
        let mut may_follow =
            rest.is_empty() || self.format.close.iter().any(|close| begins(rest, close));
        for syntax in self.format.syntaxes {
            match syntax.begins(rest, calls.tools) {
                Some(true) => {
                    if self.has_calls {
                        input.taken();
                    }
                    self.draft = Draft::default();
                    input.take(syntax.open().len());
                    self.place = Place::Call(syntax.call(self.format.close));
                    return None;
                }
                Some(false) => {}
                None => may_follow = true,
            }
        }
        if may_follow && !input.ended() {
            return Some(Outcome::More);
        }
        if !self.has_calls {
            return Some(Outcome::Text(input.taken()));
        }
        if is_open || input.ended() {
            return Some(Outcome::Closed);
        }
        // What follows the calls of a block is left out.
        self.place = Place::Skipped(None);
        None
    }

    fn has_lists(&self) -> bool {
        let lists =
            |syntax: &Syntax| matches!(syntax, Syntax::Json | Syntax::JsonByName | Syntax::Python);
        self.format.syntaxes.iter().any(lists)
    }

    fn call(&mut self, input: &mut Input, calls: &mut Calls<'_>) -> Option<Outcome> {
        let Place::Call(call) = &mut self.place else { return None };
        let draft = &mut self.draft;
        let progress = match call {
            Call::Json(call) => call.advance(input, draft, calls.tools),
            Call::Named(call) => call.advance(input, draft),
            Call::Tags(call) => call.advance(input, draft, calls.tools),
            Call::Literal(call) => call.advance(input, draft),
        };
        let is_known = |name: &String| calls.tools.schema(name).is_some();
        let is_plain = self.format.kind == Kind::Plain && !self.has_calls;
        if is_plain && draft.name.as_ref().is_some_and(|name| !is_known(name)) {
            return Some(Outcome::Text(input.taken()));
        }
        let delta = draft.delta(*calls.count, calls.tools);
        calls.parts.extend(delta.map(Part::CallDelta));
        match progress {
            Progress::Again if input.taken.len() > LONGEST_CALL => {
                self.place = Place::Skipped(Some(too_long()));
            }
            Progress::Again => {}
            Progress::More if input.taken.len() + input.rest().len() > LONGEST_CALL => {
                self.place = Place::Skipped(Some(too_long()));
            }
            Progress::More if !input.ended() => return Some(Outcome::More),
            Progress::More | Progress::Broken(_) | Progress::Complete
                if is_plain && self.draft.name.is_none() =>
            {
                return Some(Outcome::Text(input.taken()));
            }
            Progress::More => {
                self.place = Place::Skipped(Some("the answer ended before the call did".into()));
            }
            Progress::Broken(reason) => self.place = Place::Skipped(Some(reason)),
            Progress::Complete => {
                self.place = Place::Between;
                self.has_calls = true;
                let raw = input.taken.clone();
                calls.finish(&self.draft, raw);
            }
        }
        None
    }

    /// Skips to the next mark that closes a call or the block.
    fn skip(&mut self, input: &mut Input, calls: &mut Calls<'_>) -> Option<Outcome> {
        let own = self.format.syntaxes.iter().flat_map(Syntax::close);
        let own = own.filter(|close| !self.format.close.contains(close));
        let marks: Vec<&str> = self.format.close.iter().copied().chain(own).collect();
        let is_block = |index: usize| index < self.format.close.len();
        let closed = match find(input.rest(), &marks, input.ended()) {
            Found::Mark { at, index } => {
                input.take(at + marks[index].len());
                is_block(index)
            }
            Found::Nothing { before } if !input.ended() && !marks.is_empty() => {
                input.take(before);
                input.taken.truncate(input.taken.floor_char_boundary(LONGEST_CALL));
                return Some(Outcome::More);
            }
            Found::Nothing { before } => {
                input.take(before);
                true
            }
        };
        if let Place::Skipped(Some(reason)) = std::mem::replace(&mut self.place, Place::Between) {
            self.has_calls = true;
            let raw = input.taken();
            calls.reject(self.draft.name.clone(), raw, reason);
        }
        closed.then_some(Outcome::Closed)
    }
}

fn too_long() -> String {
    format!("the call is longer than {LONGEST_CALL} bytes")
}

impl Calls<'_> {
    fn finish(&mut self, draft: &Draft, raw: String) {
        match draft.finish(self.tools) {
            Ok((name, arguments)) => {
                let id = draft.id.clone().unwrap_or_else(|| self.id(&raw));
                *self.count += 1;
                self.parts.push(Part::Call(ToolCall::new(id, name, arguments)));
            }
            Err(reason) => self.reject(draft.name.clone(), raw, reason),
        }
    }

    fn reject(&mut self, name: Option<String>, raw: String, reason: String) {
        *self.count += 1;
        self.parts.push(Part::Rejected(RejectedToolCall { name, raw, reason }));
    }

    /// An id of nine letters and digits, the only form that every template takes.
    fn id(&self, raw: &str) -> String {
        const LETTERS: &[u8; 62] =
            b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        let mut hasher = DefaultHasher::new();
        (self.salt, *self.count, raw).hash(&mut hasher);
        let hash = hasher.finish();
        (0..9).map(|place| char::from(LETTERS[(hash / 62_u64.pow(place) % 62) as usize])).collect()
    }
}

impl Syntax {
    /// The mark that opens a call.
    pub fn open(&self) -> &'static str {
        match self {
            Syntax::Named(named) => named.open,
            Syntax::Tags(tags) => tags.open,
            _ => "",
        }
    }

    /// The marks that close a call.
    fn close(&self) -> Vec<&'static str> {
        match self {
            Syntax::Named(named) => named.close.to_vec(),
            Syntax::Tags(tags) if !tags.close.is_empty() => vec![tags.close],
            _ => Vec::new(),
        }
    }

    /// Whether a call in this syntax begins a text; `None` while that is open.
    fn begins(&self, text: &str, tools: &Toolbox) -> Option<bool> {
        let open = self.open();
        if !open.is_empty() {
            return if begins(text, open) { None } else { Some(text.starts_with(open)) };
        }
        match self {
            Syntax::Json | Syntax::JsonByName => json_begins(text),
            Syntax::Named(named) => name_begins(text, named.name_end),
            Syntax::Tags(tags) => tags_begin(text, tags.name_end, tags.key_open, tools),
            Syntax::Python => name_begins(text, &["("]),
            Syntax::Braces { .. } => name_begins(text, &["{"]),
        }
    }

    fn call(&'static self, block_close: &'static [&'static str]) -> Call {
        match self {
            Syntax::Json => Call::Json(JsonCall::new(false)),
            Syntax::JsonByName => Call::Json(JsonCall::new(true)),
            Syntax::Named(named) => Call::Named(NamedCall::new(named)),
            Syntax::Tags(tags) => Call::Tags(TagsCall::new(tags, block_close)),
            Syntax::Python => Call::Literal(LiteralCall::new(Language::Python)),
            Syntax::Braces { quote } => Call::Literal(LiteralCall::new(Language::Braces { quote })),
        }
    }
}

/// Whether a JSON object with a key begins a text.
fn json_begins(text: &str) -> Option<bool> {
    let Some(inner) = text.strip_prefix('{') else {
        return if text.is_empty() { None } else { Some(false) };
    };
    inner.trim_start().chars().next().map(|c| c == '"')
}

/// Whether a name and what follows names begin a text.
fn name_begins(text: &str, ends: &[&str]) -> Option<bool> {
    let is_of_name = |c: char| c.is_alphanumeric() || "_-.:".contains(c);
    let length = text.find(|c| !is_of_name(c)).unwrap_or(text.len());
    let rest = &text[length..];
    if length > 0 && ends.iter().any(|end| rest.starts_with(end)) {
        return Some(true);
    }
    let call_id = "[CALL_ID]";
    let may_end = |end: &&str| begins(rest, end);
    let is_open = length < 200 && (ends.iter().any(may_end) || begins(rest, call_id));
    match rest.strip_prefix(call_id) {
        Some(id) if length > 0 => name_begins(id, ends),
        _ => {
            if is_open {
                None
            } else {
                Some(false)
            }
        }
    }
}

/// Whether a name in front of tags begins a text: a line, or a name with the mark of a key behind it.
fn tags_begin(text: &str, name_end: &str, key_open: &str, tools: &Toolbox) -> Option<bool> {
    let line = text.split(name_end).next().unwrap_or(text);
    let name = line.split('<').next().unwrap_or(line).trim_end();
    if tools.schema(name).is_some() && name.len() < text.len() {
        return Some(true);
    }
    match name_begins(text, &[key_open, name_end]) {
        Some(true) if text[line.len()..].starts_with(name_end) => {
            let after = text[line.len()..].trim_start();
            if begins(after, key_open) { None } else { Some(after.starts_with(key_open)) }
        }
        answer => answer,
    }
}
