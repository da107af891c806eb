//! Durations, pitch and loudness.

use super::{
    config::Config,
    style::{StyleBlock, StyleNorm},
};
use crate::{
    families::prelude::*,
    layers::audio::{
        convolution::{Convolution, Kernel},
        lstm::BiLstm,
    },
};

/// The most frames of one phoneme.
const LONGEST: f32 = 100.0;

pub(super) struct Prosody {
    encoder: Vec<(BiLstm, StyleNorm)>,
    duration_lstm: BiLstm,
    duration: Linear,
    shared: BiLstm,
    f0: Curve,
    energy: Curve,
}

/// One number for each half of a frame.
struct Curve {
    blocks: Vec<StyleBlock>,
    output: Convolution,
}

impl Prosody {
    pub(super) fn read(w: &Scope, c: &Config) -> Result<Self> {
        let (width, style) = (*c.hidden_dim, *c.style_dim);
        let lstm = |w: Scope| w.bi_lstm(width + style, width / 2);
        let list = w.at("text_encoder.lstms");
        let layer = |i: i32| {
            let norm = StyleNorm::read(&list.at(2 * i + 1), style, width, false)?;
            Ok((lstm(list.at(2 * i))?, norm))
        };
        Ok(Prosody {
            encoder: (0..*c.n_layer).map(layer).collect::<Result<_>>()?,
            duration_lstm: lstm(w.at("lstm"))?,
            duration: w.linear_with_bias("duration_proj.linear_layer", width, *c.max_dur)?,
            shared: lstm(w.at("shared"))?,
            f0: Curve::read(w, "F0", width, style)?,
            energy: Curve::read(w, "N", width, style)?,
        })
    }

    /// `[1, length, width]` to `[1, length, width + style]`, which the style ends.
    pub(super) fn encode(&self, x: &Array, style: &Array) -> Result<Array> {
        let styles = ops::broadcast_to(&style.expand_dims(1)?, &[1, x.dim(1), style.dim(1)])?;
        let mut x = ops::concatenate(&[x, &styles], -1)?;
        for (lstm, norm) in &self.encoder {
            let y = norm.forward(&lstm.run(&x)?, style)?;
            x = ops::concatenate(&[&y, &styles], -1)?;
        }
        Ok(x)
    }

    /// The frames of each phoneme.
    pub(super) fn durations(&self, encoded: &Array, speed: f32) -> Result<Vec<u32>> {
        let x = self.duration.forward(&self.duration_lstm.run(encoded)?)?;
        let frames: Vec<f32> = mlx::to_vec(&ops::sigmoid(&x)?.sum_axis(-1, false)?)?;
        let whole = |frames: &f32| match frames / speed {
            frames if frames.is_nan() => 1,
            frames => frames.round_ties_even().clamp(1.0, LONGEST) as u32,
        };
        Ok(frames.iter().map(whole).collect())
    }

    /// Pitch and loudness `[1, 2 * frames, 1]` of what was encoded, frame by frame.
    pub(super) fn curves(&self, frames: &Array, style: &Array) -> Result<[Array; 2]> {
        let x = self.shared.run(frames)?;
        Ok([self.f0.forward(&x, style)?, self.energy.forward(&x, style)?])
    }
}

impl Curve {
    fn read(w: &Scope, name: &str, width: i32, style: i32) -> Result<Self> {
        let half = width / 2;
        let block = |i: i32, input, output| {
            StyleBlock::read(&w.at(name).at(i), input, output, style, i == 1)
        };
        Ok(Curve {
            blocks: vec![block(0, width, width)?, block(1, width, half)?, block(2, half, half)?],
            output: w.at(format!("{name}_proj")).convolution(Kernel::new(half, 1, 1), 0)?,
        })
    }

    fn forward(&self, x: &Array, style: &Array) -> Result<Array> {
        let x = self.blocks.iter().try_fold(x.clone(), |x, block| block.forward(&x, style))?;
        self.output.forward(&x)
    }
}
