//! Anti-aliased activations ([Lee et al. 2022](https://arxiv.org/abs/2206.04658)): the activation is applied
//! at twice the rate, between two low-pass filters.

use crate::{
    error::Result,
    layers::{
        algebra::Layer,
        audio::{
            seanet::{Edge, pad},
            snake::Snake,
        },
        cache_plan::CachePlan,
        step::Step,
    },
    mlx,
};
use mlx_rs::{Array, ops};
use std::f64::consts::PI;

const TAPS: usize = 12;

/// Snake at twice the rate.
pub struct AntiAliased {
    snake: Snake,
    /// The low-pass filter of each channel, `[channels, taps, 1]`.
    filter: Array,
}

impl AntiAliased {
    /// An activation of `channels` channels.
    pub fn new(snake: Snake, channels: i32) -> Result<Self> {
        let filter = Array::from_slice(&low_pass(), &[1, TAPS as i32, 1]);
        let filter = ops::broadcast_to(&filter, &[channels, TAPS as i32, 1])?.contiguous()?;
        Ok(AntiAliased { snake, filter })
    }
}

impl Layer for AntiAliased {
    type State = ();

    fn state(&self, _: &CachePlan) {}

    fn forward(&self, x: &Array, (): &mut (), _: &Step) -> Result<Array> {
        let channels = self.filter.dim(0);
        let padded = pad(x, 5, 5, Edge::Replicate)?;
        let up = ops::conv_transpose1d(&padded, &self.filter, 2, 0, 1, 0, channels)?;
        let up = mlx::slice(&up, 1, 15, up.dim(1) - 15)?.multiply(mlx::scalar(2.0, x.dtype())?)?;
        let y = pad(&self.snake.forward(&up)?, 5, 6, Edge::Replicate)?;
        Ok(ops::conv1d(&y, &self.filter, 2, 0, 1, channels)?)
    }
}

/// A sinc at a quarter of the rate under a Kaiser window, with a sum of 1.
fn low_pass() -> [f32; TAPS] {
    // Half of the width of the transition is 0.3 of the rate.
    let attenuation = 2.285 * (TAPS as f64 / 2.0 - 1.0) * PI * 4.0 * 0.3 + 7.95;
    let beta = 0.1102 * (attenuation - 8.7);
    let beta = if attenuation > 50.0 {
        beta
    } else {
        0.5842 * (attenuation - 21.0).powf(0.4) + 0.07886 * (attenuation - 21.0)
    };
    let tap = |i: usize| {
        let place = 2.0 * i as f64 / (TAPS - 1) as f64 - 1.0;
        let window = bessel(beta * (1.0 - place * place).max(0.0).sqrt()) / bessel(beta);
        let time = (i as f64 - TAPS as f64 / 2.0 + 0.5) / 2.0;
        window * (PI * time).sin() / (PI * time)
    };
    let taps: [f64; TAPS] = std::array::from_fn(tap);
    let sum: f64 = taps.iter().sum();
    taps.map(|tap| (tap / sum) as f32)
}

/// The modified Bessel function of the first kind and order 0.
fn bessel(x: f64) -> f64 {
    let mut term = 1.0;
    let terms = (1..60).map(|k| {
        term *= (x / 2.0 / f64::from(k)).powi(2);
        term
    });
    1.0 + terms.sum::<f64>()
}
