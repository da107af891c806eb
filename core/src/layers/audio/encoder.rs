//! The encoder of [Radford et al. 2022](https://arxiv.org/abs/2212.04356): two convolutions over
//! log-mel frames, sinusoidal positions, and transformer blocks whose positions see each other both ways.

use crate::{
    checkpoint::scope::Scope,
    error::Result,
    layers::{
        algebra::Block,
        attention::bidirectional::{BidirectionalAttention, Heads},
        audio::convolution::{Convolution, Kernel},
        cache_plan::CachePlan,
        feed_forward::{
            activation::{Activation, gelu},
            mlp::PlainMlp,
        },
        linear::Linear,
        norm::Norm,
        position::rope::Rope,
        residual::Residual,
        step::Step,
    },
};
use mlx_rs::Array;

/// Frames of one position.
pub const FRAMES_OF_POSITION: i32 = 2;

/// The names of the tensors of transformer blocks for audio.
#[derive(Clone, Copy)]
pub struct BlockNames {
    /// Below this, the blocks are numbered.
    pub layers: &'static str,
    /// Attention, and the norm before it.
    pub attention: &'static str,
    /// The norm before attention.
    pub attention_norm: &'static str,
    /// The projections of queries, keys, values and the output.
    pub qkvo: [&'static str; 4],
    /// The projection to the inner width.
    pub up: &'static str,
    /// The projection from the inner width.
    pub down: &'static str,
    /// The norm before the feed-forward network.
    pub mlp_norm: &'static str,
    /// The norm after the last block of an encoder.
    pub norm: &'static str,
}

/// The names that transformers has.
pub const TRANSFORMERS: BlockNames = BlockNames {
    layers: "layers",
    attention: "self_attn",
    attention_norm: "self_attn_layer_norm",
    qkvo: ["q_proj", "k_proj", "v_proj", "out_proj"],
    up: "fc1",
    down: "fc2",
    mlp_norm: "final_layer_norm",
    norm: "layer_norm",
};

/// The sizes of an encoder.
#[derive(Clone, Copy, Debug)]
pub struct EncoderSizes {
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
    /// The most positions.
    pub positions: i32,
    /// Of the feed-forward networks.
    pub activation: Activation,
}

/// An encoder with convolutions in front.
pub struct ConvEncoder {
    stem: [Convolution; 2],
    /// `[positions, width]`.
    positions: Array,
    blocks: Vec<Block>,
    norm: Norm,
}

impl ConvEncoder {
    /// Reads an encoder; its sinusoids are computed, whatever the file has of them.
    ///
    /// # Errors
    /// As [`Scope::tensor`].
    pub fn read(w: &Scope, names: &BlockNames, sizes: EncoderSizes) -> Result<Self> {
        w.ignore("embed_positions");
        w.ignore("positional_embedding");
        let EncoderSizes { bins, width, .. } = sizes;
        let conv = |name, input, stride| {
            w.at(name).convolution(Kernel::new(input, width, 3).stride(stride), 1)
        };
        let layers = w.at(names.layers);
        Ok(ConvEncoder {
            stem: [conv("conv1", bins, 1)?, conv("conv2", width, FRAMES_OF_POSITION)?],
            positions: sinusoids(sizes.positions, width),
            blocks: (0..sizes.layers)
                .map(|i| encoder_block(&layers.at(i), names, sizes))
                .collect::<Result<_>>()?,
            norm: norm(w, names.norm, width)?,
        })
    }

    /// Features `[batch, frames, bins]` to `[batch, frames / 2, width]`.
    ///
    /// # Errors
    /// [`Error::Mlx`](crate::Error::Mlx).
    pub fn forward(&self, features: &Array) -> Result<Array> {
        let mut x = features.as_dtype(self.stem[0].dtype())?;
        for conv in &self.stem {
            x = gelu(&conv.forward(&x)?)?;
        }
        let positions = crate::mlx::slice(&self.positions, 0, 0, x.dim(1))?;
        x = x.add(positions.as_dtype(x.dtype())?)?;
        self.norm.forward(&run_blocks(&self.blocks, x)?)
    }
}

/// A pass through blocks that keep nothing.
///
/// # Errors
/// [`Error::Mlx`](crate::Error::Mlx).
pub fn run_blocks(blocks: &[Block], mut x: Array) -> Result<Array> {
    let step = Step::prefill(0, x.dim(1));
    for block in blocks {
        x = block.forward(&x, &mut *block.state(&CachePlan::default()), &step)?;
    }
    Ok(x)
}

/// Reads a block of an encoder.
///
/// # Errors
/// As [`Scope::tensor`].
pub fn encoder_block(w: &Scope, names: &BlockNames, sizes: EncoderSizes) -> Result<Block> {
    let heads = Heads::equal(sizes.heads, sizes.width / sizes.heads);
    let qkvo = projections(&w.at(names.attention), names, sizes.width)?;
    let attention = BidirectionalAttention::new(qkvo, heads, Rope::None);
    let attention = Residual::pre(norm(w, names.attention_norm, sizes.width)?, attention);
    Ok(Block::new((attention, mlp(w, names, &sizes)?)))
}

/// Reads a layer norm of width `width`.
///
/// # Errors
/// As [`Scope::tensor`].
pub fn norm(w: &Scope, name: &str, width: i32) -> Result<Norm> {
    w.layer_norm_with_bias(name, width, 1e-5)
}

/// Reads the projections of queries, keys, values and the output.
///
/// # Errors
/// As [`Scope::linear`].
pub fn projections(w: &Scope, names: &BlockNames, width: i32) -> Result<[Linear; 4]> {
    let [q, k, v, o] = names.qkvo.map(|name| w.linear(name, width, width));
    Ok([q?, k?, v?, o?])
}

/// Reads a feed-forward network with its norm.
///
/// # Errors
/// As [`Scope::linear`].
pub fn mlp(w: &Scope, names: &BlockNames, sizes: &EncoderSizes) -> Result<Residual<PlainMlp>> {
    let EncoderSizes { width, inner, activation, .. } = *sizes;
    let up = w.linear_with_bias(names.up, width, inner)?;
    let down = w.linear_with_bias(names.down, inner, width)?;
    Ok(Residual::pre(norm(w, names.mlp_norm, width)?, PlainMlp::new(up, down, activation)))
}

/// Sines in the first half of an even width, cosines in the second, with wavelengths from 2π to 20000π:
/// `[length, width]`.
pub fn sinusoids(length: i32, width: i32) -> Array {
    sinusoids_from(0, length, width)
}

/// As [`sinusoids`], where the first position is `start`.
pub fn sinusoids_from(start: i32, length: i32, width: i32) -> Array {
    let half = width / 2;
    let step = 10_000_f64.ln() / f64::from((half - 1).max(1));
    let angle = |position: i32, i: i32| f64::from(position) * (-step * f64::from(i)).exp();
    let row = |position: i32| {
        let sines = (0..half).map(move |i| angle(position, i).sin() as f32);
        sines.chain((0..half).map(move |i| angle(position, i).cos() as f32))
    };
    let values: Vec<f32> = (start..start + length).flat_map(row).collect();
    Array::from_slice(&values, &[length, 2 * half])
}
