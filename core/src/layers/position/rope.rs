//! Rotary position embedding ([Su et al. 2021](https://arxiv.org/abs/2104.09864)) and the ways to
//! stretch it to longer contexts. Follows `modeling_rope_utils` of transformers.

use crate::layers::position::{
    longrope::{LongRope, Wavelengths},
    sections::{self, Rotation},
    wavelengths::{exponents, llama3, magnify, missing, proportional, required, yarn},
};
use crate::{
    checkpoint::config::{RopeScaling, Size, Text},
    error::{Error, Result},
    layers::step::{Rotary, Step},
    mlx,
};
use mlx_rs::{Array, fast, ops};
use std::borrow::Cow;

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
        /// Factor of the rotated elements.
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
    /// Wavelengths that depend on the length of the sequence.
    LongRope(LongRope),
    /// Pairs that take their positions from several axes (M-RoPE). Where a token has one position,
    /// this is the plain rotation.
    Sections {
        /// The rotation of tokens with one position.
        plain: Box<Rope>,
        /// The axis of each pair, `[dims / 2]`.
        axes: Array,
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
        let scaling = c.rope_scaling();
        let rope = Self::scaled(dims, c.rope_theta(), *c.rope_traditional, scaling, context)?;
        match scaling.and_then(sections::axes) {
            Some(axes) => rope.with_sections(&axes),
            None => Ok(rope),
        }
    }

    /// As [`Rope::partial`], with the `rotary_dim` of a config; without, its share or the whole.
    ///
    /// # Errors
    /// As [`Rope::of`], and when a head has fewer elements.
    pub fn rotary_dim(c: &Text, dims: Option<Size>) -> Result<Self> {
        let Some(Size(dims)) = dims else { return Self::share(c, 1.0) };
        // The share says the same in another way.
        c.partial_rotary_factor();
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
        let share = c.partial_rotary_factor().unwrap_or(default);
        Self::partial(c, c.share_of_head(share, "partial_rotary_factor")?)
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
        let context = context.map(f64::from);
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
                let trained = context.ok_or_else(|| missing("max_position_embeddings"))? as f32;
                Ok(Rope::Dynamic { dims, traditional, base, factor, trained })
            }
            "llama3" => frequencies((llama3(dims, base, s)?, 1.0)),
            "yarn" | "deepseek_yarn" | "telechat3-yarn" => {
                frequencies(yarn(dims, base, s, context)?)
            }
            "longrope" | "su" => {
                Ok(Rope::LongRope(LongRope::read(dims, base, traditional, s, context)?))
            }
            "proportional" => frequencies((proportional(dims, base, s)?, 1.0)),
            kind => {
                let reason = format!("the type `{kind}` is not supported");
                Err(Error::unsupported("rope_scaling.rope_type", reason))
            }
        }
    }

    /// Rotates each token of each row by itself, from the positions `at` `[rows]` on.
    fn rotate_one_by_one(&self, x: &Array, at: &Array, length: i32) -> Result<Array> {
        let rows = at.dim(0);
        let row = |row| {
            let x = if rows > 1 { mlx::slice(x, 0, row, row + 1)? } else { x.clone() };
            let first = mlx::slice(at, 0, row, row + 1)?;
            let token = |ahead| {
                let position = first.add(Array::from_int(ahead))?;
                self.rotate_from(&mlx::slice(&x, 2, ahead, ahead + 1)?, &position, 1)
            };
            let tokens: Vec<Array> = (0..length).map(token).collect::<Result<_>>()?;
            Ok(ops::concatenate(&tokens, 2)?)
        };
        let rows: Vec<Array> = (0..rows).map(row).collect::<Result<_>>()?;
        Ok(ops::concatenate(&rows, 0)?)
    }

    /// The same rotation with positions of several axes: `axes` has the axis of each pair, as
    /// [`contiguous`](super::sections::contiguous) or [`interleaved`](super::sections::interleaved)
    /// gives it.
    ///
    /// # Errors
    /// [`Error::Config`] unless each pair has an axis.
    pub fn with_sections(self, axes: &[i32]) -> Result<Self> {
        let pairs = match &self {
            Rope::Base { dims, .. } | Rope::Frequencies { dims, .. } => dims / 2,
            _ => {
                let reason = "sections fit a rotation with fixed wavelengths only";
                return Err(Error::config("rope_scaling.mrope_section", reason));
            }
        };
        if axes.len() as i32 != pairs {
            let reason = format!("{} pairs of a head have an axis, not all {pairs}", axes.len());
            return Err(Error::config("rope_scaling.mrope_section", reason));
        }
        Ok(Rope::Sections { plain: Box::new(self), axes: Array::from_slice(axes, &[pairs]) })
    }

    /// Rotates `x` to the positions of this step.
    pub(crate) fn forward(&self, x: &Array, step: &Step) -> Result<Array> {
        let rope = self.of_length(step.sequence_length);
        let at = match &step.rotary {
            None => &step.position,
            Some(Rotary::From(position)) => position,
            Some(Rotary::Each(positions)) => return rope.rotate_each(x, positions, None),
        };
        // Each token of a single step has its own base.
        let each_has_a_base = step.offset.is_none() && (at.dim(0) > 1 || step.length > 1);
        match &*rope {
            Rope::Dynamic { .. } if each_has_a_base => rope.rotate_one_by_one(x, at, step.length),
            _ => rope.rotate_from(x, at, step.length),
        }
    }

    /// The rotation of a sequence of this length, where the host knows it.
    fn of_length(&self, length: Option<i32>) -> Cow<'_, Rope> {
        let (Rope::LongRope(rope), Some(length)) = (self, length) else {
            return Cow::Borrowed(self);
        };
        let Wavelengths { wavelengths, magnitude } = rope.of(length).clone();
        let (dims, traditional) = (rope.dims, rope.traditional);
        Cow::Owned(Rope::Frequencies { dims, traditional, wavelengths, magnitude })
    }

    /// Rotates to consecutive positions from `at` on.
    fn rotate_from(&self, x: &Array, at: &Array, length: i32) -> Result<Array> {
        Ok(match self {
            Rope::None => x.clone(),
            Rope::Base { dims, traditional, base, scale } => {
                fast::rope_dynamic(x, *dims, *traditional, *base, *scale, at, None)?
            }
            Rope::Frequencies { dims, traditional, wavelengths, magnitude } => {
                let x = &magnify(x, *dims, *magnitude)?;
                fast::rope_dynamic(x, *dims, *traditional, None, 1.0, at, wavelengths)?
            }
            Rope::Dynamic { dims, traditional, .. } => {
                let wavelengths = self.grown(&at.add(Array::from_int(length))?)?;
                fast::rope_dynamic(x, *dims, *traditional, None, 1.0, at, &wavelengths)?
            }
            Rope::LongRope(rope) => rope.rotate(x, at, length)?,
            Rope::Sections { plain, .. } => plain.rotate_from(x, at, length)?,
        })
    }

    /// Rotates each token to positions of its own, `[axes, batch, length]`.
    fn rotate_each(&self, x: &Array, positions: &Array, axes: Option<&Array>) -> Result<Array> {
        match self {
            Rope::None => Ok(x.clone()),
            Rope::Base { dims, traditional, base, scale } => {
                let wavelengths = Array::from_f32(*base).power(exponents(*dims)?)?;
                let wavelengths = wavelengths.divide(Array::from_f32(*scale))?;
                let (dims, traditional) = (*dims, *traditional);
                Rotation { dims, traditional, wavelengths, axes }.rotate(x, positions)
            }
            Rope::Frequencies { dims, traditional, wavelengths, magnitude } => {
                let (dims, traditional, wavelengths) = (*dims, *traditional, wavelengths.clone());
                let x = magnify(x, dims, *magnitude)?;
                Rotation { dims, traditional, wavelengths, axes }.rotate(&x, positions)
            }
            Rope::Dynamic { dims, traditional, .. } => {
                let wavelengths = self.grown(&positions.max(None)?.add(Array::from_int(1))?)?;
                let (dims, traditional) = (*dims, *traditional);
                Rotation { dims, traditional, wavelengths, axes }.rotate(x, positions)
            }
            Rope::LongRope(_) => {
                let reason = "positions of several axes need the length of the sequence";
                Err(Error::Internal(reason.into()))
            }
            Rope::Sections { plain, axes } => plain.rotate_each(x, positions, Some(axes)),
        }
    }

    /// The wavelengths of a dynamic rotation for a sequence of this length.
    fn grown(&self, length: &Array) -> Result<Array> {
        let Rope::Dynamic { dims, base, factor, trained, .. } = self else {
            return Err(Error::Internal("only dynamic wavelengths grow".into()));
        };
        let constant = Array::from_f32;
        let length = ops::maximum(length, constant(*trained))?;
        let growth = length.multiply(constant(factor / trained))?;
        let growth = growth.subtract(constant(factor - 1.0))?;
        let exponent = *dims as f32 / (dims - 2) as f32;
        let base = growth.power(constant(exponent))?.multiply(constant(*base))?;
        Ok(base.power(exponents(*dims)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::position::sections::{contiguous, interleaved};
    use mlx_rs::random;

    const LENGTH: i32 = 7;
    const HEADS: i32 = 2;
    const WIDTH: i32 = 20;

    fn ropes() -> Vec<Rope> {
        let wavelengths = Array::from_slice(&[1.0_f32, 2.5, 7.0, 40.0, 90.0, 300.0], &[6]);
        let base = |dims, traditional, scale| Rope::Base { dims, traditional, base: 1e3, scale };
        let own = |traditional, magnitude| {
            let wavelengths = wavelengths.clone();
            Rope::Frequencies { dims: 12, traditional, wavelengths, magnitude }
        };
        vec![
            base(20, false, 1.0),
            base(12, true, 0.5),
            base(12, false, -1.0),
            own(false, 1.3),
            own(true, 1.0),
            Rope::Dynamic { dims: 12, traditional: false, base: 1e3, factor: 4.0, trained: 4.0 },
            Rope::None,
        ]
    }

    fn input() -> Array {
        random::normal::<f32>(&[1, HEADS, LENGTH, WIDTH], None, None, None).unwrap()
    }

    fn each(axes: &[[i32; LENGTH as usize]]) -> Step {
        let mut step = Step::prefill(0, LENGTH);
        let positions = Array::from_slice(&axes.concat(), &[axes.len() as i32, 1, LENGTH]);
        step.rotary = Some(Rotary::Each(positions));
        step
    }

    fn assert_close(a: &Array, b: &Array) {
        let difference = a.subtract(b).unwrap().abs().unwrap().max(None).unwrap();
        let difference: f32 = difference.try_item_cast().unwrap();
        assert!(difference < 1e-5, "{difference}");
    }

    #[test]
    fn equal_axes_rotate_as_one_position_does() {
        random::seed(3).unwrap();
        let consecutive = [5, 6, 7, 8, 9, 10, 11];
        for rope in ropes() {
            let x = input();
            let expected = rope.forward(&x, &Step::prefill(5, LENGTH)).unwrap();
            assert_close(&rope.forward(&x, &each(&[consecutive])).unwrap(), &expected);
            let mut from = Step::prefill(90, LENGTH);
            from.rotary = Some(Rotary::From(Array::from_slice(&[5], &[1])));
            assert_close(&rope.forward(&x, &from).unwrap(), &expected);
            let pairs = match &rope {
                Rope::Base { dims, .. } | Rope::Frequencies { dims, .. } => dims / 2,
                _ => continue,
            };
            let sections = rope.with_sections(&interleaved(&[pairs - 4, 2, 2])).unwrap();
            let same = each(&[consecutive, consecutive, consecutive]);
            assert_close(&sections.forward(&x, &same).unwrap(), &expected);
            assert_close(&sections.forward(&x, &Step::prefill(5, LENGTH)).unwrap(), &expected);
        }
    }

    #[test]
    fn each_pair_follows_its_axis() {
        assert_eq!(contiguous(&[1, 2, 3]), [0, 1, 1, 2, 2, 2]);
        // 24, 20 and 20 of Qwen3-VL: the axes take turns up to pair 60.
        let published = interleaved(&[24, 20, 20]);
        assert_eq!(published[..6], [0, 1, 2, 0, 1, 2]);
        assert_eq!(published[57..], [0, 1, 2, 0, 0, 0, 0]);
        assert_eq!(interleaved(&[3, 1, 2]), [0, 1, 2, 0, 0, 2]);

        let axes = [[0, 1, 2, 2, 2, 2, 3], [0, 1, 2, 3, 4, 5, 6], [4, 9, 1, 0, 7, 2, 90]];
        for table in [contiguous(&[1, 2, 3]), interleaved(&[2, 2, 2])] {
            for rope in ropes().into_iter().take(5).filter(|rope| match rope {
                Rope::Base { dims, .. } | Rope::Frequencies { dims, .. } => *dims == 12,
                _ => false,
            }) {
                let x = input();
                let (traditional, wavelength, magnitude) = match &rope {
                    Rope::Frequencies { traditional, wavelengths, magnitude, .. } => {
                        (*traditional, mlx::to_vec::<f32>(wavelengths).unwrap(), *magnitude)
                    }
                    Rope::Base { traditional, base, scale, .. } => {
                        let wave = |i| base.powf(i as f32 / 6.0) / scale;
                        (*traditional, (0..6).map(wave).collect(), 1.0)
                    }
                    _ => unreachable!(),
                };
                let values: Vec<f32> = mlx::to_vec(&x).unwrap();
                let mut expected = values.clone();
                for (row, x) in values.chunks(WIDTH as usize).enumerate() {
                    for pair in 0..6 {
                        let position = axes[table[pair] as usize][row % LENGTH as usize] as f32;
                        let (sin, cos) = (position / wavelength[pair]).sin_cos();
                        let (i, j) =
                            if traditional { (2 * pair, 2 * pair + 1) } else { (pair, pair + 6) };
                        let start = row * WIDTH as usize;
                        expected[start + i] = magnitude * (x[i] * cos - x[j] * sin);
                        expected[start + j] = magnitude * (x[j] * cos + x[i] * sin);
                    }
                }
                let rope = rope.with_sections(&table).unwrap();
                let expected = Array::from_slice(&expected, x.shape());
                assert_close(&rope.forward(&x, &each(&axes)).unwrap(), &expected);
            }
        }
    }

    #[test]
    fn sections_must_fit_the_head() {
        let rope = || ropes().swap_remove(1);
        let refused = rope().with_sections(&contiguous(&[1, 2, 2])).err();
        assert!(matches!(refused, Some(Error::Config { .. })));
        assert!(Rope::None.with_sections(&[]).is_err());
    }
}
