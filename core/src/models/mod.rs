//! What models of each kind can do, the usual decoder, the cache of a sequence and its file, and the compiled
//! decode step. This room knows layers; it knows no family, no sampling and no thread.

pub mod cache;
mod cache_file;
pub mod codec;
pub mod codec_stream;
pub mod decode_step;
pub mod decoder;
pub mod detector;
pub mod embedder;
mod estimate;
mod history;
pub mod language;
pub mod network;
pub mod reranker;
pub mod segments;
pub mod sighted;
pub mod speaker;
pub mod speech;
pub mod text_batch;
