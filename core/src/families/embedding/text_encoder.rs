//! Which encoder a checkpoint has. Follows `AutoModel` of transformers.

use super::{bert, causal_encoder, distilbert, embedding_gemma, modernbert, rotary_bert};
use crate::{
    error::Result,
    families::{Checkpoint, model_type, text_encoders::TextEncoderFamily},
    models::embedder::TextEncoder,
};

const ENCODERS: &[TextEncoderFamily] = &[
    bert::ENCODER,
    distilbert::ENCODER,
    modernbert::ENCODER,
    rotary_bert::NOMIC_BERT,
    rotary_bert::GTE,
];

/// The family of encoders that reads a `model_type`, unless it is a language model.
pub fn find(model_type: &str) -> Option<&'static TextEncoderFamily> {
    let name = if model_type == rotary_bert::AUTHORS_TYPE { "gte" } else { model_type };
    ENCODERS.iter().find(|family| family.model_types.contains(&name))
}

/// The encoder of a checkpoint: one of its own, or a language model.
pub fn text_encoder(checkpoint: &Checkpoint) -> Result<Box<dyn TextEncoder>> {
    let config = checkpoint.config.to_value();
    match find(model_type(&config)?) {
        Some(family) => (family.encoder)(checkpoint),
        None if embedding_gemma::is_bidirectional(&config) => embedding_gemma::encoder(checkpoint),
        None => causal_encoder::encoder(checkpoint),
    }
}
