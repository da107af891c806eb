//! The numbers: models compute what their references compute.

mod adapters;
mod caches;
mod config;
mod families;
mod pictures;
mod processors;
mod prompts;
mod rows;
mod transformers;
mod weights;
