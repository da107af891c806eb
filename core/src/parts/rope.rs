//! Rotary position embedding ([Su et al. 2021](https://arxiv.org/abs/2104.09864)) and the ways to
//! stretch it to longer contexts. Follows `rope_utils` of mlx-lm.

use crate::{
    config::{RopeScaling, Text},
    error::{Error, Result},
    layer::Step,
    mlx,
};
use mlx_rs::{Array, fast, ops};
use std::f64::consts::PI;

/// How queries and keys `[batch, heads, length, head_dim]` are rotated.
#[derive(Clone)]
pub enum Rope {
    /// No positions at all.
    None,
    /// Frequencies `base^(-2i / dims)`, positions times `scale`.
    Base {
        /// How many elements of each head are rotated.
        dims: i32,
        /// Whether pairs are neighbours instead of halves.
        traditional: bool,
        /// The longest wavelength over 2π.
        base: f32,
        /// Factor of every position.
        scale: f32,
    },
    /// Wavelengths of the checkpoint's own.
    Frequencies {
        /// How many elements of each head are rotated.
        dims: i32,
        /// Whether pairs are neighbours instead of halves.
        traditional: bool,
        /// Wavelengths over 2π, `[dims / 2]`.
        wavelengths: Array,
        /// Factor of what is rotated.
        magnitude: f32,
    },
    /// A base that grows once the sequence is longer than in training (dynamic NTK).
    Dynamic {
        /// How many elements of each head are rotated.
        dims: i32,
        /// Whether pairs are neighbours instead of halves.
        traditional: bool,
        /// The base for short sequences.
        base: f32,
        /// How fast it grows.
        factor: f32,
        /// The longest sequence of the training.
        trained: f32,
    },
}

impl Rope {
    /// What a config with the usual fields asks for.
    ///
    /// # Errors
    /// [`Error::Config`] for an unknown kind of scaling or one with fields missing, and when the
    /// elements do not make pairs.
    pub fn of(c: &Text) -> Result<Self> {
        Self::partial(c, c.head_dim())
    }

    /// As [`Rope::of`], for the first `dims` elements of each head.
    ///
    /// # Errors
    /// As [`Rope::of`].
    pub fn partial(c: &Text, dims: i32) -> Result<Self> {
        let context = c.max_position_embeddings;
        Self::scaled(dims, c.rope_theta(), c.rope_traditional, c.rope_scaling(), context)
    }

    /// As [`Rope::partial`], with the `rotary_dim` of a config.
    ///
    /// # Errors
    /// As [`Rope::of`], and when a head has fewer elements.
    pub fn rotary_dim(c: &Text, dims: i32) -> Result<Self> {
        if dims > c.head_dim() {
            let reason = format!("{dims} of the {} elements of a head", c.head_dim());
            return Err(Error::config("rotary_dim", reason));
        }
        Self::partial(c, dims)
    }

    /// As [`Rope::of`], for a share of each head: what the config says, or `default`.
    ///
    /// # Errors
    /// As [`Rope::of`], and for more than the whole.
    pub fn share(c: &Text, default: f64) -> Result<Self> {
        let nested = c.rope_scaling().and_then(|scaling| scaling.partial_rotary_factor);
        let share = c.partial_rotary_factor.or(nested).unwrap_or(default);
        Self::partial(c, share_of_head(c, share, "partial_rotary_factor")?)
    }

    /// What the parameters of one kind of layer ask for; `base` is that of those who name none.
    ///
    /// # Errors
    /// As [`Rope::of`], and for more than the whole of each head.
    pub fn of_kind(c: &Text, own: &RopeScaling, base: f32) -> Result<Self> {
        let share = own.partial_rotary_factor.unwrap_or(1.0);
        let (dims, base) =
            (share_of_head(c, share, "partial_rotary_factor")?, own.rope_theta.unwrap_or(base));
        Self::scaled(dims, base, c.rope_traditional, Some(own), c.max_position_embeddings)
    }

    /// Frequencies from a base alone.
    ///
    /// # Errors
    /// [`Error::Config`] when the elements do not make pairs.
    pub fn base(dims: i32, base: f32) -> Result<Self> {
        Self::scaled(dims, base, false, None, None)
    }

