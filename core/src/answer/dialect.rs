//! The dialect of a checkpoint: how its model marks thoughts and calls, found from its chat template
//! and its tokens.

use crate::answer::{
    formats::{self, BARE, FORMATS, Format, HARMONY, Kind},
    marks::{AddedToken, ThoughtMarks, thought_marks},
};
use crate::text::{ChatTemplate, Message, TemplateOptions, Tokenizer};
use serde_json::{Value as Json, json};
use std::collections::{BTreeSet, HashSet};

/// Tags around the text of an answer beside those around its thoughts.
const IGNORED: [&str; 14] = [
    "<answer>",
    "</answer>",
    "<response>",
    "</response>",
    "<|begin_of_solution|>",
    "<|end_of_solution|>",
    "<|START_RESPONSE|>",
    "<|END_RESPONSE|>",
    "<|open|>response<|sep|>",
    "<|close|>response<|sep|>",
    "<|close|>message<|sep|>",
    ">>>all\n",
    "<|python_start|>",
    "<|python_end|>",
];

/// How the model of a checkpoint writes its answers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dialect {
    pub(crate) thoughts: Vec<ThoughtMarks>,
    /// The marks of messages, for models whose answers are several of them.
    pub(crate) messages: Option<Messages>,
    /// The format of calls.
    pub(crate) format: Option<&'static Format>,
    /// Whether calls stand at the beginning of an answer without marks.
    pub(super) calls_are_bare: bool,
    /// Marks around text that are left out.
    pub(super) ignored: Vec<&'static str>,
    /// The special tokens of which the marks consist.
    pub(super) tokens: HashSet<u32>,
    /// The variables that the chat template reads.
    pub(super) variables: BTreeSet<String>,
    /// The source of the chat template.
    pub(super) source: String,
}

/// The marks of answers that consist of messages: thoughts, calls, and text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Messages {
    pub start: &'static str,
    /// What else a header may begin with.
    pub channel: &'static str,
    /// The end of a header.
    pub body: &'static str,
    pub ends: &'static [&'static str],
}

impl Messages {
    /// Harmony, the format of GPT-OSS.
    const HARMONY: Messages = Messages {
        start: "<|start|>",
        channel: "<|channel|>",
        body: "<|message|>",
        ends: &["<|end|>", "<|return|>", "<|call|>"],
    };
    /// Messages of Muse, whose thoughts are messages to itself.
    const MUSE: Messages = Messages { ends: &["<|eom|>", "<|eot|>"], ..Messages::HARMONY };

    fn of(has: impl Fn(&str) -> bool) -> Option<Self> {
        [Messages::HARMONY, Messages::MUSE].into_iter().find(|messages| {
            let own = if *messages == Messages::HARMONY { messages.channel } else { "<|eom|>" };
            has(messages.start) && has(messages.body) && has(own)
        })
    }

    /// To whom a message goes.
    pub fn recipient(header: &str) -> Option<&str> {
        let (_, recipient) = header.rsplit_once("to=")?;
        recipient.split(|c: char| c.is_whitespace() || c == '<').next()
    }

    /// Whether a message is a thought.
    pub fn is_thought(header: &str) -> bool {
        Messages::recipient(header) == Some("self") || header.contains("analysis")
    }

    /// The length of the role at the beginning of a text, and whether the text may begin a header. The
    /// role alone is none: a model may go on with text.
    pub fn header_start(&self, text: &str) -> (usize, bool) {
        const LONGEST: usize = 300;
        const ROLE: &str = "assistant";
        let begun = |rest: &str, start: &str| rest.starts_with(start) || start.starts_with(rest);
        let rest = text.strip_prefix(self.start).unwrap_or(text);
        let rest = rest.strip_prefix(ROLE).unwrap_or(rest);
        let header = rest.trim_start();
        let starts = [self.start, self.channel, "to=", self.body, ROLE, "<|constrain|>"];
        let length = header.find(self.body).unwrap_or(header.len());
        let is_header = length < LONGEST && starts.into_iter().any(|start| begun(header, start));
        let mark = if rest.starts_with(self.channel) { self.channel.len() } else { 0 };
        (text.len() - rest.len() + mark, is_header)
    }
}

