//! Alternating updates (AltUp, [Baykal et al. 2023](https://arxiv.org/abs/2301.13310)): several
//! residual streams, of which a block computes one; the others are predicted and then corrected by
//! the error of that one's prediction. Computes in float32. Follows `gemma3n` of mlx-lm.

use crate::{
    checkpoint::{
        config::{self, Count, Positive, Size, Text},
        scope::Scope,
    },
    error::{Error, Result},
    mlx,
};
use crate::{
    layers::{linear::Linear, norm::Norm},
    mlx::matrix::Matrix,
};
use mlx_rs::{Array, Dtype, ops};
use serde::Deserialize;

/// The config fields of alternating updates.
#[derive(Clone, Copy, Deserialize)]
pub struct AltUpSizes {
    /// The number of streams.
    pub altup_num_inputs: Size,
    altup_coef_clip: Option<Positive>,
    altup_active_idx: Count,
}

/// The predictor and corrector of one block.
pub struct AltUp {
    router: (Norm, Linear),
    prediction: Linear,
    correction: Linear,
    streams: i32,
    active: i32,
}

impl AltUp {
    /// Reads the norm, the router and the coefficients.
    ///
    /// # Errors
    /// As [`Scope::linear`]; [`Error::Config`] for sizes that no model has.
    pub fn read(w: &Scope, c: &Text, sizes: &AltUpSizes) -> Result<Self> {
        let (streams, active) = (*sizes.altup_num_inputs, *sizes.altup_active_idx);
        if active >= streams {
            return Err(Error::config("altup_active_idx", "not one of the streams"));
        }
        let coefficients = |name, rows| -> Result<Linear> {
            let w = w.at(name);
            let mut weight = w.take("weight", &[rows, streams])?.as_dtype(Dtype::Float32)?;
            if let Some(limit) = sizes.altup_coef_clip.map(f32::from) {
                weight = ops::clip(&weight, (Array::from_f32(-limit), Array::from_f32(limit)))?;
            }
            Ok(Linear::new(Matrix::Dense(w.keep(weight)), None))
        };
        let pairs = config::product("altup_num_inputs", [streams, streams])?;
        Ok(AltUp {
            router: (
                w.rms_norm("router_norm", c.hidden_size, c.rms_norm_eps)?,
                w.linear("modality_router", c.hidden_size, streams)?,
            ),
            prediction: coefficients("prediction_coefs", pairs)?,
            correction: coefficients("correction_coefs", streams)?,
            streams,
            active,
        })
    }

    /// The active stream `[batch, length, width]` of `[streams, batch, length, width]`.
    pub fn active(&self, streams: &Array) -> Result<Array> {
        stream(streams, self.active)
    }

    /// The outputs of the router, `[batch, length, streams]`.
    fn modalities(&self, x: &Array) -> Result<Array> {
        let (norm, router) = &self.router;
        let share = mlx::scalar((x.dim(-1) as f32).recip(), x.dtype())?;
        let routed = router.forward(&norm.forward(x)?.multiply(share)?)?;
        Ok(ops::tanh(&routed.as_dtype(Dtype::Float32)?)?)
    }

    /// Predicts the streams after the block.
    pub fn predict(&self, streams: &Array) -> Result<Array> {
        let mixture = self.prediction.forward(&self.modalities(&self.active(streams)?)?)?;
        let shape = [mixture.dim(0), mixture.dim(1), self.streams, self.streams];
        let mixture = mixture.reshape(&shape)?.swap_axes(2, 3)?;
        let wide = streams.as_dtype(Dtype::Float32)?;
        let mixed = wide.transpose_axes(&[1, 2, 3, 0])?.matmul(mixture)?;
        Ok(mixed.transpose_axes(&[3, 0, 1, 2])?.add(wide)?.as_dtype(streams.dtype())?)
    }

    /// Corrects the predictions with the computed active stream `[batch, length, width]`.
    pub fn correct(&self, predictions: &Array, activated: &Array) -> Result<Array> {
        let shares = self.correction.forward(&self.modalities(activated)?)?;
        let shares = shares.add(Array::from_f32(1.0))?.transpose_axes(&[2, 0, 1])?;
        let innovation = activated.subtract(self.active(predictions)?)?.expand_dims(0)?;
        let corrected = innovation.multiply(shares.expand_dims(-1)?)?.add(predictions)?;
        Ok(corrected.as_dtype(activated.dtype())?)
    }
}

/// Expands one stream to several, or reduces them to one. All but the first pass a projection and
/// keep the root mean square of the first.
pub struct Streams(Vec<Linear>);

impl Streams {
    /// Reads the projections `{name}.{i}`.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn read(w: &Scope, name: &str, c: &Text, sizes: &AltUpSizes) -> Result<Self> {
        let (w, width) = (w.at(name), c.hidden_size);
        let projections =
            (1..*sizes.altup_num_inputs).map(|i| w.linear(&(i - 1).to_string(), width, width));
        Ok(Streams(projections.collect::<Result<_>>()?))
    }

    /// Maps `[batch, length, width]` to `[streams, batch, length, width]`.
    pub fn spread(&self, x: &Array) -> Result<Array> {
        self.project(x, |_| Ok(x.clone()))
    }

    /// Maps `[streams, batch, length, width]` to the mean of the streams.
    pub fn gather(&self, streams: &Array) -> Result<Array> {
        let all = self.project(&stream(streams, 0)?, |i| stream(streams, i))?;
        Ok(all.mean_axis(0, false)?)
    }

    fn project(&self, first: &Array, other: impl Fn(i32) -> Result<Array>) -> Result<Array> {
        let mut streams = vec![first.clone()];
        for (i, projection) in (1..).zip(&self.0) {
            streams.push(alike(&projection.forward(&other(i)?)?, first)?);
        }
        Ok(ops::stack(&streams, 0)?)
    }
}

fn stream(streams: &Array, i: i32) -> Result<Array> {
    Ok(mlx::slice(streams, 0, i, i + 1)?.squeeze_axes(&[0])?)
}

/// Scales `x` to the root mean square of `y`; as in transformers, values near zero stay as they
/// are.
fn alike(x: &Array, y: &Array) -> Result<Array> {
    let square = |x: &Array| -> Result<Array> { Ok(x.square()?.mean_axis(-1, true)?) };
    let own = ops::maximum(square(x)?, mlx::scalar(1e-5, x.dtype())?)?;
    Ok(x.multiply(square(y)?.sqrt()?.divide(own.sqrt()?)?)?)
}
