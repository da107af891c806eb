//! The parts of an assistant's answer: thoughts, text and tool calls. Every model marks them in a wire
//! format of its own. This room recognises the format from the chat template and the tokens of a
//! checkpoint, and splits a stream of text into its parts. Grammars say what texts and calls may consist of.
//!
//! It may use `error`, `checkpoint` and `text`. It must not know models, arrays or sampling.

mod call_reader;
mod calls;
mod dialect;
mod formats;
mod grammar;
mod input;
mod json;
mod language;
mod literal;
mod marks;
mod partial;
mod reader;
mod reasoning;
mod schema;
mod string_rules;
mod tags;
#[cfg(test)]
mod tests;
mod tool;

pub(crate) use calls::Part;
pub use calls::{RejectedToolCall, ToolCall, ToolCallDelta};
pub(crate) use dialect::Dialect;
pub use grammar::OutputFormat;
pub(crate) use grammar::{CallGrammars, Compiler, Grammar};
pub use partial::partial_json;
pub use reader::Phase;
pub(crate) use reader::Reader;
pub use reasoning::{Effort, Reasoning};
pub(crate) use tool::Toolbox;
pub use tool::{Tool, ToolChoice};
