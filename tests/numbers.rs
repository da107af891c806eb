//! The numbers: models compute what their references compute.

mod adapters;
mod audio_models;
mod caches;
mod config;
mod embeddings;
mod families;
mod pictures;
mod processors;
mod prompts;
mod rows;
mod speaking;
mod speculation;
mod speech;
mod transformers;
mod weights;

#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
