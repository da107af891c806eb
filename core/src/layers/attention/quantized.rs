//! Attention over quantized keys and values, without dequantizing them. Follows
//! `quantized_scaled_dot_product_attention` of mlx-lm, and takes attention sinks too.

use crate::layers::attention::scores::Scores;
use crate::{
    error::Result,
    mlx::{self, quantized::Quantized},
};
use mlx_rs::{Array, ops};

/// Queries `[batch, heads, length, head_dim]` over keys and values
/// `[batch, kv_heads, positions, head_dim]`; `mask` is true for visible keys: `[length, positions]`,
/// or `[…, heads or 1, length, positions]`.
pub(crate) fn quantized_attention(
    q: &Array,
    [keys, values]: &[Quantized; 2],
    scores: &Scores,
    mask: Option<&Array>,
) -> Result<Array> {
    let (batch, heads, length) = (q.dim(0), q.dim(1), q.dim(2));
    let kv_heads = keys.weight.dim(1);
    let grouped = [batch, kv_heads, heads / kv_heads, length, -1];
    let by_group = |m: &Quantized| m.map(|a| Ok(a.expand_dims(2)?));
    let q = q.multiply(mlx::scalar(scores.scale, q.dtype())?)?.reshape(&grouped)?;
    let mut logits = by_group(keys)?.matmul(&q)?;
    if let Some(mask) = mask {
        let mask = match mask.ndim() {
            1 | 2 => mask.clone(),
            _ if mask.dim(-3) == 1 => mask.expand_dims(-3)?,
            _ => ops::unflatten(mask, -3, &[kv_heads, heads / kv_heads])?,
        };
        logits = ops::select(&mask, &logits, mlx::scalar(f32::NEG_INFINITY, logits.dtype())?)?;
    }
    let weights = match &scores.sinks {
        Some(sinks) => {
            let sinks = sinks.as_dtype(logits.dtype())?.reshape(&[kv_heads, -1, 1, 1])?;
            let shape = [batch, kv_heads, heads / kv_heads, length, 1];
            let sinks = ops::broadcast_to(&sinks, &shape)?;
            let weights = ops::softmax_axis(&ops::concatenate(&[&sinks, &logits], -1)?, -1, true)?;
            mlx::slice(&weights, 4, 1, weights.dim(4))?
        }
        None => ops::softmax_axis(&logits, -1, true)?,
    };
    Ok(by_group(values)?.sum_rows(&weights)?.reshape(&[batch, heads, length, -1])?)
}
