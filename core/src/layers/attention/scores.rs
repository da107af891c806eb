//! How attention weighs keys.

use mlx_rs::Array;

/// How attention weighs the keys.
#[derive(Clone)]
pub struct Scores {
    /// Factor of the products of queries and keys.
    pub scale: f32,
    /// Logits, one a head, that take part in the softmax and weigh no value.
    pub sinks: Option<Array>,
}
