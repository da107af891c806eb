//! Language models as encoders of text, whose last token stands for the text, as in Qwen3-Embedding.
//! Follows `transformers`.

use crate::{
    families::{
        Checkpoint,
        prelude::*,
        text,
        text_encoders::{Classifier, at, label, width},
    },
    models::{decode_step::prefill, embedder::TextEncoder, text_batch::TextBatch},
};

/// The place of the body of a language model. Its tensors stand without a prefix where the model
/// was saved without its head; they get one.
pub fn body(w: &Scope) -> Scope {
    w.ignore("lm_head");
    if w.has_below("layers") {
        w.nest("model");
    }
    w.at("model")
}

struct Causal {
    model: Box<dyn LanguageModel>,
    width: i32,
}

/// A language model without its head.
pub fn encoder(checkpoint: &Checkpoint) -> Result<Box<dyn TextEncoder>> {
    body(checkpoint.weights);
    let config = checkpoint.config.with("tie_word_embeddings", true);
    checkpoint.config.get("tie_word_embeddings");
    let model = language(checkpoint, &config)?;
    Ok(Box::new(Causal { model, width: width(&config)? }))
}

/// The language model, by the family of its `model_type`.
///
/// # Errors
/// Those of the family.
pub fn language(checkpoint: &Checkpoint, config: &Json) -> Result<Box<dyn LanguageModel>> {
    let kind: String = config::field(config, "model_type")?;
    text::language(&kind, config, checkpoint.weights)
}

/// All tokens of texts `[batch, length, width]`; a token sees those before it only, so padding after
/// the texts changes nothing.
pub fn hidden(model: &dyn LanguageModel, batch: &TextBatch) -> Result<Array> {
    let mut cache = model.cache(&CachePlan::new(batch.length() as usize));
    prefill(model, &batch.ids, &mut cache)
}

impl TextEncoder for Causal {
    fn vocabulary(&self) -> u32 {
        self.model.vocabulary()
    }

    fn width(&self) -> i32 {
        self.width
    }

    fn encode(&self, batch: &TextBatch) -> Result<Array> {
        hidden(&*self.model, batch)
    }
}

/// The head of a classifier: a projection of the last token. The token that pads texts is none, even
/// where it ends a text.
pub fn classifier(checkpoint: &Checkpoint) -> Result<Classifier> {
    let label = label(checkpoint.weights, "score", width(checkpoint.config)?)?;
    let padding: Option<i32> = config::field(checkpoint.config, "pad_token_id")?;
    Ok(Box::new(move |hidden: &Array, batch: &TextBatch| {
        let last = padding.map_or_else(|| batch.last(), |id| batch.last_other_than(id))?;
        label.forward(&at(hidden, &last)?)
    }))
}
