//! Feed-forward networks: activations, MLPs with and without a gate, routers, and mixtures of
//! experts.

pub mod activation;
pub mod mlp;
pub mod moe;
pub mod routed_experts;
pub mod router;
