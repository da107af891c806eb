//! What a model that orders documents can do.

use crate::{error::Result, models::text_batch::TextBatch};
use mlx_rs::Array;

/// A query and a document, as one text, to a score of how well they fit.
pub trait Reranker {
    /// How many tokens it has embeddings for.
    fn vocabulary(&self) -> u32;
    /// How many tokens of a text it can read, where its positions are limited.
    fn longest(&self) -> Option<usize> {
        None
    }
    /// Texts to scores `[batch]` in float32, before any activation.
    fn score(&self, batch: &TextBatch) -> Result<Array>;
}
