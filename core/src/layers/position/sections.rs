//! Rotary positions of several axes: M-RoPE of [Qwen2-VL](https://arxiv.org/abs/2409.12191), whose
//! pairs take their positions from time, height or width. Follows `modeling_qwen2_vl` and
//! `modeling_qwen3_vl` of transformers.

use crate::{checkpoint::config::RopeScaling, error::Result, mlx};
use mlx_rs::{Array, Dtype, ops};

/// The axis of each pair where each axis has a block of pairs.
pub fn contiguous(sections: &[i32]) -> Vec<i32> {
    let block = |(axis, count): (i32, &i32)| std::iter::repeat_n(axis, (*count).max(0) as usize);
    (0..).zip(sections).flat_map(block).collect()
}

/// The axis of each pair where the axes take turns until one has all its pairs; the first axis takes
/// those that are left.
pub fn interleaved(sections: &[i32]) -> Vec<i32> {
    let (count, pairs) = (sections.len() as i32, sections.iter().sum::<i32>().max(0));
    let axis = |pair: i32| {
        let axis = pair % count.max(1);
        if pair < sections[axis as usize] * count { axis } else { 0 }
    };
    (0..pairs).map(axis).collect()
}

/// The axis of each pair, where a config has several axes.
pub(super) fn axes(scaling: &RopeScaling) -> Option<Vec<i32>> {
    let sections = scaling.mrope_section.as_ref()?;
    Some(if scaling.mrope_interleaved == Some(true) {
        interleaved(sections)
    } else {
        contiguous(sections)
    })
}

/// How the pairs of a head are rotated.
pub(super) struct Rotation<'a> {
    /// How many elements of each head are rotated.
    pub dims: i32,
    /// Whether pairs are neighbours instead of halves.
    pub traditional: bool,
    /// Wavelengths over 2π, `[dims / 2]`.
    pub wavelengths: Array,
    /// The axis of each pair, `[dims / 2]`; without, all take the first axis.
    pub axes: Option<&'a Array>,
}

impl Rotation<'_> {
    /// Rotates `x` `[batch, heads, length, head_dim]` to `positions` `[axes, batch, length]`.
    pub fn rotate(&self, x: &Array, positions: &Array) -> Result<Array> {
        let positions = positions.as_dtype(Dtype::Float32)?;
        let of_pairs = match self.axes {
            Some(axes) => positions.take_axis(axes, 0)?,
            None => mlx::slice(&positions, 0, 0, 1)?,
        };
        let angles = of_pairs.transpose_axes(&[1, 2, 0])?.divide(&self.wavelengths)?;
        let angles = angles.expand_dims(1)?;
        let (cos, sin) = (angles.cos()?, angles.sin()?);
        let (axis, width, half) = (x.ndim() - 1, x.dim(-1), self.dims / 2);
        let rotated = mlx::slice(x, axis, 0, self.dims)?.as_dtype(Dtype::Float32)?;
        let shape = [x.dim(0), x.dim(1), x.dim(2)];
        let (pair, rotated) = if self.traditional {
            (4, rotated.reshape(&[shape[0], shape[1], shape[2], half, 2])?)
        } else {
            (3, rotated.reshape(&[shape[0], shape[1], shape[2], 2, half])?)
        };
        let part = |i| {
            Ok::<_, crate::error::Error>(
                mlx::slice(&rotated, pair, i, i + 1)?.squeeze_axes(&[pair as i32])?,
            )
        };
        let (a, b) = (part(0)?, part(1)?);
        let first = a.multiply(&cos)?.subtract(b.multiply(&sin)?)?;
        let second = b.multiply(&cos)?.add(a.multiply(&sin)?)?;
        let joined = ops::stack(&[first, second], pair as i32)?;
        let joined = joined.reshape(&[shape[0], shape[1], shape[2], self.dims])?;
        let joined = joined.as_dtype(x.dtype())?;
        if self.dims == width {
            return Ok(joined);
        }
        Ok(ops::concatenate(&[joined, mlx::slice(x, axis, self.dims, width)?], -1)?)
    }
}
