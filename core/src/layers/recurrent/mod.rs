//! Layers with a recurrent or conv state, which does not grow: convolutions, state space models and
//! linear attention.

pub mod conv;
pub mod decay;
pub mod delta_net;
pub mod gated_delta;
pub mod kimi_delta;
pub mod lightning;
pub mod mamba2;
