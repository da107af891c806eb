//! The decoder: blocks with a style at the rate of the frames, then
//! [iSTFTNet](https://arxiv.org/abs/2203.02395), which makes spectra.

use super::{
    config::{Config, GeneratorConfig},
    source::Source,
    style::{StyleBlock, StyleNorm, leaky_relu},
};
use crate::{
    families::prelude::*,
    layers::audio::{
        convolution::{Convolution, Kernel, TransposedConvolution},
        istft_head::polar,
        noise::Noise,
        seanet::{Edge, pad},
        snake::Snake,
        stft::{Stft, Window},
    },
};

/// Widths that configs do not have.
const WIDTH: i32 = 1024;
const OUTPUT: i32 = 512;
const RESIDUAL: i32 = 64;

pub(super) struct Decoder {
    /// Halve the rate of pitch and loudness.
    curves: [Convolution; 2],
    encode: StyleBlock,
    said: Convolution,
    decode: Vec<StyleBlock>,
    generator: Generator,
}

impl Decoder {
    pub(super) fn read(w: &Scope, c: &Config) -> Result<Self> {
        let (hidden, style) = (*c.hidden_dim, *c.style_dim);
        let curve = |name: &str| w.at(name).convolution(Kernel::new(1, 1, 3).stride(2), 1);
        let input = WIDTH + RESIDUAL + 2;
        let block = |i: i32| {
            let output = if i == 3 { OUTPUT } else { WIDTH };
            StyleBlock::read(&w.at("decode").at(i), input, output, style, i == 3)
        };
        Ok(Decoder {
            curves: [curve("F0_conv")?, curve("N_conv")?],
            encode: StyleBlock::read(&w.at("encode"), hidden + 2, WIDTH, style, false)?,
            said: w.at("asr_res.0").convolution(Kernel::new(hidden, RESIDUAL, 1), 0)?,
            decode: (0..4).map(block).collect::<Result<_>>()?,
            generator: Generator::read(&w.at("generator"), &c.istftnet, style)?,
        })
    }

    /// What is said `[1, frames, hidden]`, pitch and loudness `[1, 2 * frames, 1]` and a style to
    /// samples.
    pub(super) fn forward(
        &self,
        said: &Array,
        f0: &Array,
        energy: &Array,
        style: &Array,
        noise: Noise,
    ) -> Result<Array> {
        let (pitch, loudness) = (self.curves[0].forward(f0)?, self.curves[1].forward(energy)?);
        let x = ops::concatenate(&[said, &pitch, &loudness], -1)?;
        let mut x = self.encode.forward(&x, style)?;
        let said = self.said.forward(said)?;
        for block in &self.decode {
            x = ops::concatenate(&[&x, &said, &pitch, &loudness], -1)?;
            x = block.forward(&x, style)?;
        }
        self.generator.forward(&x, f0, style, noise)
    }
}

struct Generator {
    source: Source,
    stages: Vec<Stage>,
    last: Convolution,
    stft: Stft,
    n_fft: i32,
}

/// One transposed convolution, the source at its rate, and residual blocks of several kernel sizes.
struct Stage {
    up: TransposedConvolution,
    source: Convolution,
    source_block: SnakeBlock,
    blocks: Vec<SnakeBlock>,
}

