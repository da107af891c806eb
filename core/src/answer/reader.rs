//! Splits the text of an answer into its parts as it arrives.

use crate::answer::{
    Dialect, Part, Toolbox,
    call_reader::{CallReader, Calls, Outcome},
    dialect::Messages,
    formats::{Format, Kind},
    input::Input,
    marks::{Found, find},
};
use std::{collections::HashSet, sync::Arc};

/// Where in an answer the next token stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Before the first text, where thoughts may begin.
    Beginning,
    /// In thoughts, by the index of their marks; none in a message.
    Thoughts(Option<usize>),
    /// In the header of a message.
    Header,
    /// In the text that answers.
    Text,
    /// In a block of calls.
    Calls,
}

/// Splits the text of one answer into its parts. The default reader knows no marks.
///
/// Thoughts are given out without the line breaks at their ends, and the text after them without
/// those at its beginning, as chat templates do with earlier turns.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    dialect: Arc<Dialect>,
    tools: Option<Arc<Toolbox>>,
    /// Whether text that has begun is text to its end, whatever marks it seems to contain.
    is_literal: bool,
    place: Place,
    input: Input,
    /// What the last piece of text has of the phase that it began.
    begun: String,
    /// Whether text or thoughts have begun where [`Reader::place`] is.
    is_begun: bool,
    /// Space that is given out only if more of the same part follows.
    held: String,
    calls: usize,
    salt: u64,
}

#[derive(Debug)]
enum Place {
    Text {
        /// Whether line breaks at the beginning are left out.
        trims: bool,
    },
    /// Thoughts, up to a mark of the dialect by its index, or to the end of their message.
    Thoughts(Option<usize>),
    Header,
    Calls(Box<CallReader>),
}

impl Default for Place {
    fn default() -> Self {
        Place::Text { trims: false }
    }
}

/// What a mark in text or thoughts means.
#[derive(Clone, Copy, Debug)]
enum Mark {
    Open(usize),
    Close,
    Calls(&'static Format),
    /// The end of a message.
    End,
    /// The beginning of a header, which belongs to it.
    Start,
    /// A mark that closes what is not open.
    Stray,
    Ignored,
}

impl Reader {
    /// A reader of the answer to a prompt that ends with this header of the answer.
    pub fn new(
        dialect: Arc<Dialect>,
        tools: Option<Arc<Toolbox>>,
        header: &str,
        salt: u64,
    ) -> Self {
        let mut reader = Reader { dialect, tools, salt, ..Reader::default() };
        let dialect = reader.dialect.clone();
        if let Some(messages) = &dialect.messages {
            reader.place = Place::Header;
            reader.input.push(&header[header.rfind(messages.start).unwrap_or(header.len())..]);
            reader.advance_all();
        } else if let Some(open) = dialect.opened(header) {
            reader.place = Place::Thoughts(Some(open));
        } else if let Some(open) = reader.format().and_then(|format| {
            format.open.iter().find(|open| format.close.is_empty() && header.ends_with(**open))
        }) {
            reader.input.push(open);
        }
        reader
    }

    /// Reads text that has begun as it is: it follows a grammar, which knows no marks.
    pub fn literal(mut self) -> Self {
        self.is_literal = true;
        self
    }

    /// The special tokens of which marks consist. Decoding must not leave them out.
    pub fn special_tokens(&self) -> &HashSet<u32> {
        self.dialect.tokens()
    }

    /// The next text, and the parts that it completes.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        self.begun.clear();
        self.input.push(text);
        self.advance_all()
    }

    /// The parts that the end of the answer completes.
    pub fn finish(&mut self) -> Vec<Part> {
        self.input.end();
        let mut parts = self.advance_all();
        if let Place::Text { .. } = self.place
            && !self.held.is_empty()
        {
            parts.push(Part::Text(std::mem::take(&mut self.held)));
        }
        parts
    }

    /// Where the next token stands.
    pub fn phase(&self) -> Phase {
        match self.place {
            Place::Text { .. } if self.is_begun => Phase::Text,
            Place::Text { .. } => Phase::Beginning,
            Place::Thoughts(marks) => Phase::Thoughts(marks),
            Place::Header => Phase::Header,
            Place::Calls(_) => Phase::Calls,
        }
    }