    /// Frequencies from a base, stretched as `scaling` says; `context` is the longest sequence
    /// that the checkpoint promises.
    ///
    /// # Errors
    /// As [`Rope::of`].
    pub fn scaled(
        dims: i32,
        base: f32,
        traditional: bool,
        scaling: Option<&RopeScaling>,
        context: Option<i32>,
    ) -> Result<Self> {
        if dims < 2 || dims % 2 != 0 {
            let reason = format!("{dims} elements of a head cannot be rotated in pairs");
            return Err(Error::config("head_dim", reason));
        }
        let plain = Rope::Base { dims, traditional, base, scale: 1.0 };
        let Some(s) = scaling else { return Ok(plain) };
        let context = || context.map(f64::from).ok_or_else(|| missing("max_position_embeddings"));
        let frequencies = |wavelengths, magnitude: f64| {
            let magnitude = magnitude as f32;
            Ok(Rope::Frequencies { dims, traditional, wavelengths, magnitude })
        };
        match s.kind() {
            "default" | "mrope" => Ok(plain),
            "linear" => {
                let scale = (1.0 / required(s.factor, "factor")?) as f32;
                Ok(Rope::Base { dims, traditional, base, scale })
            }
            "dynamic" => {
                let factor = required(s.factor, "factor")? as f32;
                Ok(Rope::Dynamic { dims, traditional, base, factor, trained: context()? as f32 })
            }
            "llama3" => frequencies(llama3(wavelengths(dims, base)?, s)?, 1.0),
            "yarn" | "deepseek_yarn" | "telechat3-yarn" => yarn(dims, base, s)
                .and_then(|(wavelengths, magnitude)| frequencies(wavelengths, magnitude)),
            "longrope" | "su" => {
                let original = required(s.original_max_position_embeddings, ORIGINAL)?;
                let factors = s.long_factor.as_ref().ok_or_else(|| missing("long_factor"))?;
                if factors.len() as i32 != dims / 2 {
                    let reason = format!("{} factors for {} frequencies", factors.len(), dims / 2);
                    return Err(Error::config("rope_scaling.long_factor", reason));
                }
                let stretch = context()? / original;
                let magnitude =
                    if stretch <= 1.0 { 1.0 } else { (1.0 + stretch.ln() / original.ln()).sqrt() };
                let factors = Array::from_slice(factors, &[dims / 2]);
                let wavelengths = factors.multiply(wavelengths(dims, base)?)?;
                // Pairs are halves here, whatever the config says.
                let magnitude = magnitude as f32;
                Ok(Rope::Frequencies { dims, traditional: false, wavelengths, magnitude })
            }
            "proportional" => {
                let share = s.partial_rotary_factor.unwrap_or(1.0).clamp(0.0, 1.0);
                let rotated = (f64::from(dims) * share) as i32 / 2;
                let factor = mlx::scalar(s.factor.unwrap_or(1.0) as f32, mlx_rs::Dtype::Float32)?;
                let all = wavelengths(dims, base)?.multiply(factor)?;
                // An infinite wavelength leaves its pair where it is.
                let still = vec![f32::INFINITY; (dims / 2 - rotated) as usize];
                let still = Array::from_slice(&still, &[dims / 2 - rotated]);
                let moving = mlx::slice(&all, 0, 0, rotated)?;
                frequencies(ops::concatenate(&[moving, still], 0)?, 1.0)
            }
            kind => Err(Error::config("rope_scaling.rope_type", format!("`{kind}` is not known"))),
        }
    }

