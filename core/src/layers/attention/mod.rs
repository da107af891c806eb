//! Attention, its KV cache, and the ways to see only a part of it.

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
