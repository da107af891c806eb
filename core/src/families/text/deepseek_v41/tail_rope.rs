//! A rotary embedding of the last elements of each head, in float32, which can be undone. Follows
//! `deepseek_v41` of mlx-lm.

use crate::layers::position::rope::Rope;
use crate::{
    checkpoint::config::{self, Json, RopeScaling},
    error::{Error, Result},
    mlx,
};
use mlx_rs::{Array, Dtype, fast, ops};
use serde_json::{Value, json};

/// An interleaved rotary embedding of the last `dims` elements of each head.
#[derive(Clone)]
pub struct TailRope {
    dims: i32,
    forwards: Array,
    backwards: Array,
}

impl TailRope {
    /// Frequencies from a base, with the YaRN scaling that `scaling` describes but without its
    /// correction of the magnitude.
    ///
    /// # Errors
    /// [`Error::Config`] for invalid fields.
    pub fn yarn(dims: i32, base: f32, scaling: &Json) -> Result<Self> {
        let mut fields = Json::from(json!({
            "type": "yarn", "factor": 1.0, "mscale": 0.0, "mscale_all_dim": 0.0,
        }));
        for field in ["type", "rope_type"] {
            let kinds = ["yarn", "deepseek_yarn", "default"].map(Value::from);
            config::only_one_of(scaling, field, &kinds)?;
        }
        for field in ["factor", "original_max_position_embeddings", "beta_fast", "beta_slow"] {
            if let Some(value) = scaling.get(field).filter(|value| !value.is_null()) {
                fields = fields.with(field, value);
            }
        }
        let scaling: RopeScaling = config::read(&fields)?;
        match Rope::scaled(dims, base, true, Some(&scaling), None)? {
            Rope::Frequencies { wavelengths, .. } => {
                let backwards = wavelengths.negative()?;
                Ok(TailRope { dims, forwards: wavelengths, backwards })
            }
            _ => Err(Error::Internal("frequencies that are stretched are known".into())),
        }
    }

    /// Rotates `[batch, heads, length, head_dim]` to positions that start at `start` `[1]`, each
    /// `distance` after the previous one.
    pub(crate) fn forward(&self, x: &Array, start: &Array, distance: i32) -> Result<Array> {
        self.turn(x, start, distance, &self.forwards)
    }

    /// The inverse of [`TailRope::forward`].
    pub(crate) fn back(&self, x: &Array, start: &Array) -> Result<Array> {
        self.turn(x, start, 1, &self.backwards)
    }

    fn turn(&self, x: &Array, start: &Array, distance: i32, way: &Array) -> Result<Array> {
        let (width, distance) = (x.dim(3), distance as f32);
        let tail = mlx::slice(x, 3, width - self.dims, width)?.as_dtype(Dtype::Float32)?;
        let turned = fast::rope_dynamic(tail, self.dims, true, None, distance, start, way)?;
        let turned = turned.as_dtype(x.dtype())?;
        if self.dims == width {
            return Ok(turned);
        }
        Ok(ops::concatenate(&[mlx::slice(x, 3, 0, width - self.dims)?, turned], 3)?)
    }
}
