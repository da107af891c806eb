//! What a reader of a vocabulary file returns: the stages of a tokenizer pipeline.

use crate::{
    error::Error,
    text::tokenizer::backend::{Model, Normalizer},
};
use tokenizers::{AddedToken, DecoderWrapper, PreTokenizerWrapper};

/// The stages of a tokenizer pipeline and its special tokens.
pub struct Pipeline {
    /// The vocabulary and its segmentation.
    pub model: Model,
    /// Changes text before it is split.
    pub normalizer: Option<Normalizer>,
    /// Splits text before the model segments it.
    pub pre_tokenizer: Option<PreTokenizerWrapper>,
    /// Joins pieces to text.
    pub decoder: Option<DecoderWrapper>,
    /// Tokens that are found in any text before it is normalized.
    pub added: Vec<AddedToken>,
    /// The roles of special tokens (`eos_token`), unless the config names others.
    pub roles: Vec<(&'static str, String)>,
    /// The role of the token at the start of every text, unless `add_bos_token` is set.
    pub start: Option<&'static str>,
    /// The role of the token at the end of every text, unless `add_eos_token` is set.
    pub end: Option<&'static str>,
}

impl Pipeline {
    /// A model without other stages.
    pub fn new(model: Model) -> Self {
        Pipeline {
            model,
            normalizer: None,
            pre_tokenizer: None,
            decoder: None,
            added: Vec::new(),
            roles: Vec::new(),
            start: None,
            end: None,
        }
    }
}

/// The error of a damaged vocabulary file.
pub fn damaged(file: &str, reason: impl Into<String>) -> Error {
    Error::Tokenizer { file: file.into(), reason: reason.into() }
}
