//! The numbers: models compute what their references compute.

mod adapters;
mod caches;
mod families;
mod pictures;
mod processors;
mod prompts;
mod rows;
mod weights;
