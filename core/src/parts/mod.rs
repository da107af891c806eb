//! Mechanisms that families compose, one file each.

pub mod activation;
pub mod attention;
pub mod compressed;
pub mod compressed_attention;
pub mod compression;
pub mod conv;
pub mod ffn;
pub mod gated_attention;
pub mod group_indexer;
pub mod hyper_connection;
pub mod kv;
pub mod latent;
pub mod layer_inputs;
pub mod linear;
pub(crate) mod low_rank;
pub mod mamba;
pub mod mla;
pub mod moe;
pub mod norm;
mod quantized_attention;
pub(crate) mod ring;
pub mod rope;
pub mod rounding;
pub mod router;
pub mod seen;
pub mod shared_keys;
pub mod tail_rope;
