//! Rotary position embedding ([Su et al. 2021](https://arxiv.org/abs/2104.09864)) and the ways to
//! magnitude it to longer contexts. Follows `rope_utils` of mlx-lm.

use crate::layers::position::wavelengths::{
    exponents, llama3, longrope, missing, proportional, required, yarn,
};
use crate::{
    checkpoint::config::{RopeScaling, Size, Text},
    error::{Error, Result},
    layers::step::Step,
    mlx,
};
use mlx_rs::{Array, fast, ops};

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
        Self::scaled(dims, c.rope_theta(), *c.rope_traditional, c.rope_scaling(), context)
    }

    /// As [`Rope::partial`], with the `rotary_dim` of a config; without, its share or the whole.
    ///
    /// # Errors
    /// As [`Rope::of`], and when a head has fewer elements.
    pub fn rotary_dim(c: &Text, dims: Option<Size>) -> Result<Self> {
        let Some(Size(dims)) = dims else { return Self::share(c, 1.0) };
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
        let nested = c.rope_scaling().and_then(|scaling| *scaling.partial_rotary_factor);
        let share = c.partial_rotary_factor.or(nested).unwrap_or(default);
        Self::partial(c, share_of_head(c, share, "partial_rotary_factor")?)
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
        let frequencies = |(wavelengths, magnitude)| {
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
            "llama3" => frequencies((llama3(dims, base, s)?, 1.0)),
            "yarn" | "deepseek_yarn" | "telechat3-yarn" => frequencies(yarn(dims, base, s)?),
            "longrope" | "su" => {
                let (wavelengths, magnitude) = longrope(dims, base, s, context()?)?;
                // Pairs are halves here, whatever the config says.
                Ok(Rope::Frequencies { dims, traditional: false, wavelengths, magnitude })
            }
            "proportional" => frequencies((proportional(dims, base, s)?, 1.0)),
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
