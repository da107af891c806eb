//! Parts of vision towers: patches, grids, position tables, the usual encoders, and the ways to merge
//! patches before a projector.

pub mod config;
pub mod encoder;
pub mod grid;
pub mod patches;
pub mod position_table;
pub mod siglip;
