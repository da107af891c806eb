//! The FastConformer encoder ([Rekesh et al. 2023](https://arxiv.org/abs/2305.05084)): depthwise
//! convolutions of stride 2 over log-mel features, and blocks of two half feed-forward networks around
//! attention with relative positions and a convolution. Follows NVIDIA's NeMo.

use crate::{
    checkpoint::scope::Scope,
    error::Result,
    layers::{
        attention::grouped::{join_heads, split_heads},
        audio::{
            convolution::{Convolution, Kernel},
            convolution_2d::{Convolution2d, halved},
        },
        feed_forward::activation::{Activation, relu},
        linear::Linear,
        norm::Norm,
        position::relative::{relative_positions, shifted},
    },
    mlx,
};
use mlx_rs::{Array, fast::scaled_dot_product_attention, ops};

/// The names of tensors in transformers, and those of NeMo.
pub const OF_TRANSFORMERS: &[(&str, &str)] = &[
    ("subsampling.layers_", "pre_encode.conv."),
    ("subsampling.layers.", "pre_encode.conv."),
    ("subsampling.linear.", "pre_encode.out."),
    ("self_attn.relative_k_proj", "self_attn.linear_pos"),
    ("self_attn.q_proj", "self_attn.linear_q"),
    ("self_attn.k_proj", "self_attn.linear_k"),
    ("self_attn.v_proj", "self_attn.linear_v"),
    ("self_attn.o_proj", "self_attn.linear_out"),
    ("self_attn.bias_", "self_attn.pos_bias_"),
    ("conv.norm.", "conv.batch_norm."),
];

/// The sizes of an encoder.
#[derive(Clone, Copy, Debug)]
pub struct ConformerSizes {
    /// Mel bins.
    pub bins: i32,
    /// The width of the residual stream.
    pub width: i32,
    /// The inner width of the feed-forward networks.
    pub inner: i32,
    /// Attention heads.
    pub heads: i32,
    /// Blocks.
    pub layers: i32,
    /// Frames of one position: a power of 2.
    pub subsampling: i32,
    /// Channels of the convolutions in front.
    pub channels: i32,
    /// Taps of the convolution of a block.
    pub taps: i32,
    /// Whether the stream is multiplied by the root of the width before the blocks.
    pub is_scaled: bool,
    /// Of feed-forward networks and convolutions; references have SiLU.
    pub activation: Activation,
}

/// Log-mel features to positions.
pub struct Conformer {
    stem: Vec<StemConv>,
    output: Linear,
    blocks: Vec<ConformerBlock>,
    sizes: ConformerSizes,
}

/// A convolution in front of the blocks.
struct StemConv {
    conv: Convolution2d,
    /// Whether a ReLU follows.
    is_active: bool,
}

struct ConformerBlock {
    first_mlp: HalfMlp,
    attention_norm: Norm,
    /// Of queries, keys, values and the output.
    projections: [Linear; 4],
    positions: Linear,
    /// What is added to queries before they meet keys, and before they meet positions:
    /// `[heads, 1, head_dim]`.
    biases: [Array; 2],
    conv_norm: Norm,
    gate: Convolution,
    depthwise: Convolution,
    /// Factors and shifts of the batch norm, `[width]`.
    batch_norm: [Array; 2],
    last: Convolution,
    second_mlp: HalfMlp,
    norm: Norm,
}

/// Half of a feed-forward network, which is added to the stream.
struct HalfMlp {
    norm: Norm,
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl Conformer {
    /// Reads an encoder.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn read(w: &Scope, sizes: ConformerSizes) -> Result<Self> {
        let (front, layers) = (w.at("pre_encode"), w.at("layers"));
        let (convs, channels) = (front.at("conv"), sizes.channels);
        let read = |place: i32, kernel: Kernel| convs.at(place).convolution_2d(kernel);
        let first = read(0, Kernel::new(1, channels, 3).stride(2))?;
        let mut stem = vec![StemConv { conv: first, is_active: true }];
        let mut bins = halved(sizes.bins);
        for i in 1..sizes.subsampling.max(1).ilog2() as i32 {
            let depthwise = Kernel::new(channels, channels, 3).stride(2).groups(channels);
            let pointwise = Kernel::new(channels, channels, 1);
            stem.push(StemConv { conv: read(3 * i - 1, depthwise)?, is_active: false });
            stem.push(StemConv { conv: read(3 * i, pointwise)?, is_active: true });
            bins = halved(bins);
        }
        Ok(Conformer {
            stem,
            output: front.linear("out", channels * bins, sizes.width)?,
            blocks: (0..sizes.layers)
                .map(|i| ConformerBlock::read(&layers.at(i), &sizes))
                .collect::<Result<_>>()?,
            sizes,
        })
    }

