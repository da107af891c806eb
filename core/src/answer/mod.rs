//! The parts of an assistant's answer: thoughts, text and tool calls. Every model marks them in a wire
//! format of its own. This room recognises the format from the chat template and the tokens of a
//! checkpoint, and splits a stream of text into its parts.
//!
//! It may use `error`, `checkpoint` and `text`. It must not know models, arrays or sampling.

mod call_reader;
mod calls;
mod dialect;
mod formats;
mod input;
mod json;
mod language;
mod literal;
mod marks;
mod reader;
mod reasoning;
mod schema;
mod tags;
#[cfg(test)]
mod tests;
mod tool;

pub(crate) use calls::Part;
pub use calls::{RejectedToolCall, ToolCall, ToolCallDelta};
pub(crate) use dialect::Dialect;
pub use reader::Phase;
pub(crate) use reader::Reader;
pub use reasoning::{Effort, Reasoning};
pub(crate) use tool::Toolbox;
pub use tool::{Tool, ToolChoice};
