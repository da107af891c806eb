//! Wavelengths of rotary embedding, over 2π and `[dims / 2]`, and the ways to stretch them. Follows
//! `modeling_rope_utils` of transformers.

use crate::{
    checkpoint::config::RopeScaling,
    error::{Error, Result},
    mlx,
};
use mlx_rs::{Array, ops};
use std::f64::consts::PI;

pub(super) const ORIGINAL: &str = "original_max_position_embeddings";

pub(super) fn missing(field: &str) -> Error {
    Error::config(format!("rope_scaling.{field}"), "missing for this kind of scaling")
}

pub(super) fn required(value: Option<f64>, field: &str) -> Result<f64> {
    match value {
        Some(value) if value > 0.0 && value.is_finite() => Ok(value),
        Some(value) => {
            Err(Error::config(format!("rope_scaling.{field}"), format!("{value} is not positive")))
        }
        None => Err(missing(field)),
    }
}

/// `2i / dims` for each pair.
pub(super) fn exponents(dims: i32) -> Result<Array> {
    Ok(ops::arange::<_, f32>(0, dims, 2)?.divide(Array::from_f32(dims as f32))?)
}

/// `base^(2i / dims)`.
fn plain(dims: i32, base: f32) -> Result<Array> {
    Ok(Array::from_f32(base).power(exponents(dims)?)?)
}

/// Llama 3.1: long wavelengths are stretched, short ones stay, with a smooth passage between.
pub(super) fn llama3(dims: i32, base: f32, s: &RopeScaling) -> Result<Array> {
    let wavelengths = plain(dims, base)?;
    let constant = |value: f64| Array::from_f32(value as f32);
    let factor = required(s.factor, "factor")?;
    let (low, high) = (s.low_freq_factor.unwrap_or(1.0), s.high_freq_factor.unwrap_or(4.0));
    let original = s.original_max_position_embeddings.unwrap_or(8192.0);
    let (longest, shortest) = (constant(original / low), constant(original / high));
    let cycle = wavelengths.multiply(constant(2.0 * PI))?;
    let stretched =
        ops::select(&cycle.gt(&longest)?, wavelengths.multiply(constant(factor))?, &wavelengths)?;
    let smooth = constant(original).divide(&cycle)?.subtract(constant(low))?;
    let smooth = smooth.divide(constant(high - low))?;
    let blend = constant(1.0).subtract(&smooth)?.divide(constant(factor))?.add(&smooth)?;
    let between = cycle.gt(&shortest)?.logical_and(cycle.lt(&longest)?)?;
    Ok(ops::select(&between, stretched.divide(&blend)?, &stretched)?)
}

/// YaRN ([Peng et al. 2023](https://arxiv.org/abs/2309.00071)): wavelengths and magnitude;
/// `context` is the longest sequence that the checkpoint promises.
pub(super) fn yarn(
    dims: i32,
    base: f32,
    s: &RopeScaling,
    context: Option<f64>,
) -> Result<(Array, f32)> {
    let constant = |value: f64| Array::from_f32(value as f32);
    let original = required(s.original_max_position_embeddings.or(Some(4096.0)), ORIGINAL)?;
    // Without a factor, a context longer than the original one says how much longer.
    let longer = context.map(|context| context / original).filter(|factor| *factor > 1.0);
    let factor = required(s.factor.or(longer), "factor")?;
    let (d, log_base) = (f64::from(dims), f64::from(base).ln());
    let pair = |rotations: f64| d * (original / (rotations * 2.0 * PI)).ln() / (2.0 * log_base);
    let (low, high) = (pair(s.beta_fast.unwrap_or(32.0)), pair(s.beta_slow.unwrap_or(1.0)));
    let is_rounded = s.truncate.unwrap_or(true);
    let (low, high) = if is_rounded { (low.floor(), high.ceil()) } else { (low, high) };
    let (low, high) = (low.max(0.0), high.min(d - 1.0));
    let high = if low == high { high + 0.001 } else { high };
    let magnitude = |strength: f64| {
        if factor <= 1.0 { 1.0 } else { 0.1 * strength * factor.ln() + 1.0 }
    };
    let strengths = match s.kind() {
        // One without the other has no effect in transformers.
        "yarn" => {
            let given = |strength: Option<f64>| strength.filter(|strength| *strength != 0.0);
            given(s.mscale).zip(given(s.mscale_all_dim)).unwrap_or((1.0, 0.0))
        }
        // The kinds of other authors divide the two, whichever is absent.
        _ => (s.mscale.unwrap_or(1.0), s.mscale_all_dim.unwrap_or(0.0)),
    };
    let magnitude =
        s.attention_factor.unwrap_or_else(|| magnitude(strengths.0) / magnitude(strengths.1));
    let own = plain(dims, base)?;
    let stretched = own.multiply(constant(factor))?;
    let pairs = ops::arange::<_, f32>(0, dims / 2, None)?;
    let ramp = pairs.subtract(constant(low))?.divide(constant(high - low))?;
    let keep = constant(1.0).subtract(ops::clip(&ramp, (constant(0.0), constant(1.0)))?)?;
    let mixed = stretched.multiply(&keep)?.add(own.multiply(constant(1.0).subtract(&keep)?)?)?;
    Ok((stretched.multiply(&own)?.divide(&mixed)?, magnitude as f32))
}

/// LongRoPE: the wavelengths with these factors.
pub(super) fn longrope(dims: i32, base: f32, factors: &[f32], field: &str) -> Result<Array> {
    if factors.len() as i32 != dims / 2 {
        let reason = format!("{} factors for {} frequencies", factors.len(), dims / 2);
        return Err(Error::config(format!("rope_scaling.{field}"), reason));
    }
    Ok(Array::from_slice(factors, &[dims / 2]).multiply(plain(dims, base)?)?)
}

/// Some pairs of each head turn, the others stay where they are, which is an infinite wavelength.
pub(super) fn proportional(dims: i32, base: f32, s: &RopeScaling) -> Result<Array> {
    let share = s.partial_rotary_factor.unwrap_or(1.0).clamp(0.0, 1.0);
    let rotated = (f64::from(dims) * share) as i32 / 2;
    let all = plain(dims, base)?.multiply(Array::from_f32(s.factor.unwrap_or(1.0) as f32))?;
    let still = vec![f32::INFINITY; (dims / 2 - rotated) as usize];
    let still = Array::from_slice(&still, &[dims / 2 - rotated]);
    Ok(ops::concatenate(&[mlx::slice(&all, 0, 0, rotated)?, still], 0)?)
}

/// Multiplies the first `dims` elements of the last axis.
pub(super) fn magnify(x: &Array, dims: i32, magnitude: f32) -> Result<Array> {
    if magnitude == 1.0 {
        return Ok(x.clone());
    }
    let (factor, axis) = (mlx::scalar(magnitude, x.dtype())?, x.ndim() - 1);
    let width = x.dim(-1);
    if dims == width {
        return Ok(x.multiply(factor)?);
    }
    let rotated = mlx::slice(x, axis, 0, dims)?.multiply(factor)?;
    Ok(ops::concatenate(&[rotated, mlx::slice(x, axis, dims, width)?], -1)?)
}