    /// Features `[1, frames, bins]` to `[1, positions, width]`.
    ///
    /// # Errors
    /// [`Error::Mlx`](crate::Error::Mlx).
    pub fn forward(&self, features: &Array) -> Result<Array> {
        let mut x = features.expand_dims(3)?;
        for StemConv { conv, is_active } in &self.stem {
            x = conv.forward(&x)?;
            if *is_active {
                x = relu(&x)?;
            }
        }
        // The channels of a position come before its frequencies.
        let x = x.transpose_axes(&[0, 1, 3, 2])?.reshape(&[1, x.dim(1), -1])?;
        let mut x = self.output.forward(&x)?;
        if self.sizes.is_scaled {
            x = x.multiply(mlx::scalar((self.sizes.width as f32).sqrt(), x.dtype())?)?;
        }
        let positions = relative_positions(x.dim(1), self.sizes.width).as_dtype(x.dtype())?;
        for block in &self.blocks {
            x = block.forward(&x, &positions, self.sizes.heads)?;
        }
        Ok(x)
    }
}

impl HalfMlp {
    fn read(w: &Scope, norm: &str, name: &str, sizes: &ConformerSizes) -> Result<Self> {
        let (mlp, width, inner) = (w.at(name), sizes.width, sizes.inner);
        Ok(HalfMlp {
            norm: w.layer_norm_with_bias(norm, width, 1e-5)?,
            up: mlp.linear("linear1", width, inner)?,
            down: mlp.linear("linear2", inner, width)?,
            activation: sizes.activation,
        })
    }

    fn forward(&self, x: &Array) -> Result<Array> {
        let y = self.up.forward(&self.norm.forward(x)?)?;
        let y = self.down.forward(&(self.activation)(&y)?)?;
        Ok(x.add(y.multiply(mlx::scalar(0.5, y.dtype())?)?)?)
    }
}

impl ConformerBlock {
    fn read(w: &Scope, sizes: &ConformerSizes) -> Result<Self> {
        let ConformerSizes { width, heads, taps, .. } = *sizes;
        let norm = |name: &str| w.layer_norm_with_bias(name, width, 1e-5);
        let (attention, conv) = (w.at("self_attn"), w.at("conv"));
        let project = |name: &str| attention.linear(name, width, width);
        let dims = width / heads;
        let bias = |name: &str| {
            let bias = attention.take(name, &[heads, dims])?;
            Ok::<_, crate::Error>(attention.keep(bias.reshape(&[heads, 1, dims])?))
        };
        let convolve =
            |name: &str, kernel: Kernel| conv.at(name).convolution(kernel, kernel.same());
        let depthwise = Kernel::new(width, width, taps).groups(width);
        Ok(ConformerBlock {
            first_mlp: HalfMlp::read(w, "norm_feed_forward1", "feed_forward1", sizes)?,
            attention_norm: norm("norm_self_att")?,
            projections: [
                project("linear_q")?,
                project("linear_k")?,
                project("linear_v")?,
                project("linear_out")?,
            ],
            positions: project("linear_pos")?,
            biases: [bias("pos_bias_u")?, bias("pos_bias_v")?],
            conv_norm: norm("norm_conv")?,
            gate: convolve("pointwise_conv1", Kernel::new(width, 2 * width, 1))?,
            depthwise: convolve("depthwise_conv", depthwise)?,
            batch_norm: conv.at("batch_norm").batch_norm(width)?,
            last: convolve("pointwise_conv2", Kernel::new(width, width, 1))?,
            second_mlp: HalfMlp::read(w, "norm_feed_forward2", "feed_forward2", sizes)?,
            norm: norm("norm_out")?,
        })
    }

    fn forward(&self, x: &Array, positions: &Array, heads: i32) -> Result<Array> {
        let x = self.first_mlp.forward(x)?;
        let x = x.add(self.attend(&self.attention_norm.forward(&x)?, positions, heads)?)?;
        let x = x.add(self.convolve(&self.conv_norm.forward(&x)?)?)?;
        self.norm.forward(&self.second_mlp.forward(&x)?)
    }

    fn attend(&self, x: &Array, positions: &Array, heads: i32) -> Result<Array> {
        let [q, k, v, output] = &self.projections;
        let [q, k, v] = [q, k, v].map(|projection| split_heads(&projection.forward(x)?, heads));
        let (q, k, v) = (q?, k?, v?);
        let places = split_heads(&self.positions.forward(positions)?, heads)?;
        let [content, place] = &self.biases;
        let scale = (q.dim(-1) as f32).powf(-0.5);
        let by_place = q.add(place)?.matmul(places.swap_axes(-1, -2)?)?;
        let mask = shifted(&by_place)?.multiply(mlx::scalar(scale, q.dtype())?)?;
        let y = scaled_dot_product_attention(&q.add(content)?, &k, &v, scale, &mask, None)?;
        output.forward(&join_heads(&y)?)
    }

    fn convolve(&self, x: &Array) -> Result<Array> {
        let halves = self.gate.forward(x)?.split_equal(2, -1)?;
        let x = halves[0].multiply(ops::sigmoid(&halves[1])?)?;
        let [factor, shift] = &self.batch_norm;
        let x = self.depthwise.forward(&x)?.multiply(factor)?.add(shift)?;
        self.last.forward(&(self.second_mlp.activation)(&x)?)
    }
}
