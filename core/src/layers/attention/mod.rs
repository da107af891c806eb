//! Attention mechanisms, the KV cache, and the views and masks that say which keys are visible.

pub mod bidirectional;
pub mod cross;
pub mod gated;
pub mod grouped;
pub(crate) mod indexer;
pub mod kv_cache;
pub mod latent;
pub mod mla;
mod quantized;
pub(crate) mod ring_buffer;
pub mod scores;
pub mod shared_keys;
pub mod sparse_mla;
pub mod view;
