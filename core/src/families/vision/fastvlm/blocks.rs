//! The blocks of FastViTHD, with the branches of the training folded into one convolution each. All take
//! and give `[batch, rows, columns, channels]`.

use crate::{
    families::prelude::*,
    layers::{
        attention::bidirectional::{BidirectionalAttention, Heads},
        audio::{convolution::Kernel as Taps, convolution_2d::Convolution2d},
    },
};

/// The sizes of a block.
#[derive(Clone, Copy)]
pub struct Sizes {
    /// Channels of the stream.
    pub channels: i32,
    /// Channels inside the feed-forward network.
    pub inner: i32,
}

/// A convolution, which has a bias.
pub fn biased(w: &Scope, taps: Taps) -> Result<Convolution2d> {
    w.require("bias")?;
    w.convolution_2d(taps)
}

/// A convolution and an activation.
pub struct Convolved(Convolution2d);

impl Convolved {
    pub fn read(w: &Scope, taps: Taps) -> Result<Self> {
        Ok(Convolved(biased(&w.at("reparam_conv"), taps)?))
    }

    pub fn forward(&self, x: &Array) -> Result<Array> {
        gelu(&self.0.forward(x)?)
    }
}

/// A projection of the channels of each pixel, which checkpoints store as a convolution of one tap.
fn pointwise(w: &Scope, name: &str, input: i32, output: i32) -> Result<PatchEmbedding> {
    PatchEmbedding::with_bias(w, name, Kernel::square(input, 1), output)
}

/// A reduction of the picture by a wide convolution of each channel.
pub struct Reduction {
    wide: Convolution2d,
    channels: PatchEmbedding,
}

impl Reduction {
    pub fn read(w: &Scope, taps: Taps) -> Result<Self> {
        let width = taps.output;
        Ok(Reduction {
            wide: biased(&w.at("0.lkb_reparam"), taps)?,
            channels: pointwise(&w.at(1), "reparam_conv", width, width)?,
        })
    }

    pub fn forward(&self, x: &Array) -> Result<Array> {
        gelu(&self.channels.flattened(&gelu(&self.wide.forward(x)?)?)?)
    }
}

/// The factors of a branch; torch stores them as `[channels, 1, 1]`, MLX as `[1, 1, channels]`, and the
/// one channel of a kernel last.
fn layer_scale(w: &Scope, name: &str, channels: i32) -> Result<Array> {
    let kernel = w.at("convffn.conv.conv").shape("weight");
    let is_mlx = kernel.is_some_and(|shape| shape.last() == Some(&1));
    let shape = if is_mlx { [1, 1, channels] } else { [channels, 1, 1] };
    Ok(w.keep(w.take(name, &shape)?.reshape(&[channels])?))
}

/// A feed-forward network after a convolution of 7 by 7 pixels of each channel and a batch norm.
struct ConvolvedMlp {
    wide: Convolution2d,
    /// Factors and shifts.
    norm: [Array; 2],
    up: PatchEmbedding,
    down: PatchEmbedding,
}

impl ConvolvedMlp {
    fn read(w: &Scope, sizes: Sizes) -> Result<Self> {
        let Sizes { channels, inner } = sizes;
        let taps = Taps::new(channels, channels, 7).groups(channels);
        Ok(ConvolvedMlp {
            wide: w.at("conv.conv").convolution_2d(taps)?,
            norm: w.at("conv.bn").batch_norm(channels)?,
            up: pointwise(w, "fc1", channels, inner)?,
            down: pointwise(w, "fc2", inner, channels)?,
        })
    }

    fn forward(&self, x: &Array) -> Result<Array> {
        let [factor, shift] = &self.norm;
        let x = self.wide.forward(x)?.multiply(factor)?.add(shift)?;
        self.down.flattened(&gelu(&self.up.flattened(&x)?)?)
    }
}

/// Pixels are mixed by a convolution of each channel.
pub struct RepMixerBlock {
    mixer: Convolution2d,
    mlp: ConvolvedMlp,
    scale: Array,
}

impl RepMixerBlock {
    pub fn read(w: &Scope, sizes: Sizes, size: i32) -> Result<Self> {
        let channels = sizes.channels;
        let taps = Taps::new(channels, channels, size).groups(channels);
        // The layout is seen from a kernel that is still unread.
        let scale = layer_scale(w, "layer_scale", channels)?;
        Ok(RepMixerBlock {
            mixer: biased(&w.at("token_mixer.reparam_conv"), taps)?,
            mlp: ConvolvedMlp::read(&w.at("convffn"), sizes)?,
            scale,
        })
    }

    pub fn forward(&self, x: &Array) -> Result<Array> {
        let x = self.mixer.forward(x)?;
        Ok(x.add(self.mlp.forward(&x)?.multiply(&self.scale)?)?)
    }
}

/// Pixels are mixed by attention.
pub struct AttentionBlock {
    norm: Norm,
    attention: BidirectionalAttention,
    mlp: ConvolvedMlp,
    scales: [Array; 2],
}

impl AttentionBlock {
    pub const HEAD_DIM: i32 = 32;

    pub fn read(w: &Scope, sizes: Sizes) -> Result<Self> {
        let (channels, a) = (sizes.channels, w.at("token_mixer"));
        let [q, k, v] = a.fused("qkv", channels, [channels; 3])?;
        let projections = [q, k, v, a.linear_with_bias("proj", channels, channels)?];
        let heads = Heads::equal(channels / Self::HEAD_DIM, Self::HEAD_DIM);
        let scales = ["layer_scale_1", "layer_scale_2"].map(|name| layer_scale(w, name, channels));
        let [first, second] = scales;
        Ok(AttentionBlock {
            norm: w.layer_norm_with_bias("norm", channels, 1e-5)?,
            attention: BidirectionalAttention::new(projections, heads, Rope::None),
            mlp: ConvolvedMlp::read(&w.at("convffn"), sizes)?,
            scales: [first?, second?],
        })
    }

    pub fn forward(&self, x: &Array) -> Result<Array> {
        let tokens = self.norm.forward(x)?.flatten(1, 2)?;
        let step = Step::prefill(0, tokens.dim(1));
        let mixed = self.attention.forward(&tokens, &mut (), &step)?.reshape(x.shape())?;
        let x = x.add(mixed.multiply(&self.scales[0])?)?;
        Ok(x.add(self.mlp.forward(&x)?.multiply(&self.scales[1])?)?)
    }
}

/// Channels are weighted by what the whole picture has in them
/// ([Hu et al. 2017](https://arxiv.org/abs/1709.01507)).
pub struct SqueezeExcite {
    reduce: PatchEmbedding,
    expand: PatchEmbedding,
}

impl SqueezeExcite {
    pub fn read(w: &Scope, channels: i32) -> Result<Self> {
        let inner = channels / 16;
        Ok(SqueezeExcite {
            reduce: pointwise(w, "reduce", channels, inner)?,
            expand: pointwise(w, "expand", inner, channels)?,
        })
    }

    pub fn forward(&self, x: &Array) -> Result<Array> {
        let mean = x.mean_axes(&[1, 2], true)?;
        let inner = self.reduce.flattened(&mean)?;
        let inner = ops::maximum(&inner, mlx::scalar(0.0, inner.dtype())?)?;
        Ok(x.multiply(ops::sigmoid(&self.expand.flattened(&inner)?)?)?)
    }
}
