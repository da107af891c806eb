//! [SNAC](https://arxiv.org/abs/2410.14411): residual quantizers of different frame rates. Differs from
//! DAC by depthwise convolutions, noise in the decoder and attention within windows.
//!
//! Follows `snac` 1.2.1. Its configs have no `model_type`.

use crate::{
    checkpoint::file_rules::FileRules,
    families::{Build, Checkpoint, Entry, prelude::*},
    layers::{
        attention::bidirectional::{BidirectionalAttention, Heads},
        audio::{
            convolution::{Kernel, Layout},
            noise::Noise,
            quantizer::{FactorizedQuantizer, FactorizedSizes, ResidualQuantizer},
            sequence::Sequence,
            snake_net::{BlockSizes, TAPS, decoder_block, decoder_reach, encoder_block},
        },
    },
    models::codec::{Codec, Codes, EncodedAudio, Streaming, Windows, gcd},
};

pub const ENTRY: Entry = Entry {
    model_types: &["snac"],
    build: Build::Codec(build),
    recommended: Recommended::NOTHING,
    files: FileRules {
        matches: Some(|contents| {
            contents.config.is_some_and(|config| config.get("vq_strides").is_some())
        }),
        ..FileRules::USUAL
    },
    processor: None,
};

#[derive(Deserialize)]
struct Config {
    sampling_rate: Size,
    encoder_dim: Size,
    encoder_rates: Vec<Size>,
    latent_dim: Option<Size>,
    decoder_dim: Size,
    decoder_rates: Vec<Size>,
    attn_window_size: Option<Size>,
    codebook_size: Size,
    codebook_dim: Size,
    vq_strides: Vec<Size>,
    #[serde(default = "yes")]
    noise: bool,
    #[serde(default = "yes")]
    depthwise: bool,
}

fn yes() -> bool {
    true
}

struct Snac {
    sample_rate: u32,
    encoder: Sequence,
    quantizer: ResidualQuantizer<FactorizedQuantizer>,
    decoder: Sequence,
    windows: Windows,
    entries: i32,
}

fn build(checkpoint: &Checkpoint) -> Result<Box<dyn Codec>> {
    let (c, w): (Config, _) = (config::read(checkpoint.config)?, checkpoint.weights);
    let hop = config::product_of("encoder_rates", &c.encoder_rates)?;
    if config::product_of("decoder_rates", &c.decoder_rates)? != hop {
        return Err(Error::config("decoder_rates", format!("do not multiply to {hop}")));
    }
    let widest =
        config::product("encoder_dim", [*c.encoder_dim, 1 << c.encoder_rates.len().min(16)])?;
    let width = c.latent_dim.map_or(widest, Into::into);
    let strides: Vec<i32> = c.vq_strides.iter().map(|stride| **stride).collect();
    let window = c.attn_window_size.map(|window| *window);
    let unit = strides
        .iter()
        .copied()
        .chain(window)
        .fold(1, |a, b| a / gcd(a as usize, b as usize) as i32 * b);
    let quantizer = |(i, stride): (usize, &i32)| {
        let (code_width, entries) = (*c.codebook_dim, *c.codebook_size);
        let sizes = FactorizedSizes { width, code_width, entries, stride: *stride };
        w.at("quantizer.quantizers").at(i).factorized_quantizer(sizes)
    };
    let quantizers: Result<Vec<_>> = strides.iter().enumerate().map(quantizer).collect();
    let frames = strides.iter().map(|stride| (unit / stride) as usize).collect();
    // No other kernel has a shape that fits one layout whatever the config says.
    let layout = Kernel::new(1, *c.encoder_dim, TAPS).layout_of(&w.at("encoder").part(0, "conv1"));
    let reach = decoder_reach(&c.decoder_rates);
    Ok(Box::new(Snac {
        sample_rate: *c.sampling_rate as u32,
        encoder: encoder(w, &c, width, layout)?,
        quantizer: ResidualQuantizer(quantizers?),
        decoder: decoder(w, &c, width, layout)?,
        // Attention stays within its window.
        windows: Windows {
            codes: frames,
            samples: (unit * hop) as usize,
            context: reach.div_ceil(unit as usize) + usize::from(window.is_some()),
        },
        entries: *c.codebook_size,
    }))
}

