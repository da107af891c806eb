//! Layers whose state does not grow: convolutions and state space models.

pub mod conv;
pub mod mamba2;
