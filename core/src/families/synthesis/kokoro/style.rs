//! Norms whose factors follow from a style, and the residual block of them.

use crate::{
    families::prelude::*,
    layers::audio::convolution::{Convolution, Kernel, TransposedConvolution},
};

const EPS: f32 = 1e-5;

/// `x`, or `x · slope` below 0.
pub(super) fn leaky_relu(x: &Array, slope: f32) -> Result<Array> {
    Ok(ops::maximum(x, x.multiply(mlx::scalar(slope, x.dtype())?)?)?)
}

/// A norm with factors from a style ([Huang and Belongie 2017](https://arxiv.org/abs/1703.06868)).
pub(super) struct StyleNorm {
    factors: Linear,
    /// Whether each channel is normalised over time, or each step over the channels.
    is_over_time: bool,
}

impl StyleNorm {
    pub(super) fn read(w: &Scope, style: i32, width: i32, is_over_time: bool) -> Result<Self> {
        // Some files hold factors of 1 beside those that the style gives.
        w.ignore("norm");
        Ok(StyleNorm { factors: w.linear_with_bias("fc", style, 2 * width)?, is_over_time })
    }

    /// `[1, length, width]` with a style `[1, style]`.
    pub(super) fn forward(&self, x: &Array, style: &Array) -> Result<Array> {
        let factors = self.factors.forward(style)?.expand_dims(1)?.split_equal(2, -1)?;
        let normal = if self.is_over_time {
            let centred = x.subtract(x.mean_axis(1, true)?)?;
            let variance = centred.square()?.mean_axis(1, true)?;
            centred.divide(variance.add(mlx::scalar(EPS, x.dtype())?)?.sqrt()?)?
        } else {
            mlx_rs::fast::layer_norm(x, None, None, EPS)?
        };
        let scale = factors[0].add(mlx::scalar(1.0, x.dtype())?)?;
        Ok(normal.multiply(scale)?.add(&factors[1])?)
    }
}

/// Two convolutions after norms of the style, and a shortcut. It may double the length.
pub(super) struct StyleBlock {
    norms: [StyleNorm; 2],
    convs: [Convolution; 2],
    shortcut: Option<Convolution>,
    up: Option<TransposedConvolution>,
}

impl StyleBlock {
    pub(super) fn read(
        w: &Scope,
        input: i32,
        output: i32,
        style: i32,
        doubles: bool,
    ) -> Result<Self> {
        let norm = |name: &str, width| StyleNorm::read(&w.at(name), style, width, true);
        let up = Kernel::new(input, input, 3).stride(2).groups(input);
        let conv = |name: &str, kernel: Kernel| w.at(name).convolution(kernel, kernel.same());
        Ok(StyleBlock {
            norms: [norm("norm1", input)?, norm("norm2", output)?],
            convs: [
                conv("conv1", Kernel::new(input, output, 3))?,
                conv("conv2", Kernel::new(output, output, 3))?,
            ],
            shortcut: (input != output)
                .then(|| conv("conv1x1", Kernel::new(input, output, 1)))
                .transpose()?,
            up: doubles.then(|| w.at("pool").transposed_convolution(up, 1, 1)).transpose()?,
        })
    }

    pub(super) fn forward(&self, x: &Array, style: &Array) -> Result<Array> {
        let mut y = leaky_relu(&self.norms[0].forward(x, style)?, 0.2)?;
        let mut shortcut = x.clone();
        if let Some(up) = &self.up {
            y = up.forward(&y)?;
            shortcut = repeat(x, 2)?;
        }
        y = self.convs[0].forward(&y)?;
        y = self.convs[1].forward(&leaky_relu(&self.norms[1].forward(&y, style)?, 0.2)?)?;
        if let Some(conv) = &self.shortcut {
            shortcut = conv.forward(&shortcut)?;
        }
        let half = mlx::scalar(std::f32::consts::FRAC_1_SQRT_2, x.dtype())?;
        Ok(y.add(shortcut)?.multiply(half)?)
    }
}

/// Every step of `[1, length, width]` `count` times.
pub(super) fn repeat(x: &Array, count: i32) -> Result<Array> {
    let (length, width) = (x.dim(1), x.dim(2));
    let all = ops::broadcast_to(&x.expand_dims(2)?, &[1, length, count, width])?;
    Ok(all.reshape(&[1, length * count, width])?)
}
