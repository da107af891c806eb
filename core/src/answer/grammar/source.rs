//! What a grammar is written in, before it is compiled.

use crate::{
    answer::grammar::schema::Prepared,
    error::{Error, Result},
};
use llguidance::api::TopLevelGrammar;
use serde_json::Value as Json;

/// What the text of an answer consists of. Thoughts before it are free, and calls of tools have a
/// grammar of their own.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum OutputFormat {
    /// Any text.
    #[default]
    Text,
    /// JSON that is valid under a JSON schema. Properties have the order of the schema. Numbers are
    /// written without an exponent, and those without bounds are below 9.2 · 10¹⁸, except in what
    /// combined schemas (`allOf`, `anyOf`) leave open.
    ///
    /// A schema with keywords that no grammar can hold to, such as `uniqueItems`, `not` and `if`, is
    /// refused. Of the values of `format`, those of dates, times, durations, e-mail addresses, host
    /// names, IP addresses, UUIDs and URIs are known.
    Schema(Json),
    /// Text that as a whole matches a regular expression, in the syntax of the `regex` crate without
    /// anchors and boundaries inside.
    Regex(String),
    /// Text of a grammar in [llguidance's variant](https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md)
    /// of Lark.
    Lark(String),
}

impl OutputFormat {
    /// The grammar, unless it is any text.
    ///
    /// # Errors
    /// [`Error::Grammar`] names the keyword and its place.
    pub(crate) fn source(&self) -> Result<Option<Source>> {
        let source = match self {
            OutputFormat::Text => return Ok(None),
            OutputFormat::Schema(schema) => Source::of_schema(schema)?,
            OutputFormat::Regex(regex) => Source::of_regex(regex)?,
            OutputFormat::Lark(grammar) => Source::of_lark(grammar)?,
        };
        Ok(Some(source))
    }
}

/// A grammar that llguidance can compile.
#[derive(Debug)]
pub(crate) struct Source {
    pub(super) kind: Kind,
    pub(super) grammar: TopLevelGrammar,
    /// The text of the grammar, by which a compiled one is found again.
    pub(super) key: String,
    /// The schema, in which the place of a failure is found.
    schema: Option<Prepared>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Schema,
    Regex,
    Lark,
    Calls,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Schema => "JSON schema",
            Kind::Regex => "regular expression",
            Kind::Lark => "grammar",
            Kind::Calls => "grammar of the tools",
        }
    }

    pub fn refused(self, reason: impl Into<String>) -> Error {
        Error::Grammar { grammar: self.name(), reason: reason.into() }
    }
}

/// The longest regular expression or grammar in bytes, and the deepest nesting of its brackets.
pub(super) const LONGEST: usize = 64 << 10;
const DEEPEST: usize = 100;

impl Source {
    fn of_schema(schema: &Json) -> Result<Self> {
        let prepared = Prepared::of(schema).map_err(|reason| Kind::Schema.refused(reason))?;
        let key = format!("schema {}", prepared.schema);
        let grammar = TopLevelGrammar::from_json_schema(prepared.schema.clone());
        Ok(Source { kind: Kind::Schema, grammar, key, schema: Some(prepared) })
    }

    fn of_regex(regex: &str) -> Result<Self> {
        check_size(Kind::Regex, regex)?;
        // The whole text has to match, so anchors at the ends say nothing.
        let is_one = !regex.contains('|');
        let inner = regex.strip_prefix('^').filter(|_| is_one).unwrap_or(regex);
        let is_anchored = is_one && !inner.ends_with("\\$");
        let inner = inner.strip_suffix('$').filter(|_| is_anchored).unwrap_or(inner);
        if inner.is_empty() {
            return Err(Kind::Regex.refused("it admits no text; write what the answer consists of"));
        }
        let grammar = TopLevelGrammar::from_regex(inner);
        Ok(Source { kind: Kind::Regex, grammar, key: format!("regex {inner}"), schema: None })
    }

    fn of_lark(grammar: &str) -> Result<Self> {
        check_size(Kind::Lark, grammar)?;
        Ok(Source::lark(Kind::Lark, grammar.to_string()))
    }

    pub(super) fn lark(kind: Kind, grammar: String) -> Self {
        let key = format!("lark {grammar}");
        Source { kind, grammar: TopLevelGrammar::from_lark(grammar), key, schema: None }
    }

    pub(super) fn refused(&self, reason: &str) -> Error {
        self.kind.refused(reason)
    }

    /// The JSON pointer of the part of the schema that `fails`.
    pub(super) fn place(&self, fails: impl Fn(TopLevelGrammar) -> bool) -> Option<String> {
        let fails = |part| fails(TopLevelGrammar::from_json_schema(part));
        self.schema.as_ref()?.place(&fails)
    }
}

/// Refuses what is so long or so deeply nested that compiling it could take the stack.
fn check_size(kind: Kind, text: &str) -> Result<()> {
    if text.len() > LONGEST {
        return Err(kind.refused(format!("it is longer than {LONGEST} bytes")));
    }
    let mut depth = 0_usize;
    for c in text.chars() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEEPEST {
            return Err(kind.refused("its brackets are nested too deeply"));
        }
    }
    Ok(())
}
