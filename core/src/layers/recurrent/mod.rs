//! Layers with a recurrent or conv state, which does not grow: convolutions and state space models.

pub mod conv;
pub mod mamba2;
