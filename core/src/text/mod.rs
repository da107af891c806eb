//! Text in and out: phonemes of English, chat templates, tokenizers, streaming detokenization, stop texts.
//!
//! This room may use `error`, `checkpoint` (to read files) and `media` (what messages carry). It must not
//! know models or arrays.

mod content_form;
mod jinja;
mod message;
mod parts;
pub(crate) mod phonemes;
mod pieces;
mod spoken;
mod stop;
mod stream;
mod template;
mod tokenizer;
mod turn_end;
mod words;

pub(crate) use jinja::Text as RenderedText;
pub use message::{Content, Message, Part, text_only};
pub(crate) use pieces::Pieces;
pub(crate) use spoken::spoken_english;
pub(crate) use stop::StopFilter;
pub use stream::Detokenizer;
pub(crate) use template::DEEPSEEK_V32;
pub(crate) use template::Layout;
pub use template::{ChatTemplate, TemplateOptions};
pub(crate) use tokenizer::SpecialToken;
pub use tokenizer::Tokenizer;
#[cfg(test)]
pub(crate) use tokenizer::tests::with_added;
pub(crate) use turn_end::turn_ends;
pub(crate) use words::words;
