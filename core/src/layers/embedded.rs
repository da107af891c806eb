//! Tokens as the start of the residual stream.

use mlx_rs::Array;

/// Tokens and the residual stream that they start.
pub struct Embedded {
    /// Token ids `[batch, length]`.
    pub ids: Array,
    /// The stream `[batch, length, width]`.
    pub hidden: Array,
}
