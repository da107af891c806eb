//! Classifiers with one label as rerankers: any encoder, or a language model, with the head of its
//! `ForSequenceClassification`. Follows `CrossEncoder` of sentence-transformers 6.

use super::{
    causal_encoder,
    text_encoder::{find, text_encoder},
};
use crate::{
    families::{Checkpoint, model_type, prelude::*, text_encoders::Classifier},
    models::{embedder::TextEncoder, reranker::Reranker, text_batch::TextBatch},
};

struct CrossEncoder {
    encoder: Box<dyn TextEncoder>,
    classifier: Classifier,
}

pub fn reranker(checkpoint: &Checkpoint) -> Result<Box<dyn Reranker>> {
    let config = checkpoint.config;
    // Which activation the scores get is read beside the tokenizer.
    for settings in ["sentence_transformers", "sbert_ce_default_activation_function"] {
        config.get(settings).into_iter().for_each(Json::mark_all);
    }
    let classifier = match find(model_type(&config.to_value())?) {
        Some(family) => (family.classifier)(checkpoint)?,
        None => causal_encoder::classifier(checkpoint)?,
    };
    Ok(Box::new(CrossEncoder { encoder: text_encoder(checkpoint)?, classifier }))
}

impl Reranker for CrossEncoder {
    fn vocabulary(&self) -> u32 {
        self.encoder.vocabulary()
    }

    fn longest(&self) -> Option<usize> {
        self.encoder.longest()
    }

    fn score(&self, batch: &TextBatch) -> Result<Array> {
        let scores = (self.classifier)(&self.encoder.encode(batch)?, batch)?;
        Ok(scores.reshape(&[-1])?.as_dtype(Dtype::Float32)?)
    }
}
