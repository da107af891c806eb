//! The arguments of a generation, on their way to the engine thread.

use crate::{
    answer::Reader,
    engine::thread::Engine,
    generate::{Constraint, GenerateOptions},
    processors::PreparedMedia,
    text::Tokenizer,
};

/// How an answer is read and steered.
pub(crate) struct Answering {
    /// Splits the text into the parts of the answer.
    pub reader: Reader,
    pub constraint: Option<Box<dyn Constraint>>,
    /// Whether the text continues the last token of the prompt, with the space between them. A
    /// grammar needs it: its text begins with the first character of the answer.
    pub continues: bool,
}

/// The arguments of a generation.
pub(crate) struct Request {
    pub engine: &'static Engine,
    pub prompt: Vec<u32>,
    /// What the placeholders of the prompt stand for.
    pub media: Vec<PreparedMedia>,
    /// Positions of the prompt at which the session keeps a checkpoint of the state.
    pub marks: Vec<usize>,
    pub dropped_messages: usize,
    pub options: GenerateOptions,
    /// The model that drafts, by its id.
    pub draft: Option<u64>,
    /// The generation takes both when it starts.
    pub answering: Answering,
    pub end_tokens: Vec<u32>,
    pub tokenizer: Option<Tokenizer>,
}

impl Request {
    /// The tokens that end the text.
    pub fn ends(&self) -> Vec<u32> {
        let own = if self.options.ignore_end { &[][..] } else { &self.end_tokens };
        [own, &self.options.end_tokens].concat()
    }
}