impl Dialect {
    /// The dialect of a checkpoint. `tool_parser_type` names its format of calls.
    pub fn of(
        template: Option<&ChatTemplate>,
        tokenizer: Option<&Tokenizer>,
        tool_parser_type: Option<&str>,
    ) -> Self {
        let source = template.map(ChatTemplate::source).unwrap_or_default();
        let tokens = tokenizer.map(added_tokens).unwrap_or_default();
        let has = |text: &str| {
            source.contains(text) || tokens.iter().any(|(_, token)| token.text == text)
        };
        let messages = Messages::of(has);
        let added: Vec<AddedToken> = tokens.iter().map(|(_, token)| token.clone()).collect();
        let thoughts = match messages {
            Some(_) => Vec::new(),
            None => thought_marks(&source, &added),
        };
        let variables = template.map(ChatTemplate::names).unwrap_or_default();
        let mut dialect = Dialect { thoughts, messages, variables, source, ..Dialect::default() };
        dialect.find_format(template, &added, tool_parser_type);
        let ignored = IGNORED.into_iter().filter(|mark| {
            let begins =
                |token: &AddedToken| token.text.starts_with("<|") && mark.starts_with(&token.text);
            dialect.source.contains(mark.trim_end()) || added.iter().any(begins)
        });
        let ignored: Vec<_> = ignored.collect();
        let is_needed = !dialect.thoughts.is_empty() || dialect.format.is_some();
        dialect.ignored = if is_needed { ignored } else { Vec::new() };
        let marks = dialect.marks();
        let own = |token: &AddedToken| {
            token.special && marks.iter().any(|mark| mark.contains(&token.text))
        };
        let own = tokens.iter().filter(|(_, token)| own(token)).map(|(id, _)| *id).collect();
        dialect.tokens = own;
        dialect
    }

    /// The format of calls: the named one, or that in which the template renders a call, or that whose
    /// marks the template or the vocabulary has.
    fn find_format(
        &mut self,
        template: Option<&ChatTemplate>,
        added: &[AddedToken],
        tool_parser_type: Option<&str>,
    ) {
        if let Some(format) = tool_parser_type.and_then(formats::by_name) {
            self.format = Some(format);
            return;
        }
        let rendered = template.and_then(rendered_call);
        let is_distinct = |open: &&str| open.starts_with("<function=");
        let is_marked = |format: &&'static Format| {
            format.kind != Kind::Plain || format.open.iter().any(is_distinct)
        };
        let in_source = || formats::in_text(&self.source).filter(is_marked);
        let has = |open: &str| added.iter().any(|token| open.contains(&token.text));
        let by_tokens = || {
            let mut known = FORMATS.iter().filter(is_marked);
            known.find(|format| format.open.iter().any(|open| has(open)))
        };
        let bare = || {
            let call = rendered.as_deref()?;
            let tag = self.source.contains("<|python_tag|>") || has("<|python_tag|>");
            let is_json = call.contains("\"name\"") || call.contains(&format!("{PROBE}("));
            is_json.then(|| if tag { formats::by_name("llama3") } else { Some(&BARE) })?
        };
        if self.messages == Some(Messages::HARMONY) {
            self.format = Some(&HARMONY);
            return;
        }
        let format = rendered.as_deref().and_then(formats::in_text).or_else(in_source);
        let fallback = || self.knows_tools().then_some(&BARE);
        let format = format.or_else(bare).or_else(by_tokens).or_else(fallback);
        self.calls_are_bare =
            format.is_some_and(|format| ["llama3", "generic_json"].contains(&format.names[0]));
        self.format = format;
    }

    /// The texts of all marks.
    fn marks(&self) -> Vec<&str> {
        let thoughts = self.thoughts.iter().flat_map(|marks| [&*marks.open, &*marks.close]);
        let mut all: Vec<&str> = thoughts.chain(self.ignored.iter().copied()).collect();
        if let Some(messages) = &self.messages {
            all.extend([messages.start, messages.channel, messages.body, "<|constrain|>"]);
            all.extend(messages.ends);
        }
        if let Some(format) = self.format {
            all.extend(format.marks());
        }
        all
    }

    /// The special tokens of which the marks consist. Decoding must not leave them out.
    pub fn tokens(&self) -> &HashSet<u32> {
        &self.tokens
    }

    /// The thoughts that the header of an answer opens and does not close.
    pub(super) fn opened(&self, header: &str) -> Option<usize> {
        let is_open = |marks: &ThoughtMarks| {
            let open = header.rfind(&marks.open);
            open.is_some_and(|open| header.rfind(&marks.close).is_none_or(|close| close < open))
        };
        self.thoughts.iter().position(is_open)
    }

    /// The text that closes thoughts for the model, so that it goes on with its answer.
    pub fn closing(&self, marks: Option<usize>) -> String {
        let Some(close) = marks.and_then(|marks| self.thoughts.get(marks)).map(|m| &m.close) else {
            let muse = self.messages.as_ref().is_some_and(|messages| *messages == Messages::MUSE);
            return match muse {
                true => "<|eom|><|start|>assistant to=user<|message|>".into(),
                false => "<|end|><|start|>assistant<|channel|>final<|message|>".into(),
            };
        };
        // As many line breaks as the template writes, as escapes or as they are.
        let source = self.source.replace("\\n", "\n");
        let breaks = |text: &str| text.chars().take_while(|c| *c == '\n').count();
        let places = source.match_indices(close.as_str()).map(|(at, _)| {
            let before: String = source[..at].chars().rev().take(2).collect();
            (breaks(&before), breaks(&source[at + close.len()..]))
        });
        let (before, after) = places.max().unwrap_or((1, 2));
        let response = "<|open|>response<|sep|>";
        let opened = self.ignored.iter().find(|mark| **mark == response).copied();
        let [before, after] = [before, after].map(|count| "\n".repeat(count.min(2)));
        format!("{before}{close}{after}{}", opened.unwrap_or_default())
    }

    /// Whether the header of an answer tells anything about the answer.
    pub fn has_headers(&self) -> bool {
        !self.thoughts.is_empty() || self.messages.is_some() || self.format.is_some()
    }

    /// Whether thoughts can be told from text.
    pub fn has_thoughts(&self) -> bool {
        !self.thoughts.is_empty() || self.messages.is_some()
    }

    /// The texts that may open thoughts: marks, or headers of messages.
    pub fn thought_openings(&self) -> Vec<String> {
        match &self.messages {
            Some(messages) if *messages == Messages::MUSE => headers("to=self<|message|>"),
            Some(_) => headers("<|channel|>analysis<|message|>"),
            None => self.thoughts.iter().map(|marks| marks.open.clone()).collect(),
        }
    }

    /// The headers of messages that may stand before a text.
    pub fn text_openings(&self) -> Vec<String> {
        match &self.messages {
            Some(messages) if *messages == Messages::MUSE => headers("to=user<|message|>"),
            Some(_) => headers("<|channel|>final<|message|>"),
            None => Vec::new(),
        }
    }

    /// A text that opens thoughts.
    pub fn opening(&self) -> String {
        match (&self.messages, self.thoughts.first()) {
            (Some(messages), _) if *messages == Messages::MUSE => {
                "<|start|>assistant to=self<|message|>".into()
            }
            (Some(_), _) => "<|start|>assistant<|channel|>analysis<|message|>".into(),
            (None, Some(marks)) => marks.open.clone(),
            (None, None) => String::new(),
        }
    }

    /// Whether the chat template reads a variable.
    pub fn reads(&self, variable: &str) -> bool {
        self.variables.contains(variable)
    }

    /// Whether the template tells the model about tools.
    pub fn knows_tools(&self) -> bool {
        self.variables.contains("tools") || self.variables.contains("custom_tools")
    }
}

