//! A checkpoint on disk: its small files, its shards, typed fields of its config, strict reads of
//! its tensors, and the formats in which other tools and adapters write them. This room makes
//! matrices; it knows no layer, no family and no network.

pub(crate) mod adapter;
pub mod config;
pub mod file_rules;
pub mod files;
pub(crate) mod foreign;
mod matrices;
pub(crate) mod quantization;
pub mod scope;
pub(crate) mod shards;
pub(crate) mod weight_files;
