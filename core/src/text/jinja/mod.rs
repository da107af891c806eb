//! Jinja2 as chat templates use it, with the values and the text of Python.
//!
//! The reference is the sandboxed environment of transformers 5 (`utils/chat_template_utils.py`), in which templates
//! change nothing but namespaces. Beyond it, every text knows which of its characters the template wrote ([`Text`]),
//! so that what a user writes never becomes a control token. A render is bounded in steps, depth and length.

mod arguments;
mod conditions;
mod evaluate;
mod expressions;
mod failure;
mod filters;
mod format;
mod functions;
mod interpreter;
mod lexer;
mod members;
mod methods;
mod operators;
mod parser;
mod print;
mod sequences;
mod strftime;
mod text;
mod tree;
mod value;

pub use failure::Failure;
use failure::Result;
use interpreter::Interpreter;
use jiff::civil::DateTime;
use std::collections::HashMap;
#[cfg(test)]
pub use strftime::strftime;
pub use text::Text;
pub use value::{Value, from_json};

/// A parsed template.
#[derive(Debug)]
pub struct Template {
    body: Vec<tree::Statement>,
    literals: Vec<String>,
    names: Vec<String>,
    source: String,
}

impl Template {
    /// Parses a template.
    pub fn parse(source: &str) -> Result<Self> {
        let body = parser::parse(source)?;
        let (mut literals, mut names, mut is_attribute) = (Vec::new(), Vec::new(), false);
        for token in lexer::tokens(source)? {
            let follows_dot = std::mem::take(&mut is_attribute);
            match token.kind {
                lexer::Kind::Data(text) | lexer::Kind::Text(text) => literals.push(text),
                lexer::Kind::Name(name) if !follows_dot => names.push(name),
                lexer::Kind::Symbol(symbol) => is_attribute = symbol == ".",
                _ => {}
            }
        }
        Ok(Template { body, literals, names, source: source.into() })
    }

    /// The names in the template that are no attributes: variables, functions and keywords.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.names.iter().cloned()
    }

    /// The source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template's text outside of tags, or one of its string literals, contains a text.
    pub fn writes(&self, text: &str) -> bool {
        self.literals.iter().any(|literal| literal.contains(text))
    }

    /// Renders with these variables; `now` is the local time.
    pub fn render(&self, variables: &HashMap<String, Value>, now: DateTime) -> Result<Text> {
        Interpreter::new(variables, now).run(&self.body)
    }
}