/// A header behind the start of a message, which the template writes for the first one, and with it.
fn headers(header: &str) -> Vec<String> {
    vec![header.to_string(), format!("<|start|>assistant{header}")]
}

/// The name of the tool in a rendered call.
const PROBE: &str = "probe_tool";

/// How a template renders a call.
fn rendered_call(template: &ChatTemplate) -> Option<String> {
    let parameters = json!({"type": "object", "properties": {"probe_key": {"type": "string"}}});
    let function = json!({"name": PROBE, "description": "x", "parameters": parameters});
    let tool = json!({"type": "function", "function": function});
    let arguments = json!({"probe_key": "probe value"});
    let call = json!({"id": "abcdefghi", "type": "function",
                      "function": {"name": PROBE, "arguments": arguments}});
    let with = |content: Option<&str>| {
        let content = content.map_or(Json::Null, Json::from);
        let json = json!([{"role": "user", "content": "x"},
                          {"role": "assistant", "content": content, "tool_calls": [call]}]);
        let messages: Vec<Message> = serde_json::from_value(json).ok()?;
        let options = TemplateOptions::default().add_generation_prompt(false);
        let options = options.tools(vec![tool.clone()]);
        let text = template.render(&messages, &options).ok()?;
        // The definitions of the tools may hold an example of a call, so only the answer counts.
        let before = template.render(&messages[..1], &options).unwrap_or_default();
        let shared = text.char_indices().zip(before.chars()).find(|((_, a), b)| a != b);
        let start = shared.map_or(before.len().min(text.len()), |((at, _), _)| at);
        let answer = text.get(start..)?.to_string();
        answer.contains(PROBE).then_some(answer)
    };
    with(Some("")).or_else(|| with(None))
}

fn added_tokens(tokenizer: &Tokenizer) -> Vec<(u32, AddedToken)> {
    let token = |(id, text, special)| (id, AddedToken { text, special });
    tokenizer.added_tokens().into_iter().map(token).collect()
}
