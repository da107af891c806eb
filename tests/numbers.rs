//! The numbers: models compute what their references compute.

mod adapters;
mod audio_models;
mod caches;
mod families;
mod prompts;
mod rows;
mod speech;
mod weights;
