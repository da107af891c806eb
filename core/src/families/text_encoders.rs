//! What families of text encoders have in common: what the list says of each, the heads that make a
//! reranker of one, and errors about files of sentence-transformers.

use crate::{
    checkpoint::config::{self, Json, Size},
    checkpoint::scope::Scope,
    error::{Error, Result},
    families::Checkpoint,
    layers::{
        attention::bidirectional::Heads, feed_forward::activation::Activation, linear::Linear,
    },
    mlx,
    models::{embedder::TextEncoder, text_batch::TextBatch},
};
use mlx_rs::{Array, ops::indexing::take_along_axis};

/// A family of encoders: each is an embedder with the modules after it, and a reranker with its head.
pub struct TextEncoderFamily {
    /// The values of `model_type` that it reads.
    pub model_types: &'static [&'static str],
    /// The encoder, without any head.
    pub encoder: fn(&Checkpoint) -> Result<Box<dyn TextEncoder>>,
    /// The head of its `ForSequenceClassification`, which is read before the encoder.
    pub classifier: fn(&Checkpoint) -> Result<Classifier>,
}

/// The head of a classifier: the encoder's output `[batch, length, width]` to `[batch, 1]`.
pub type Classifier = Box<dyn Fn(&Array, &TextBatch) -> Result<Array>>;

/// Heads that share the whole width.
///
/// # Errors
/// [`Error::Config`] when they cannot.
pub fn equal_heads(heads: i32, width: i32) -> Result<Heads> {
    if width % heads != 0 {
        let reason = format!("{heads} heads do not divide a width of {width}");
        return Err(Error::config("num_attention_heads", reason));
    }
    Ok(Heads::equal(heads, width / heads))
}

/// The projection to the labels, of which a reranker has one.
///
/// # Errors
/// [`Error::Unsupported`] for another number of labels.
pub fn label(w: &Scope, name: &str, width: i32) -> Result<Linear> {
    let labels = w.at(name).shape("weight").and_then(|shape| shape.first().copied()).unwrap_or(1);
    if labels != 1 {
        let reason = format!(
            "the classifier has {labels} labels; a reranker has one, which says how well a document \
             fits a query"
        );
        return Err(Error::unsupported("id2label", reason));
    }
    w.linear(name, width, 1)
}

/// A head over the first token: a projection, an activation, and the projection to the label.
pub fn first_token(dense: Linear, activation: Activation, label: Linear) -> Classifier {
    Box::new(move |hidden: &Array, _: &TextBatch| {
        label.forward(&activation(&dense.forward(&first(hidden)?)?)?)
    })
}

/// The first token of each row, `[batch, width]`.
pub fn first(hidden: &Array) -> Result<Array> {
    Ok(mlx::slice(hidden, 1, 0, 1)?.squeeze_axes(&[1])?)
}

/// The last token of each row, `[batch, width]`.
pub fn last(hidden: &Array, batch: &TextBatch) -> Result<Array> {
    at(hidden, &batch.last()?)
}

/// The token of each row at a place `[batch, 1]`, `[batch, width]`.
pub fn at(hidden: &Array, place: &Array) -> Result<Array> {
    Ok(take_along_axis(hidden, place.expand_dims(2)?, 1)?.squeeze_axes(&[1])?)
}

/// The width of the stream.
///
/// # Errors
/// [`Error::Config`] when it is missing.
pub fn width(config: &Json) -> Result<i32> {
    Ok(*config::field::<Size>(config, "hidden_size")?)
}

/// An error about a file of sentence-transformers that cannot be right.
pub fn damaged(file: &str, field: impl Into<String>, reason: impl Into<String>) -> Error {
    Error::Config { file: file.into(), field: field.into(), reason: reason.into() }
}

/// An error about a setting of sentence-transformers that is not supported.
pub fn unsupported(file: &str, field: impl Into<String>, reason: impl Into<String>) -> Error {
    Error::Unsupported { file: file.into(), field: field.into(), reason: reason.into() }
}
