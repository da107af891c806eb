//! The variational form of DAC: continuous latents in place of codes, which are the mean of what the encoder
//! predicts. The tensors of its watermark are not read.
//!
//! Follows `mlx-audio` 0.6.2.

use crate::{
    families::{Checkpoint, prelude::*},
    layers::audio::{
        convolution::{Convolution, Kernel, Layout},
        noise::Noise,
        sequence::Sequence,
        snake_net::{DILATIONS, TAPS, UnitPlaces, residual_unit},
    },
    models::codec::{Codec, EncodedAudio, Streaming},
};

#[derive(Deserialize)]
struct Config {
    sample_rate: Size,
    encoder_dim: Size,
    encoder_rates: Vec<Size>,
    latent_dim: Size,
    decoder_dim: Size,
    decoder_rates: Vec<Size>,
    codebook_dim: Size,
}

/// What files hold beside the convolutions of the main path of a decoder.
const WATERMARK: [&str; 4] = ["block_3", "block_6", "block_7", "block_11"];

struct DacVae {
    sample_rate: u32,
    hop: i32,
    encoder: Sequence,
    /// To means and variances.
    input: Convolution,
    output: Convolution,
    decoder: Sequence,
    bins: i32,
}

pub fn build(checkpoint: &Checkpoint) -> Result<Box<dyn Codec>> {
    let defaults = json!({
        "sample_rate": 48000, "encoder_dim": 64, "encoder_rates": [2, 8, 10, 12],
        "latent_dim": 1024, "decoder_dim": 1536, "decoder_rates": [12, 10, 8, 2],
        "codebook_dim": 128,
    });
    let c: Config = config::read(&config::with_defaults(checkpoint.config, defaults))?;
    let w = checkpoint.weights;
    let hop = config::product_of("encoder_rates", &c.encoder_rates)?;
    let layout = Kernel::new(1, *c.encoder_dim, TAPS).layout_of(&w.at("encoder.conv_in"));
    let (width, bins) = (*c.latent_dim, *c.codebook_dim);
    Ok(Box::new(DacVae {
        sample_rate: *c.sample_rate as u32,
        hop,
        encoder: encoder(&w.at("encoder"), &c, layout)?,
        input: w.at("quantizer_in_proj").convolution(Kernel::new(width, 2 * bins, 1), 0)?,
        output: w.at("quantizer_out_proj").convolution(Kernel::new(bins, width, 1), 0)?,
        decoder: decoder(&w.at("decoder"), &c, layout)?,
        bins,
    }))
}

/// A residual unit with names.
fn unit(w: &Scope, channels: i32, dilation: i32, layout: Layout) -> Result<Block> {
    let places = UnitPlaces {
        snake1: w.at("act1"),
        conv1: w.at("conv1"),
        snake2: w.at("act2"),
        conv2: w.at("conv2"),
    };
    residual_unit(places, Kernel::new(channels, channels, TAPS).dilation(dilation).layout(layout))
}

fn encoder(w: &Scope, c: &Config, layout: Layout) -> Result<Sequence> {
    let mut channels = *c.encoder_dim;
    let first = Kernel::new(1, channels, TAPS).layout(layout);
    let mut blocks = vec![Block::new(w.at("conv_in").convolution(first, 3)?)];
    for (i, stride) in c.encoder_rates.iter().enumerate() {
        let (w, stride) = (w.at("blocks").at(i), **stride);
        for (name, dilation) in ["res1", "res2", "res3"].into_iter().zip(DILATIONS) {
            blocks.push(unit(&w.at(name), channels, dilation, layout)?);
        }
        blocks.push(Block::new(w.at("snake").snake(channels, false)?));
        let down = Kernel::new(channels, 2 * channels, 2 * stride).stride(stride).layout(layout);
        blocks.push(Block::new(w.at("conv").convolution(down, stride / 2)?));
        channels *= 2;
    }
    blocks.push(Block::new(w.at("snake_out").snake(channels, false)?));
    let last = Kernel::new(channels, *c.latent_dim, 3).layout(layout);
    blocks.push(Block::new(w.at("conv_out").convolution(last, 1)?));
    Ok(Sequence(blocks))
}

fn decoder(w: &Scope, c: &Config, layout: Layout) -> Result<Sequence> {
    w.ignore("wm_model");
    let mut channels = *c.decoder_dim;
    let first = Kernel::new(*c.latent_dim, channels, TAPS).layout(layout);
    let mut blocks = vec![Block::new(w.at("conv_in").convolution(first, 3)?)];
    for (i, stride) in c.decoder_rates.iter().enumerate() {
        let (w, stride) = (w.at("blocks").at(i), **stride);
        WATERMARK.iter().for_each(|name| w.ignore(name));
        blocks.push(Block::new(w.at("block_0").snake(channels, false)?));
        let up = Kernel::new(channels, channels / 2, 2 * stride).stride(stride).layout(layout);
        blocks.push(Block::new(w.at("block_1").transposed_convolution(up, (stride + 1) / 2, 0)?));
        channels /= 2;
        for (name, dilation) in ["block_4", "block_5", "block_8"].into_iter().zip(DILATIONS) {
            blocks.push(unit(&w.at(name), channels, dilation, layout)?);
        }
    }
    blocks.push(Block::new(w.at("snake_out").snake(channels, false)?));
    let last = Kernel::new(channels, 1, TAPS).layout(layout);
    blocks.push(Block::new(w.at("conv_out").convolution(last, 3)?));
    blocks.push(Block::new(Map(|x: &Array| Ok(ops::tanh(x)?))));
    Ok(Sequence(blocks))
}

impl Codec for DacVae {
    fn sample_rate(&self) -> u32 {
        self.sample_rate
    }

    fn encode(&self, samples: &Array) -> Result<EncodedAudio> {
        let missing = (-samples.dim(1)).rem_euclid(self.hop);
        let padded = ops::pad(samples, &[(0, 0), (0, missing), (0, 0)][..], None, None)?;
        let latents = self.input.forward(&self.encoder.run(&padded)?)?;
        EncodedAudio::of_features(&mlx::slice(&latents, 2, 0, self.bins)?)
    }

    fn decode(&self, encoded: &EncodedAudio, noise: Noise) -> Result<Array> {
        let latents = self.output.forward(&encoded.features(self.bins)?)?;
        self.decoder.run_with(&latents, noise)
    }

    fn streaming(&self) -> Streaming<'_> {
        Streaming::Whole
    }
}
