//! What a model of text embeddings can do.

use crate::{error::Result, models::text_batch::TextBatch};
use mlx_rs::Array;

/// Text to a vector, for search and comparison.
pub trait Embedder {
    /// How many tokens it has embeddings for.
    fn vocabulary(&self) -> u32;
    /// How many tokens of a text it can read, where its positions are limited.
    fn longest(&self) -> Option<usize> {
        None
    }
    /// How many elements its vectors have.
    fn width(&self) -> usize;
    /// Texts to vectors `[batch, width]` in float32.
    fn embed(&self, batch: &TextBatch) -> Result<Array>;
}

/// Text to one vector a token: the part of an embedder or a reranker before the tokens are pooled.
pub trait TextEncoder {
    /// How many tokens it has embeddings for.
    fn vocabulary(&self) -> u32;
    /// How many tokens of a text it can read, where its positions are limited.
    fn longest(&self) -> Option<usize> {
        None
    }
    /// How many elements the vector of a token has.
    fn width(&self) -> i32;
    /// Texts to `[batch, length, width]`. What padding becomes has no meaning.
    fn encode(&self, batch: &TextBatch) -> Result<Array>;
}
