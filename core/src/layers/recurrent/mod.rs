//! Layers with a recurrent or conv state, which does not grow: convolutions, state space models and
//! linear recurrences, each mechanism under its paper's name, and linear attention.

pub mod conv;
pub mod decay;
pub mod delta_net;
pub mod gated_delta;
pub mod hybrid;
pub mod kimi_delta;
pub mod lightning;
pub mod linear_scan;
pub mod mamba2;
pub mod rg_lru;
pub mod selective_scan;
pub mod ssd;
pub mod wkv7;
