//! Routed experts beside a shared expert ([Dai et al. 2024](https://arxiv.org/abs/2401.06066)),
//! after a few dense layers, with routers that have a correction bias ([Wang et al.
//! 2024](https://arxiv.org/abs/2408.15664)).

use crate::{
    checkpoint::{
        config::{self, Count, Json, Size, Text},
        scope::Scope,
    },
    error::{Error, Result},
    layers::feed_forward::{
        mlp::{Ffn, Mlp, dense, gate_of, sum},
        moe::{ExpertSizes, GatedExperts, Moe},
        router::{LossFreeRouter, LossFreeRouting, Router},
    },
};
use serde::Deserialize;

/// The config fields that say which layers have experts, and the sizes of the experts.
#[derive(Deserialize)]
pub struct Sparsity {
    n_routed_experts: Option<Size>,
    #[serde(default)]
    n_shared_experts: Count,
    moe_intermediate_size: Size,
    #[serde(default)]
    first_k_dense_replace: Count,
    moe_layer_freq: Option<Size>,
    mlp_layer_types: Option<Vec<String>>,
}

impl Sparsity {
    pub fn read(config: &Json, layers: i32) -> Result<Self> {
        let sparsity: Sparsity = config::read(config)?;
        let kinds = sparsity.mlp_layer_types.as_ref();
        config::check_entries("mlp_layer_types", kinds, layers)?;
        let is_unknown = |kind: &&String| !["dense", "sparse"].contains(&&***kind);
        if let Some(kind) = kinds.into_iter().flatten().find(is_unknown) {
            let reason = format!("`{kind}` is neither dense nor sparse");
            return Err(Error::unsupported("mlp_layer_types", reason));
        }
        Ok(sparsity)
    }

    /// The feed-forward network of one layer: a dense MLP, or routed experts beside shared experts.
    /// `router` reads the router and gets the number of experts.
    pub fn network<R: Router + 'static>(
        &self,
        w: &Scope,
        c: &Text,
        layer: i32,
        router: impl Fn(&Scope, i32) -> Result<R>,
    ) -> Result<Ffn> {
        let Some(Size(count)) = self.n_routed_experts.filter(|_| self.has_experts(layer)) else {
            return dense(w, c);
        };
        let (inner, shared) = (*self.moe_intermediate_size, *self.n_shared_experts);
        let experts = stacked_experts(w, c, ExpertSizes { count, width: c.hidden_size, inner })?;
        with_shared_expert(w, c, Moe::new(router(w, count)?, experts), inner, shared)
    }

    fn has_experts(&self, layer: i32) -> bool {
        match &self.mlp_layer_types {
            Some(kinds) => kinds[layer as usize] == "sparse",
            None => {
                let every = self.moe_layer_freq.map_or(1, i32::from);
                layer >= *self.first_k_dense_replace && layer % every == 0
            }
        }
    }
}

/// Routed experts of width `inner`, beside a shared expert with the width of `shared` of them.
pub fn routed_experts(
    w: &Scope,
    c: &Text,
    routing: &LossFreeRouting,
    inner: i32,
    shared: i32,
) -> Result<Ffn> {
    let sizes = ExpertSizes { count: routing.n_routed_experts, width: c.hidden_size, inner };
    let moe = Moe::new(loss_free_router(w, c, routing)?, stacked_experts(w, c, sizes)?);
    with_shared_expert(w, c, moe, inner, shared)
}

/// A router whose correction bias is stored inside its scope or beside it.
pub fn loss_free_router(w: &Scope, c: &Text, routing: &LossFreeRouting) -> Result<LossFreeRouter> {
    let place = if w.has("e_score_correction_bias") { w } else { &w.at("gate") };
    loss_free_router_at(w, place, c, routing)
}

/// A router whose correction bias is stored at this place.
pub fn loss_free_router_at(
    w: &Scope,
    place: &Scope,
    c: &Text,
    routing: &LossFreeRouting,
) -> Result<LossFreeRouter> {
    let count = routing.n_routed_experts;
    let correction = place.tensor("e_score_correction_bias", &[count])?;
    let logits = w.linear("gate", c.hidden_size, count)?;
    LossFreeRouter::new(logits, Some(correction), routing)
}

/// Experts as MLX files stack them, below one of two names, or as they were published.
pub fn stacked_experts(w: &Scope, c: &Text, sizes: ExpertSizes) -> Result<GatedExperts> {
    let name = if w.has_below("switch_mlp") { "switch_mlp" } else { "experts" };
    GatedExperts::read(w, name, sizes, gate_of(c)?)
}

/// A mixture of experts of width `inner`, beside a network as wide as `shared` of them, if that is any.
pub fn with_shared_expert(w: &Scope, c: &Text, moe: Moe, inner: i32, shared: i32) -> Result<Ffn> {
    if shared == 0 {
        return Ok(Box::new(moe));
    }
    let inner = config::product("moe_intermediate_size", [shared, inner])?;
    Ok(sum(moe, Mlp::sized(&w.at("shared_experts"), c, inner)?))
}
