//! Kimi Delta Attention ([Kimi Team 2025](https://arxiv.org/abs/2510.26692)): the gated delta rule
//! with a decay for each channel, and a sigmoid as the gate of its outputs.

use crate::{
    checkpoint::scope::Scope,
    error::Result,
    layers::recurrent::{
        decay::{Decay, Projections},
        delta_net::{DeltaNet, DeltaSizes, short_convs, short_qkv},
    },
    mlx,
};
use mlx_rs::{Array, ops};

impl DeltaNet {
    /// Reads Kimi Delta Attention: a decay for each channel, and gates through a sigmoid; both from
    /// one projection, or from two around the width of a head.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn kimi(w: &Scope, sizes: DeltaSizes, eps: f32, lower_bound: Option<f32>) -> Result<Self> {
        let DeltaSizes { hidden, value_heads: heads, value_dim, .. } = sizes;
        let [_, width] = sizes.widths();
        let projections = |letter: &str| -> Result<Projections> {
            let whole = format!("{letter}_proj");
            if w.has_below(&whole) {
                return Ok(vec![w.linear(&whole, hidden, width)?]);
            }
            let low = w.linear(&format!("{letter}_a_proj"), hidden, value_dim)?;
            Ok(vec![low, w.linear(&format!("{letter}_b_proj"), value_dim, width)?])
        };
        Ok(DeltaNet {
            qkv: short_qkv(w, &sizes)?,
            conv: short_convs(w, &sizes)?,
            decay: Decay::read(
                w,
                projections("f")?,
                padded_logs(w, heads)?,
                value_dim,
                lower_bound,
            )?,
            beta: w.linear("b_proj", hidden, heads)?,
            longest: 1.0,
            gate: projections("g")?,
            squash: |gates| Ok(ops::sigmoid(gates)?),
            norm: w.rms_norm("o_norm", value_dim, eps)?,
            output: w.linear("o_proj", width, hidden)?,
            sizes,
        })
    }
}

/// `A_log`, which published files have with axes of size one around the heads, or padding after them.
fn padded_logs(w: &Scope, heads: i32) -> Result<Array> {
    let shape = w.shape("A_log").filter(|shape| {
        let long = shape.iter().filter(|size| **size != 1).count();
        long <= 1 && shape.iter().product::<i32>() >= heads
    });
    let logs = w.take("A_log", &shape.unwrap_or_else(|| vec![heads]))?.flatten(None, None)?;
    mlx::slice(&logs, 0, 0, heads)
}
