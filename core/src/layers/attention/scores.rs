//! The scale of attention scores, and attention sinks.

use mlx_rs::Array;

/// The scale of attention scores, and attention sinks.
#[derive(Clone)]
pub struct Scores {
    /// Factor of the products of queries and keys.
    pub scale: f32,
    /// Attention sinks: logits, one a head, that take part in the softmax and weigh no value.
    pub sinks: Option<Array>,
}
