//! Feed-forward networks: activations, gated and plain ones, routers, and mixtures of experts.

pub mod activation;
pub mod mlp;
pub mod moe;
pub mod routed_experts;
pub mod router;
