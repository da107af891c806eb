//! The algebra of the residual stream and the mechanisms that families compose: attention,
//! feed-forward networks, recurrences, positions. A layer maps `[batch, length, width]` to itself
//! and reads its own tensors; it knows no family, no sampling and no session.

pub mod algebra;
pub mod attention;
pub mod audio;
pub mod cache_plan;
pub mod embedded;
pub mod feed_forward;
pub mod layer_inputs;
pub mod linear;
pub(crate) mod lora;
pub mod norm;
pub mod position;
pub mod recurrent;
pub mod residual;
pub(crate) mod rotation;
pub mod state;
pub mod step;
pub mod vision;
