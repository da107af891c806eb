//! Grammars: what the text of an answer and the calls of tools may consist of. llguidance turns a
//! grammar into masks over the vocabulary; what it cannot hold to is an error, and never ignored.

mod calls;
mod compiler;
mod lark;
mod schema;
mod source;
#[cfg(test)]
pub(super) mod tests;

pub(crate) use calls::CallGrammars;
pub(crate) use compiler::{Compiler, Grammar};
pub use source::OutputFormat;
