//! A layer that reads pictures: cross attention and a feed-forward network, each behind a gate. Without
//! pictures it is left out.

use crate::{
    families::prelude::*,
    layers::{
        attention::cross::{Encoded, EncodedMask},
        state::Fixed,
    },
    mlx::product::{Weighting, attend},
};

pub struct CrossBlock {
    norm: Norm,
    /// Of queries, keys, values and the output.
    projections: [Linear; 4],
    /// Of queries and keys.
    norms: [Norm; 2],
    /// Heads of queries and of keys.
    heads: [i32; 2],
    /// `[1]`.
    attention_gate: Array,
    mlp_norm: Norm,
    mlp: Mlp,
    /// `[1]`.
    mlp_gate: Array,
}

impl CrossBlock {
    pub fn read(w: &Scope, c: &Text) -> Result<Self> {
        let a = w.at("cross_attn");
        let norm = |w: &Scope, name, width| w.rms_norm(name, width, c.rms_norm_eps);
        let gate = |name| Ok::<_, Error>(ops::tanh(&w.tensor(name, &[1])?)?);
        let dims = c.head_dim();
        let heads = c.num_attention_heads;
        Ok(CrossBlock {
            norm: norm(w, "input_layernorm", c.hidden_size)?,
            projections: grouped::projections(&a, QKVO, c)?,
            norms: [norm(&a, "q_norm", dims)?, norm(&a, "k_norm", dims)?],
            heads: [heads, c.kv_heads()],
            attention_gate: gate("cross_attn_attn_gate")?,
            mlp_norm: norm(w, "post_attention_layernorm", c.hidden_size)?,
            mlp: Mlp::of(&w.at("mlp"), GATE_UP_DOWN, c)?,
            mlp_gate: gate("cross_attn_mlp_gate")?,
        })
    }

    /// Keys, values, and which of them the last position sees, `[1, keys]`, for the steps after a prompt.
    fn encode(&self, encoded: &Array, mask: &Array) -> Result<Vec<Array>> {
        let [_, keys, values, _] = &self.projections;
        let heads = |projection: &Linear| split_heads(&projection.forward(encoded)?, self.heads[1]);
        let last = mlx::slice(mask, 0, mask.dim(0) - 1, mask.dim(0))?;
        Ok(vec![self.norms[1].forward(&heads(keys)?)?, heads(values)?, last.expand_dims(0)?])
    }
}

impl Layer for CrossBlock {
    type State = Fixed;

    fn state(&self, _: &CachePlan) -> Fixed {
        Fixed::default()
    }

    fn forward(&self, x: &Array, state: &mut Fixed, step: &Step) -> Result<Array> {
        let mask = step.get::<EncodedMask>().map(|EncodedMask(mask)| mask);
        if let (Some(Encoded(encoded)), Some(mask)) = (step.get::<Encoded>(), &mask) {
            state.0 = self.encode(&encoded, mask)?;
        }
        let [keys, values, last] = &state.0[..] else { return Ok(x.clone()) };
        let mask = mask.map_or_else(|| Ok(last.clone()), |mask| mask.expand_dims(0))?;
        let sees = mask.any_axes(&[-1], true)?;
        // What follows no picture yet reads all of them here, but has no feed-forward network.
        let visible = mask.logical_or(sees.logical_not()?)?.expand_dims(1)?;
        let [queries, .., output] = &self.projections;
        let q = split_heads(&queries.forward(&self.norm.forward(x)?)?, self.heads[0])?;
        let (q, scale) = (self.norms[0].forward(&q)?, (q.dim(-1) as f32).powf(-0.5));
        let y = attend(&q, keys, values, Weighting::masked(scale, &visible))?;
        let y = output.forward(&join_heads(&y)?)?;
        let x = x.add(y.multiply(&self.attention_gate)?)?;
        let y = self.mlp.apply(&self.mlp_norm.forward(&x)?)?;
        let y = y.multiply(sees.as_dtype(x.dtype())?)?;
        Ok(x.add(y.multiply(&self.mlp_gate)?)?)
    }
}
