//! Attention in which some layers have keys and values, and later ones attend over those
//! ([Brandon et al. 2024](https://arxiv.org/abs/2405.12981)); queries and keys are normalised, head
//! by head, with weights, and values without.

use crate::layers::{
    attention::{
        grouped::{join_heads, split_heads},
        kv_cache::KvCache,
        scores::Scores,
        view::AttentionView,
    },
    linear::Linear,
    norm::Norm,
    position::rope::Rope,
};
use crate::{
    checkpoint::{
        config::{self, Text},
        scope::Scope,
    },
    error::{Error, Result},
    layers::{algebra::Layer, cache_plan::CachePlan, step::Step},
};
use mlx_rs::Array;

/// The layer whose keys and values another attends over: the last of its kind among the first
/// `own`, which have some; none for those.
///
/// # Errors
/// [`Error::Config`] when there is none, and those of `window`.
pub fn lender(
    own: i32,
    layer: i32,
    window: impl Fn(i32) -> Result<Option<i32>>,
) -> Result<Option<i32>> {
    if layer < own {
        return Ok(None);
    }
    let wanted = window(layer)?;
    let alike = |other: &i32| window(*other).is_ok_and(|other| other == wanted);
    match (0..own).rev().find(alike) {
        None => {
            let reason = "no layer of the same kind has keys and values to share";
            Err(Error::config("num_kv_shared_layers", reason))
        }
        lender => Ok(lender),
    }
}

/// The settings of one layer, beside the sizes.
pub struct Place {
    /// The number of the layer.
    pub layer: i32,
    /// The layer whose keys and values it attends over; its own when absent.
    pub lender: Option<i32>,
    /// The size of the sliding window, the token itself included.
    pub window: Option<i32>,
    /// How queries and keys are rotated.
    pub rope: Rope,
    /// Whether values are the keys before their norm.
    pub keys_are_values: bool,
}

/// Attention of one layer.
pub struct SharedKeys {
    q: Linear,
    q_norm: Norm,
    output: Linear,
    heads: i32,
    own: Option<OwnKeys>,
    place: Place,
}

/// The projections of a layer that lends its keys and values.
struct OwnKeys {
    k: Linear,
    v: Option<Linear>,
    k_norm: Norm,
    v_norm: Norm,
    heads: i32,
}

impl SharedKeys {
    /// Reads the projections and the norms; checkpoints carry projections of keys and values for
    /// layers that do not use them.
    ///
    /// # Errors
    /// As [`Scope::linear`]; [`Error::Config`] when all heads together are too wide.
    pub fn read(w: &Scope, c: &Text, place: Place) -> Result<Self> {
        let (width, heads, head_dim) = (c.hidden_size, c.num_attention_heads, c.head_dim());
        let all = config::product("head_dim", [heads, head_dim])?;
        let own = || -> Result<OwnKeys> {
            let read = |name| w.linear(name, width, c.kv_heads() * head_dim);
            Ok(OwnKeys {
                k: read("k_proj")?,
                v: (!place.keys_are_values).then(|| read("v_proj")).transpose()?,
                k_norm: w.rms_norm("k_norm", head_dim, c.rms_norm_eps)?,
                v_norm: Norm::Rms { weight: None, eps: c.rms_norm_eps },
                heads: c.kv_heads(),
            })
        };
        let own = place.lender.is_none().then(own).transpose()?;
        if own.is_none() {
            for unused in ["k_proj", "v_proj", "k_norm"] {
                w.ignore(unused);
            }
        }
        Ok(SharedKeys {
            q: w.linear("q_proj", width, all)?,
            q_norm: w.rms_norm("q_norm", head_dim, c.rms_norm_eps)?,
            output: w.linear("o_proj", all, width)?,
            heads,
            own,
            place,
        })
    }
}

impl Layer for SharedKeys {
    type State = Option<KvCache>;

    fn state(&self, plan: &CachePlan) -> Option<KvCache> {
        self.own.as_ref().map(|_| KvCache::new(self.place.window, plan))
    }

    fn forward(&self, x: &Array, kv: &mut Option<KvCache>, step: &Step) -> Result<Array> {
        let Place { layer, lender, rope, .. } = &self.place;
        if let (Some(own), Some(kv)) = (&self.own, kv) {
            let keys = split_heads(&own.k.forward(x)?, own.heads)?;
            let values = match &own.v {
                Some(v) => split_heads(&v.forward(x)?, own.heads)?,
                None => keys.clone(),
            };
            let keys = rope.forward(&own.k_norm.forward(&keys)?, step)?;
            step.lend(*layer, kv.update(keys, own.v_norm.forward(&values)?, step)?);
        }
        let q = self.q_norm.forward(&split_heads(&self.q.forward(x)?, self.heads)?)?;
        let (q, seen) =
            (rope.forward(&q, step)?, step.lent::<AttentionView>(lender.unwrap_or(*layer))?);
        let y = seen.attend(&q, &Scores { scale: 1.0, sinks: None }, step)?;
        self.output.forward(&join_heads(&y)?)
    }
}
