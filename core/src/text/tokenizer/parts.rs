//! The parts of a pipeline, as the files of a vocabulary give them.

use crate::{
    error::Error,
    text::tokenizer::backend::{Model, Normalizer},
};
use tokenizers::{AddedToken, DecoderWrapper, PreTokenizerWrapper};

/// What a file says of a pipeline.
pub struct Parts {
    /// The vocabulary.
    pub model: Model,
    /// What happens to text first.
    pub normalizer: Option<Normalizer>,
    /// How it is cut before the vocabulary is asked.
    pub pre_tokenizer: Option<PreTokenizerWrapper>,
    /// How pieces are joined.
    pub decoder: Option<DecoderWrapper>,
    /// Pieces that are found in any text.
    pub added: Vec<AddedToken>,
    /// The roles of pieces, where the config does not name others.
    pub roles: Vec<(&'static str, String)>,
    /// The role of the token that every text begins with, where the config does not say.
    pub begin: Option<&'static str>,
    /// The role of the token that every text ends with.
    pub end: Option<&'static str>,
}

impl Parts {
    /// A model and nothing around it.
    pub fn new(model: Model) -> Self {
        Parts {
            model,
            normalizer: None,
            pre_tokenizer: None,
            decoder: None,
            added: Vec::new(),
            roles: Vec::new(),
            begin: None,
            end: None,
        }
    }
}

/// The error for a file that is not as it should be.
pub fn damaged(file: &str, reason: impl Into<String>) -> Error {
    Error::Tokenizer { file: file.into(), reason: reason.into() }
}
