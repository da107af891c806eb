//! LongRoPE ([Ding et al. 2024](https://arxiv.org/abs/2402.13753)): sequences up to the original
//! context rotate with short wavelengths, longer ones with long wavelengths, from their first token
//! on. Follows `modeling_rope_utils` of transformers.

use crate::{
    checkpoint::config::RopeScaling,
    error::Result,
    layers::position::wavelengths::{ORIGINAL, longrope, magnify, missing, required},
    mlx,
};
use mlx_rs::{Array, fast, ops};

/// The two rotations. Once a sequence outgrows the original context, its keys are computed anew
/// ([`LanguageModel::original_context`](crate::models::language::LanguageModel::original_context)),
/// so all of them have the wavelengths of its length.
#[derive(Clone)]
pub struct LongRope {
    /// How many elements of each head are rotated.
    pub(super) dims: i32,
    /// Whether pairs are neighbours instead of halves.
    pub(super) traditional: bool,
    original: i32,
    short: Wavelengths,
    long: Wavelengths,
}

#[derive(Clone)]
pub(super) struct Wavelengths {
    /// Over 2π, `[dims / 2]`.
    pub wavelengths: Array,
    /// Factor of the rotated elements.
    pub magnitude: f32,
}

impl LongRope {
    /// Reads the factors; `context` is the longest sequence that the checkpoint promises.
    pub(super) fn read(
        dims: i32,
        base: f32,
        traditional: bool,
        s: &RopeScaling,
        context: Option<f64>,
    ) -> Result<Self> {
        let original = required(s.original_max_position_embeddings, ORIGINAL)?;
        let factor = s.factor.or(context.map(|context| context / original));
        let factor = factor.ok_or_else(|| missing("max_position_embeddings"))?;
        let computed =
            || if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
        let computed = s.attention_factor.unwrap_or_else(computed);
        let read = |factors: &Option<Vec<f32>>, field, magnitude: Option<f64>| -> Result<_> {
            let factors = factors.as_ref().ok_or_else(|| missing(field))?;
            Ok(Wavelengths {
                wavelengths: longrope(dims, base, factors, field)?,
                magnitude: magnitude.unwrap_or(computed) as f32,
            })
        };
        let long = read(&s.long_factor, "long_factor", s.long_mscale)?;
        // Without factors for short sequences, all have those of long ones.
        let short = s.short_factor.as_ref().or(s.long_factor.as_ref()).cloned();
        let short = read(&short, "short_factor", s.short_mscale)?;
        Ok(LongRope { dims, traditional, original: original as i32, short, long })
    }

    /// The wavelengths of a sequence of this length.
    pub(super) fn of(&self, length: i32) -> &Wavelengths {
        if length > self.original { &self.long } else { &self.short }
    }

    /// Rotates the last `length` tokens of sequences whose length only the device knows, from the
    /// positions `at` `[rows]` on.
    pub(super) fn rotate(&self, x: &Array, at: &Array, length: i32) -> Result<Array> {
        if at.dim(0) == 1 {
            return self.rotate_row(x, at, length);
        }
        let row = |row| {
            let (x, at) = (mlx::slice(x, 0, row, row + 1)?, mlx::slice(at, 0, row, row + 1)?);
            self.rotate_row(&x, &at, length)
        };
        Ok(ops::concatenate(&(0..at.dim(0)).map(row).collect::<Result<Vec<_>>>()?, 0)?)
    }

    fn rotate_row(&self, x: &Array, at: &Array, length: i32) -> Result<Array> {
        let LongRope { dims, traditional, short, long, .. } = self;
        let is_long = at.add(Array::from_int(length))?.gt(Array::from_int(self.original))?;
        let wavelengths = ops::select(&is_long, &long.wavelengths, &short.wavelengths)?;
        let mut magnified = magnify(x, *dims, short.magnitude)?;
        if long.magnitude != short.magnitude {
            magnified = ops::select(&is_long, magnify(x, *dims, long.magnitude)?, magnified)?;
        }
        Ok(fast::rope_dynamic(&magnified, *dims, *traditional, None, 1.0, at, &wavelengths)?)
    }
}
