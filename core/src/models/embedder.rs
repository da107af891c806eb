//! What a model of text embeddings can do.

use crate::error::Result;
use mlx_rs::Array;

/// Text to a vector, for search and comparison.
pub trait Embedder {
    /// How many tokens it has embeddings for.
    fn vocabulary(&self) -> u32;
    /// Token ids `[batch, length]` of texts of equal length to vectors `[batch, width]`.
    fn embed(&self, ids: &Array) -> Result<Array>;
}
