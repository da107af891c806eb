//! Random numbers of decoders and sound sources.

use crate::{error::Result, layers::step::Step, mlx};
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

    /// Numbers of equal probability between 0 and 1.
    pub fn uniform(self, shape: &[i32], place: i32) -> Result<Array> {
        match self {
            Noise::Zero => Ok(ops::zeros_dtype(shape, Dtype::Float32)?),
            Noise::Seed(seed) => {
                let key = random::key(seed.wrapping_add(place as u64))?;
                let (low, high) =
                    (mlx::scalar(0.0, Dtype::Float32)?, mlx::scalar(1.0, Dtype::Float32)?);
                Ok(random::uniform::<_, f32>(low, high, shape, &key)?)
            }
        }
    }
}
