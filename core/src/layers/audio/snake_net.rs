//! Convolutional encoders and decoders with Snake activations and residual units of dilated
//! convolutions ([Kumar et al. 2023](https://arxiv.org/abs/2306.06546)).
//!
//! Checkpoints number the parts of a block (`block.0`, in MLX `block.layers.0`) or name them (`snake1`);
//! the name that is there is read.

use crate::{
    checkpoint::{config::Size, scope::Scope},
    error::Result,
    layers::{
        algebra::{Block, Layer},
        audio::{
            convolution::{Convolution, Kernel, Layout},
            noise::Noise,
            sequence::Sequence,
        },
        cache_plan::CachePlan,
        residual::Residual,
        step::Step,
    },
};
use mlx_rs::Array;

/// The dilations of the residual units of a block.
pub const DILATIONS: [i32; 3] = [1, 3, 9];
/// The taps of dilated convolutions and of the convolutions at the ends.
pub const TAPS: i32 = 7;

impl Scope {
    /// The first of these places below which the checkpoint has tensors; the last one where it has none.
    pub fn first_of<const N: usize>(&self, names: [String; N]) -> Scope {
        let found = names.iter().find(|name| self.has_below(name));
        self.at(found.unwrap_or(&names[N - 1]))
    }

    /// Part `i` of a block or of a whole network, which has this name where parts have names.
    pub fn part(&self, i: usize, name: &str) -> Scope {
        let [block, model] = ["block", "model"].map(|list| format!("{list}.{i}"));
        let [in_block, in_model] = ["block", "model"].map(|list| format!("{list}.layers.{i}"));
        self.first_of([name.into(), in_block, in_model, model, block])
    }
}

/// One block of an encoder or a decoder.
#[derive(Clone, Copy, Debug)]
pub struct BlockSizes {
    /// Channels of the input.
    pub input: i32,
    /// Channels of the output.
    pub output: i32,
    /// Steps of the longer sequence for each of the shorter one.
    pub stride: i32,
    /// Whether each channel is convolved by itself in the residual units.
    pub is_depthwise: bool,
    /// The layout of kernels whose shape fits both.
    pub layout: Layout,
}

impl BlockSizes {
    /// The resampling convolution.
    fn kernel(&self) -> Kernel {
        let kernel = Kernel::new(self.input, self.output, 2 * self.stride);
        kernel.stride(self.stride).layout(self.layout)
    }

    fn padding(&self) -> i32 {
        (self.stride + 1) / 2
    }

    fn units(&self, w: &Scope, first: usize, channels: i32) -> Result<Vec<Block>> {
        let groups = if self.is_depthwise { channels } else { 1 };
        let unit = |(i, dilation): (usize, i32)| {
            let kernel = Kernel::new(channels, channels, TAPS).dilation(dilation);
            let unit = w.part(first + i, &format!("res_unit{}", i + 1));
            let places = UnitPlaces {
                snake1: unit.part(0, "snake1"),
                conv1: unit.part(1, "conv1"),
                snake2: unit.part(2, "snake2"),
                conv2: unit.part(3, "conv2"),
            };
            residual_unit(places, kernel.groups(groups).layout(self.layout))
        };
        DILATIONS.into_iter().enumerate().map(unit).collect()
    }
}

/// The places of the parts of a residual unit.
pub struct UnitPlaces {
    /// The first Snake.
    pub snake1: Scope,
    /// The dilated convolution.
    pub conv1: Scope,
    /// The second Snake.
    pub snake2: Scope,
    /// The convolution of one tap.
    pub conv2: Scope,
}

/// Reads Snake, a dilated convolution, Snake and a convolution of one tap from these places; their output
/// is added to the input.
///
/// # Errors
/// As [`Scope::tensor`].
pub fn residual_unit(places: UnitPlaces, kernel: Kernel) -> Result<Block> {
    let UnitPlaces { snake1, conv1, snake2, conv2 } = places;
    let channels = kernel.input;
    let branch = vec![
        Block::new(snake1.snake(channels, false)?),
        Block::new(conv1.convolution(kernel, kernel.same())?),
        Block::new(snake2.snake(channels, false)?),
        Block::new(conv2.convolution(Kernel::new(channels, channels, 1), 0)?),
    ];
    Ok(Block::new(Residual::plain(Sequence(branch))))
}

/// How many latents before and after one the samples of a decoder with these rates depend on.
pub fn decoder_reach(rates: &[Size]) -> usize {
    let ends = f64::from(TAPS / 2);
    let units = f64::from(DILATIONS.iter().sum::<i32>()) * ends;
    let (mut scale, mut reach) = (1.0, ends);
    for rate in rates {
        // A transposed convolution has two taps for each of its inputs.
        reach += 1.0 / scale;
        scale *= f64::from(**rate);
        reach += units / scale;
    }
    (reach + ends / scale).ceil() as usize
}

/// Reads residual units and a convolution that makes the sequence shorter.
///
/// # Errors
/// As [`Scope::tensor`].
pub fn encoder_block(w: &Scope, sizes: BlockSizes) -> Result<Vec<Block>> {
    let mut blocks = sizes.units(w, 0, sizes.input)?;
    blocks.push(Block::new(w.part(3, "snake1").snake(sizes.input, false)?));
    blocks.push(Block::new(w.part(4, "conv1").convolution(sizes.kernel(), sizes.padding())?));
    Ok(blocks)
}

/// Reads a transposed convolution that makes the sequence longer, and residual units. With `noise`,
/// noise comes between them; with `keeps_length`, an odd stride makes `stride` steps of each.
///
/// # Errors
/// As [`Scope::tensor`].
pub fn decoder_block(
    w: &Scope,
    sizes: BlockSizes,
    noise: Option<i32>,
    keeps_length: bool,
) -> Result<Vec<Block>> {
    let extra = if keeps_length { sizes.stride % 2 } else { 0 };
    let up = w.part(1, "conv_t1");
    let mut blocks = vec![
        Block::new(w.part(0, "snake1").snake(sizes.input, false)?),
        Block::new(up.transposed_convolution(sizes.kernel(), sizes.padding(), extra)?),
    ];
    if let Some(place) = noise {
        let kernel = Kernel::new(sizes.output, sizes.output, 1);
        let linear = w.part(2, "noise").at("linear").convolution(kernel, 0)?;
        blocks.push(Block::new(NoiseBlock { linear, place }));
    }
    blocks.extend(sizes.units(w, blocks.len(), sizes.output)?);
    Ok(blocks)
}

/// `x + noise · linear(x)`, with one random number for each step.
struct NoiseBlock {
    linear: Convolution,
    place: i32,
}

impl Layer for NoiseBlock {
    type State = ();
    fn state(&self, _: &CachePlan) {}
    fn forward(&self, x: &Array, (): &mut (), step: &Step) -> Result<Array> {
        let noise = Noise::of(step);
        if noise == Noise::Zero {
            return Ok(x.clone());
        }
        let noise = noise.normal(&[x.dim(0), x.dim(1), 1], self.place, x.dtype())?;
        Ok(x.add(noise.multiply(self.linear.forward(x)?)?)?)
    }
}