    /// Rotates `x` to the positions of this step.
    pub(crate) fn forward(&self, x: &Array, step: &Step) -> Result<Array> {
        let at = &step.position;
        Ok(match self {
            Rope::None => x.clone(),
            Rope::Base { dims, traditional, base, scale } => {
                fast::rope_dynamic(x, *dims, *traditional, *base, *scale, at, None)?
            }
            Rope::Frequencies { dims, traditional, wavelengths, magnitude } => {
                let x = &magnify(x, *dims, *magnitude)?;
                fast::rope_dynamic(x, *dims, *traditional, None, 1.0, at, wavelengths)?
            }
            Rope::Dynamic { dims, traditional, base, factor, trained } => {
                let constant = Array::from_f32;
                let length = at.add(Array::from_int(step.length))?;
                let length = ops::maximum(length, constant(*trained))?;
                let growth = length.multiply(constant(factor / trained))?;
                let growth = growth.subtract(constant(factor - 1.0))?;
                let exponent = *dims as f32 / (dims - 2) as f32;
                let base = growth.power(constant(exponent))?.multiply(constant(*base))?;
                let wavelengths = base.power(exponents(*dims)?)?;
                fast::rope_dynamic(x, *dims, *traditional, None, 1.0, at, &wavelengths)?
            }
        })
    }
}

/// How many elements this share of a head is; `field` says it.
///
/// # Errors
/// [`Error::Config`] about the field when it is more than the whole.
pub fn share_of_head(c: &Text, share: f64, field: &str) -> Result<i32> {
    if (0.0..=1.0).contains(&share) {
        return Ok((f64::from(c.head_dim()) * share) as i32);
    }
    Err(Error::config(field, format!("{share} is no share of a head")))
}

const ORIGINAL: &str = "original_max_position_embeddings";

fn missing(field: &str) -> Error {
    Error::config(format!("rope_scaling.{field}"), "missing for this kind of scaling")
}

fn required(value: Option<f64>, field: &str) -> Result<f64> {
    match value {
        Some(value) if value > 0.0 && value.is_finite() => Ok(value),
        Some(value) => {
            Err(Error::config(format!("rope_scaling.{field}"), format!("{value} is not positive")))
        }
        None => Err(missing(field)),
    }
}

/// `2i / dims` for each pair.
fn exponents(dims: i32) -> Result<Array> {
    Ok(ops::arange::<_, f32>(0, dims, 2)?.divide(Array::from_f32(dims as f32))?)
}

/// `base^(2i / dims)`: wavelengths over 2π.
pub(crate) fn wavelengths(dims: i32, base: f32) -> Result<Array> {
    Ok(Array::from_f32(base).power(exponents(dims)?)?)
}

/// Llama 3.1: long wavelengths are stretched, short ones stay, with a smooth passage between.
fn llama3(wavelengths: Array, s: &RopeScaling) -> Result<Array> {
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

/// YaRN ([Peng et al. 2023](https://arxiv.org/abs/2309.00071)): wavelengths and magnitude.
fn yarn(dims: i32, base: f32, s: &RopeScaling) -> Result<(Array, f64)> {
    let constant = |value: f64| Array::from_f32(value as f32);
    let factor = required(s.factor, "factor")?;
    let original = required(s.original_max_position_embeddings.or(Some(4096.0)), ORIGINAL)?;
    let (d, log_base) = (f64::from(dims), f64::from(base).ln());
    let pair = |rotations: f64| d * (original / (rotations * 2.0 * PI)).ln() / (2.0 * log_base);
    let low = pair(s.beta_fast.unwrap_or(32.0)).floor().max(0.0);
    let high = pair(s.beta_slow.unwrap_or(1.0)).ceil().min(d - 1.0);
    let high = if low == high { high + 0.001 } else { high };
    let magnitude = |strength: f64| {
        if factor <= 1.0 { 1.0 } else { 0.1 * strength * factor.ln() + 1.0 }
    };
    let magnitude = magnitude(s.mscale.unwrap_or(1.0)) / magnitude(s.mscale_all_dim.unwrap_or(0.0));
    let own = wavelengths(dims, base)?;
    let stretched = own.multiply(constant(factor))?;
    let pairs = ops::arange::<_, f32>(0, dims / 2, None)?;
    let ramp = pairs.subtract(constant(low))?.divide(constant(high - low))?;
    let keep = constant(1.0).subtract(ops::clip(&ramp, (constant(0.0), constant(1.0)))?)?;
    let mixed = stretched.multiply(&keep)?.add(own.multiply(constant(1.0).subtract(&keep)?)?)?;
    Ok((stretched.multiply(&own)?.divide(&mixed)?, magnitude))
}

/// Multiplies the first `dims` elements of the last axis.
fn magnify(x: &Array, dims: i32, magnitude: f32) -> Result<Array> {
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