impl Generator {
    fn read(w: &Scope, c: &GeneratorConfig, style: i32) -> Result<Self> {
        let (n_fft, hop) = (*c.gen_istft_n_fft, *c.gen_istft_hop_size);
        let rates: Vec<i32> = c.upsample_rates.iter().map(|rate| **rate).collect();
        let scale = rates.iter().try_fold(hop, |scale, rate| {
            config::product("istftnet.upsample_rates", [scale, *rate])
        })?;
        let mut channels = *c.upsample_initial_channel;
        let mut stages = Vec::new();
        for (i, rate) in rates.iter().enumerate() {
            let size = **config::entry(
                "istftnet.upsample_kernel_sizes",
                &c.upsample_kernel_sizes,
                i as i32,
            )?;
            let up = Kernel::new(channels, channels / 2, size).stride(*rate);
            let up = w.at("ups").at(i).transposed_convolution(up, (size - rate) / 2, 0)?;
            channels /= 2;
            let later: i32 = rates[i + 1..].iter().product();
            let is_last = i + 1 == rates.len();
            let kernel = Kernel::new(n_fft + 2, channels, if is_last { 1 } else { 2 * later });
            let padding = if is_last { 0 } else { (later + 1) / 2 };
            let source = w.at("noise_convs").at(i).convolution(kernel.stride(later), padding)?;
            let size = if is_last { 11 } else { 7 };
            let source_block = SnakeBlock::read(
                &w.at("noise_res").at(i),
                Kernel::new(channels, channels, size),
                &[1, 3, 5],
                style,
            )?;
            let count = c.resblock_kernel_sizes.len();
            let block = |(j, size): (usize, &Size)| {
                let sizes = &c.resblock_dilation_sizes;
                let dilations = config::entry("istftnet.resblock_dilation_sizes", sizes, j as i32)?;
                let dilations: Vec<i32> = dilations.iter().map(|dilation| **dilation).collect();
                let w = w.at("resblocks").at(i * count + j);
                SnakeBlock::read(&w, Kernel::new(channels, channels, **size), &dilations, style)
            };
            let blocks = c.resblock_kernel_sizes.iter().enumerate().map(block);
            stages.push(Stage { up, source, source_block, blocks: blocks.collect::<Result<_>>()? });
        }
        let window = Window::PeriodicHann.values(n_fft as usize);
        Ok(Generator {
            source: Source::read(&w.at("m_source"), scale)?,
            stages,
            last: w.at("conv_post").convolution(Kernel::new(channels, n_fft + 2, 7), 3)?,
            stft: Stft::new(&window, n_fft as usize, hop as usize),
            n_fft,
        })
    }

    fn forward(&self, x: &Array, f0: &Array, style: &Array, noise: Noise) -> Result<Array> {
        let source = self.source.forward(f0, &self.stft, self.n_fft, noise)?;
        let mut x = x.clone();
        for (i, stage) in self.stages.iter().enumerate() {
            let source = stage.source_block.forward(&stage.source.forward(&source)?, style)?;
            x = stage.up.forward(&leaky_relu(&x, 0.1)?)?;
            if i + 1 == self.stages.len() {
                // A spectrum more than there are hops.
                x = pad(&x, 1, 0, Edge::Reflect)?;
            }
            x = x.add(source)?;
            let all = stage.blocks.iter().map(|block| block.forward(&x, style));
            x = ops::stack(&all.collect::<Result<Vec<_>>>()?, 0)?.mean_axis(0, false)?;
        }
        let x = self.last.forward(&leaky_relu(&x, 0.01)?)?;
        let bins = self.n_fft / 2 + 1;
        let magnitude = mlx::slice(&x, 2, 0, bins)?.exp()?;
        let phase = mlx::slice(&x, 2, bins, 2 * bins)?.sin()?;
        self.stft.inverse(&polar(&magnitude, &phase)?)
    }
}

/// Pairs of a dilated and a plain convolution, each after a norm of the style and Snake.
struct SnakeBlock {
    halves: Vec<[(StyleNorm, Snake, Convolution); 2]>,
}

impl SnakeBlock {
    fn read(w: &Scope, kernel: Kernel, dilations: &[i32], style: i32) -> Result<Self> {
        let channels = kernel.input;
        let half = |j: usize, number: i32, dilation: i32| {
            let kernel = kernel.dilation(dilation);
            let norm = w.at(format!("adain{number}")).at(j);
            Ok::<_, Error>((
                StyleNorm::read(&norm, style, channels, true)?,
                w.snake_of(&format!("alpha{number}.{j}"), channels)?,
                w.at(format!("convs{number}")).at(j).convolution(kernel, kernel.same())?,
            ))
        };
        let pair = |(j, dilation): (usize, &i32)| Ok([half(j, 1, *dilation)?, half(j, 2, 1)?]);
        Ok(SnakeBlock { halves: dilations.iter().enumerate().map(pair).collect::<Result<_>>()? })
    }

    fn forward(&self, x: &Array, style: &Array) -> Result<Array> {
        let mut x = x.clone();
        for pair in &self.halves {
            let apply = |y: Array, (norm, snake, conv): &(StyleNorm, Snake, Convolution)| {
                conv.forward(&snake.forward(&norm.forward(&y, style)?)?)
            };
            x = x.add(pair.iter().try_fold(x.clone(), apply)?)?;
        }
        Ok(x)
    }
}
