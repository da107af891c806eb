//! Attention in which some layers have keys and values, and later ones attend over those
//! ([Brandon et al. 2024](https://arxiv.org/abs/2405.12981)); queries and keys are normalised, head
//! by head, with weights, and values without.

use super::{
    attention::{join_heads, split_heads},
    kv::{Kv, Scores, Seen},
    linear::Linear,
    norm::Norm,
    rope::Rope,
};
use crate::{
    config::{self, Text},
    error::{Error, Result},
    layer::{CachePlan, Layer, Step},
    weights::Scope,
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

/// The half of attention that every layer has for itself.
pub struct Queries {
    q: Linear,
    norm: Norm,
    rope: Rope,
    output: Linear,
    heads: i32,
    head_dim: i32,
}

impl Queries {
    /// Reads the projections of queries and of the output, and the norm between.
    ///
    /// # Errors
    /// As [`Scope::linear`]; [`Error::Config`] when all heads together are too wide.
    pub fn read(w: &Scope, c: &Text, head_dim: i32, rope: Rope) -> Result<Self> {
        let (width, heads) = (c.hidden_size, c.num_attention_heads);
        let all = config::product("head_dim", [heads, head_dim])?;
        Ok(Queries {
            q: w.linear("q_proj", width, all)?,
            norm: w.rms_norm("q_norm", head_dim, c.rms_norm_eps)?,
            rope,
            output: w.linear("o_proj", all, width)?,
            heads,
            head_dim,
        })
    }

    fn attend(&self, x: &Array, seen: &Seen, step: &Step) -> Result<Array> {
        let q = self.norm.forward(&split_heads(&self.q.forward(x)?, self.heads)?)?;
        let scores = Scores { scale: 1.0, sinks: None };
        let y = seen.attend(&self.rope.forward(&q, step)?, &scores, step)?;
        self.output.forward(&join_heads(&y)?)
    }
}

/// Attention over keys and values of its own, which it lends.
pub struct OwnKeys {
    queries: Queries,
    k: Linear,
    /// Values are the keys before their norm where there is none.
    v: Option<Linear>,
    k_norm: Norm,
    v_norm: Norm,
    heads: i32,
    window: Option<i32>,
    layer: i32,
}

impl OwnKeys {
    /// Reads the projections of keys and, unless they are one, values.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn read(w: &Scope, c: &Text, queries: Queries, has_values: bool) -> Result<Self> {
        let (heads, head_dim) = (c.kv_heads(), queries.head_dim);
        let read = |name| w.linear(name, c.hidden_size, heads * head_dim);
        Ok(OwnKeys {
            k: read("k_proj")?,
            v: has_values.then(|| read("v_proj")).transpose()?,
            k_norm: w.rms_norm("k_norm", head_dim, c.rms_norm_eps)?,
            v_norm: Norm::Rms { weight: None, eps: c.rms_norm_eps },
            queries,
            heads,
            window: None,
            layer: 0,
        })
    }

    /// The layer that it is, by which others borrow from it, and how far it looks back.
    pub fn place(self, layer: i32, window: Option<i32>) -> Self {
        OwnKeys { layer, window, ..self }
    }
}

impl Layer for OwnKeys {
    type State = Kv;

    fn state(&self, plan: &CachePlan) -> Kv {
        Kv::new(self.window, plan)
    }

    fn forward(&self, x: &Array, kv: &mut Kv, step: &Step) -> Result<Array> {
        let keys = split_heads(&self.k.forward(x)?, self.heads)?;
        let values = match &self.v {
            Some(v) => split_heads(&v.forward(x)?, self.heads)?,
            None => keys.clone(),
        };
        let keys = self.queries.rope.forward(&self.k_norm.forward(&keys)?, step)?;
        let seen = kv.update(keys, self.v_norm.forward(&values)?, step)?;
        step.lend(self.layer, seen.clone());
        self.queries.attend(x, &seen, step)
    }
}

/// Attention over the keys and values of an earlier layer.
pub struct BorrowedKeys {
    queries: Queries,
    lender: i32,
}

impl BorrowedKeys {
    /// Composes it; checkpoints carry keys and values that nobody uses.
    pub fn read(w: &Scope, queries: Queries, lender: i32) -> Self {
        for unused in ["k_proj", "v_proj", "k_norm"] {
            w.ignore(unused);
        }
        BorrowedKeys { queries, lender }
    }
}

impl Layer for BorrowedKeys {
    type State = ();

    fn state(&self, _: &CachePlan) {}

    fn forward(&self, x: &Array, (): &mut (), step: &Step) -> Result<Array> {
        self.queries.attend(x, &step.lent(self.lender), step)
    }
}
