//! Random numbers of decoders and sound sources.

use crate::{error::Result, layers::step::Step};
use mlx_rs::{Array, Dtype, ops, random};

/// Where the random numbers of a pass come from. A pass that has none uses zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Noise {
    /// Every number is 0.
    #[default]
    Zero,
    /// Numbers that follow from this seed.
    Seed(u64),
}

impl Noise {
    /// The noise of a pass.
    pub fn of(step: &Step) -> Self {
        step.get().unwrap_or_default()
    }

    /// Normal numbers; `place` tells those of one layer from those of another.
    pub fn normal(self, shape: &[i32], place: i32, dtype: Dtype) -> Result<Array> {
        match self {
            Noise::Zero => Ok(ops::zeros_dtype(shape, dtype)?),
            Noise::Seed(seed) => {
                let key = random::key(seed.wrapping_add(place as u64))?;
                Ok(random::normal::<f32>(shape, None, None, &key)?.as_dtype(dtype)?)
            }
        }
    }
}