fn encoder(w: &Scope, c: &Config, width: i32, layout: Layout) -> Result<Sequence> {
    let part = |i: usize| w.at("encoder").part(i, "conv1");
    let first = Kernel::new(1, *c.encoder_dim, TAPS);
    let mut blocks = vec![Block::new(part(0).convolution(first, 3)?)];
    let (mut channels, mut next) = (*c.encoder_dim, 1);
    for stride in &c.encoder_rates {
        let (input, output, stride) = (channels, 2 * channels, **stride);
        let sizes = BlockSizes { input, output, stride, is_depthwise: c.depthwise, layout };
        blocks.extend(encoder_block(&part(next), sizes)?);
        (channels, next) = (output, next + 1);
    }
    if let Some(window) = c.attn_window_size {
        blocks.push(windowed_attention(&part(next), channels, *window)?);
        next += 1;
    }
    if channels != width {
        return Err(Error::config(
            "latent_dim",
            format!("{width}, and the encoder ends with {channels}"),
        ));
    }
    let groups = if c.depthwise { width } else { 1 };
    let last = Kernel::new(width, width, TAPS).groups(groups).layout(layout);
    blocks.push(Block::new(part(next).convolution(last, 3)?));
    Ok(Sequence(blocks))
}

fn decoder(w: &Scope, c: &Config, width: i32, layout: Layout) -> Result<Sequence> {
    let part = |i: usize| w.at("decoder").part(i, "conv1");
    let first = Kernel::new(width, *c.decoder_dim, if c.depthwise { 1 } else { TAPS });
    let mut blocks = Vec::new();
    let mut next = 0;
    if c.depthwise {
        let each = Kernel::new(width, width, TAPS).groups(width);
        blocks.push(Block::new(part(0).convolution(each, 3)?));
        next = 1;
    }
    blocks.push(Block::new(part(next).convolution(first.layout(layout), first.same())?));
    next += 1;
    let mut channels = *c.decoder_dim;
    if let Some(window) = c.attn_window_size {
        blocks.push(windowed_attention(&part(next), channels, *window)?);
        next += 1;
    }
    for (i, stride) in (0..).zip(&c.decoder_rates) {
        let (input, output, stride) = (channels, channels / 2, **stride);
        let sizes = BlockSizes { input, output, stride, is_depthwise: c.depthwise, layout };
        blocks.extend(decoder_block(&part(next), sizes, c.noise.then_some(i), true)?);
        (channels, next) = (output, next + 1);
    }
    blocks.push(Block::new(part(next).snake(channels, false)?));
    let last = Kernel::new(channels, 1, TAPS).layout(layout);
    blocks.push(Block::new(part(next + 1).convolution(last, 3)?));
    blocks.push(Block::new(Map(|x: &Array| Ok(ops::tanh(x)?))));
    Ok(Sequence(blocks))
}

/// Attention within windows of steps, added to the input.
fn windowed_attention(w: &Scope, width: i32, window: i32) -> Result<Block> {
    const HEAD_DIM: i32 = 64;
    w.ignore("rel_pos");
    let [q, k, v] = w.fused("to_qkv", width, [width; 3])?;
    let output = w.linear("to_out", width, width)?;
    let heads = Heads::equal(width / HEAD_DIM, HEAD_DIM);
    let rope = Rope::base(HEAD_DIM, 10_000.0)?;
    let attention = BidirectionalAttention::new([q, k, v, output], heads, rope);
    let within = Map(move |x: &Array| {
        let (length, width) = (x.dim(1), x.dim(2));
        let whole = length / window * window;
        let mut parts = Vec::new();
        for (start, end, size) in [(0, whole, window), (whole, length, length - whole)] {
            if start < end {
                let windows = mlx::slice(x, 1, start, end)?.reshape(&[-1, size, width])?;
                let y = attention.forward(&windows, &mut (), &Step::prefill(0, size))?;
                parts.push(y.reshape(&[1, end - start, width])?);
            }
        }
        Ok(ops::concatenate(&parts, 1)?)
    });
    Ok(Block::new(Residual::pre(w.layer_norm("norm", width, 1e-5)?, within)))
}

impl Codec for Snac {
    fn sample_rate(&self) -> u32 {
        self.sample_rate
    }

    fn encode(&self, samples: &Array) -> Result<EncodedAudio> {
        let missing = (-samples.dim(1)).rem_euclid(self.windows.samples as i32);
        let padded = ops::pad(samples, &[(0, 0), (0, missing), (0, 0)][..], None, None)?;
        let codes = self.quantizer.encode(&self.encoder.run(&padded)?)?;
        Ok(EncodedAudio::Codes(vec![Codes::of_arrays(&codes)?]))
    }

    fn decode(&self, encoded: &EncodedAudio, noise: Noise) -> Result<Array> {
        let codes = encoded.only_codes()?.arrays(&self.windows.codes, self.entries)?;
        self.decoder.run_with(&self.quantizer.decode(&codes)?, noise)
    }

    fn streaming(&self) -> Streaming<'_> {
        Streaming::Windowed(self.windows.clone())
    }
}