    /// What the last piece of text has of the phase that it began.
    pub fn begun(&self) -> &str {
        &self.begun
    }

    fn format(&self) -> Option<&'static Format> {
        self.tools.as_ref().and(self.dialect.format)
    }

    fn advance_all(&mut self) -> Vec<Part> {
        let mut parts = Vec::new();
        while match self.place {
            Place::Text { .. } | Place::Thoughts(_) => self.advance_text(&mut parts),
            Place::Header => self.advance_header(),
            Place::Calls(_) => self.advance_calls(&mut parts),
        } {}
        parts
    }

    /// Gives out text or thoughts up to the next mark. Returns whether there was one.
    fn advance_text(&mut self, parts: &mut Vec<Part>) -> bool {
        if self.begins_plain_calls() {
            return true;
        }
        let dialect = self.dialect.clone();
        let marks = if self.is_literal && self.phase() == Phase::Text {
            Vec::new()
        } else {
            self.marks(&dialect)
        };
        let (texts, marks): (Vec<&str>, Vec<Mark>) = marks.into_iter().unzip();
        let found = find(self.input.rest(), &texts, self.input.ended());
        let (Found::Mark { at, .. } | Found::Nothing { before: at }) = found;
        let before = self.input.take(at);
        self.give(&before, parts);
        let Found::Mark { index, .. } = found else { return false };
        self.input.taken();
        let text = if matches!(marks[index], Mark::Start) {
            String::new()
        } else {
            self.input.take(texts[index].len())
        };
        match marks[index] {
            // A thought, or a tag that people write about.
            Mark::Open(open) if dialect.thoughts[open].anywhere || !self.is_begun => {
                self.enter(Place::Thoughts(Some(open)), parts);
            }
            Mark::Open(_) => self.give(&text, parts),
            Mark::Close => self.enter(Place::Text { trims: true }, parts),
            Mark::Calls(format) => self.enter_calls(format, text.len()),
            Mark::End | Mark::Start => self.enter(Place::Header, parts),
            Mark::Stray if self.is_begun => self.give(&text, parts),
            Mark::Stray | Mark::Ignored => {
                if let Place::Text { trims } = &mut self.place {
                    *trims = *trims || !self.is_begun;
                }
            }
        }
        true
    }

    /// The marks that end the text or the thoughts here.
    fn marks<'a>(&self, dialect: &'a Dialect) -> Vec<(&'a str, Mark)> {
        let mut marks: Vec<(&str, Mark)> = Vec::new();
        let format = self.format();
        let open = format
            .into_iter()
            .flat_map(|format| format.open.iter().map(move |open| (*open, Mark::Calls(format))));
        match self.place {
            Place::Thoughts(Some(index)) => {
                marks.push((&dialect.thoughts[index].close, Mark::Close));
                marks.extend(open.filter(|_| format.is_some_and(|f| f.kind == Kind::EndsThoughts)));
            }
            _ => {
                let opens = dialect.thoughts.iter().enumerate();
                if matches!(self.place, Place::Text { .. }) {
                    marks.extend(opens.flat_map(|(at, thoughts)| {
                        [(&*thoughts.open, Mark::Open(at)), (&*thoughts.close, Mark::Stray)]
                    }));
                    marks.extend(open);
                }
                marks.extend(dialect.ignored.iter().map(|ignored| (*ignored, Mark::Ignored)));
            }
        }
        if let Some(messages) = &dialect.messages {
            marks.extend(messages.ends.iter().map(|end| (*end, Mark::End)));
            marks.extend([(messages.start, Mark::Start), (messages.channel, Mark::Start)]);
        }
        marks
    }

    /// Whether a call without marks begins here.
    fn begins_plain_calls(&mut self) -> bool {
        let Some(format) = self.format().filter(|format| format.kind == Kind::Plain) else {
            return false;
        };
        let is_beginning = matches!(self.place, Place::Text { .. }) && !self.is_begun;
        let first = self.input.rest().trim_start().chars().next();
        if !is_beginning || self.is_literal || !self.dialect.calls_are_bare || first.is_none() {
            return false;
        }
        if !first.is_some_and(|c| "{[".contains(c)) {
            return false;
        }
        self.input.taken();
        self.is_begun = true;
        self.place = Place::Calls(Box::new(CallReader::new(format)));
        true
    }

    fn enter(&mut self, place: Place, parts: &mut Vec<Part>) {
        if let (Place::Text { .. }, Place::Header) = (&self.place, &place) {
            let held = std::mem::take(&mut self.held);
            parts.extend(Some(held).filter(|held| !held.is_empty()).map(Part::Text));
        }
        self.place = place;
        self.is_begun = false;
        self.held.clear();
        self.note_begun();
    }

    fn note_begun(&mut self) {
        self.begun = self.input.rest().to_string();
    }

    /// Enters a block of calls whose opening mark of this length was taken. A mark that is the
    /// beginning of the call itself is left to it.
    fn enter_calls(&mut self, format: &'static Format, length: usize) {
        if format.opens_call() {
            self.input.put_back(length);
        }
        self.place = Place::Calls(Box::new(CallReader::new(format)));
        self.note_begun();
    }

    /// Gives out text or thoughts without the space around them that belongs to the marks.
    fn give(&mut self, text: &str, parts: &mut Vec<Part>) {
        let is_thought = matches!(self.place, Place::Thoughts(_));
        let trims = is_thought || matches!(self.place, Place::Text { trims: true });
        let mut text = std::mem::take(&mut self.held) + text;
        if trims && !self.is_begun {
            text = text.trim_start_matches('\n').to_string();
        }
        let kept = match is_thought {
            true => text.trim_end_matches('\n').len(),
            // Space before a call belongs to the call.
            false if self.format().is_some() => text.trim_end().len(),
            false => text.len(),
        };
        let is_blank = !is_thought && !self.is_begun && text.trim().is_empty();
        let kept = if is_blank && !self.dialect.thoughts.is_empty() { 0 } else { kept };
        self.held = text.split_off(kept);
        if trims && text.is_empty() && !self.is_begun {
            // Line breaks at the beginning are left out, spaces are not.
            self.held = self.held.trim_start_matches('\n').to_string();
        }
        if text.is_empty() {
            return;
        }
        self.is_begun = self.is_begun || !text.trim().is_empty();
        match (is_thought, parts.last_mut()) {
            (true, Some(Part::Reasoning(last))) | (false, Some(Part::Text(last))) => *last += &text,
            (true, _) => parts.push(Part::Reasoning(text)),
            (false, _) => parts.push(Part::Text(text)),
        }
    }

    fn advance_calls(&mut self, parts: &mut Vec<Part>) -> bool {
        let (Place::Calls(reader), Some(tools)) = (&mut self.place, &self.tools) else {
            return false;
        };
        let mut calls = Calls { tools, parts, count: &mut self.calls, salt: self.salt };
        match reader.advance(&mut self.input, &mut calls) {
            Outcome::More => return false,
            Outcome::Closed => {
                self.held.clear();
                self.place = Place::Text { trims: true };
                self.is_begun = false;
                self.note_begun();
            }
            Outcome::Text(text) => {
                self.place = Place::Text { trims: false };
                self.is_begun = true;
                self.give(&text, parts);
            }
        }
        true
    }

    /// Reads the header of a message: who writes what to whom. Returns whether it was complete.
    fn advance_header(&mut self) -> bool {
        let dialect = self.dialect.clone();
        let Some(messages) = &dialect.messages else { return false };
        let rest = self.input.rest();
        let (length, is_header) = messages.header_start(rest);
        let body = rest.find(messages.body).filter(|_| is_header);
        self.is_begun = false;
        self.held.clear();
        let Some(end) = body else {
            if is_header {
                if self.input.ended() {
                    self.input.take(self.input.rest().len());
                }
                return false;
            }
            // A message without a header.
            self.input.take(length);
            self.place = Place::Text { trims: false };
            return true;
        };
        let header = self.input.take(end);
        self.input.take(messages.body.len());
        self.input.taken();
        let recipient = Messages::recipient(&header);
        let function = recipient.and_then(|recipient| recipient.strip_prefix("functions."));
        self.place = match (function, self.format()) {
            (Some(name), Some(format)) if format.open.is_empty() => {
                Place::Calls(Box::new(CallReader::message(format, name)))
            }
            _ if Messages::is_thought(&header) => Place::Thoughts(None),
            _ => Place::Text { trims: false },
        };
        self.note_begun();
        true
    }
}
