//! The [Descript Audio Codec](https://arxiv.org/abs/2306.06546), with the config and names of its authors
//! or of transformers.
//!
//! Follows `descript-audio-codec` 1.0.0 and `DacModel` of transformers. The configs of the
//! authors have no `model_type`, and those of the variational codec look the same.

use crate::{
    checkpoint::file_rules::FileRules,
    families::{Build, Checkpoint, Entry, codec::dacvae, prelude::*},
    layers::audio::{
        convolution::{Kernel, Layout},
        noise::Noise,
        quantizer::{FactorizedQuantizer, FactorizedSizes, ResidualQuantizer},
        sequence::Sequence,
        snake_net::{BlockSizes, TAPS, decoder_block, decoder_reach, encoder_block},
    },
    models::codec::{Codec, Codes, EncodedAudio, Streaming, Windows},
};

pub const ENTRY: Entry = Entry {
    model_types: &["dac", "descript", "dacvae"],
    build: Build::Codec(build),
    recommended: Recommended::NOTHING,
    files: FileRules {
        matches: Some(|contents| {
            let has = |field| contents.config.is_some_and(|config| config.get(field).is_some());
            has("encoder_rates") && has("n_codebooks") && !has("vq_strides") && !has("model_type")
        }),
        ..FileRules::USUAL
    },
    processor: None,
};

#[derive(Deserialize)]
struct Config {
    sample_rate: Size,
    encoder_dim: Size,
    encoder_rates: Vec<Size>,
    latent_dim: Option<Size>,
    decoder_dim: Size,
    decoder_rates: Vec<Size>,
    n_codebooks: Size,
    codebook_size: Size,
    codebook_dim: PerLayer,
}

const NAMES: &[(&str, &str)] = &[
    ("sampling_rate", "sample_rate"),
    ("encoder_hidden_size", "encoder_dim"),
    ("downsampling_ratios", "encoder_rates"),
    ("decoder_hidden_size", "decoder_dim"),
    ("upsampling_ratios", "decoder_rates"),
    ("hidden_size", "latent_dim"),
];

struct Dac {
    sample_rate: u32,
    hop: i32,
    encoder: Sequence,
    quantizer: ResidualQuantizer<FactorizedQuantizer>,
    decoder: Sequence,
    entries: i32,
    has_odd_stride: bool,
    /// Frames to each side that samples depend on.
    reach: usize,
}

fn build(checkpoint: &Checkpoint) -> Result<Box<dyn Codec>> {
    let w = checkpoint.weights;
    if w.has_below("quantizer_in_proj") {
        return dacvae::build(checkpoint);
    }
    let c: Config = config::read_renamed(checkpoint.config, NAMES, |config| {
        let reversed = config
            .get("encoder_rates")
            .and_then(Json::as_array)
            .map(|rates| rates.iter().rev().cloned().collect::<Vec<_>>());
        config::read(&config::with_defaults(config, json!({ "decoder_rates": reversed })))
    })?;
    let hop = config::product_of("encoder_rates", &c.encoder_rates)?;
    let widest =
        config::product("encoder_dim", [*c.encoder_dim, 1 << c.encoder_rates.len().min(16)])?;
    let width = c.latent_dim.map_or(widest, Into::into);
    let quantizer = |i: i32| {
        let (code_width, entries) = (*c.codebook_dim.of("codebook_dim", i)?, *c.codebook_size);
        let sizes = FactorizedSizes { width, code_width, entries, stride: 1 };
        w.at("quantizer.quantizers").at(i).factorized_quantizer(sizes)
    };
    let quantizers: Result<Vec<_>> = (0..*c.n_codebooks).map(quantizer).collect();
    // No other kernel has a shape that fits one layout whatever the config says.
    let layout = Kernel::new(1, *c.encoder_dim, TAPS).layout_of(&w.at("encoder").part(0, "conv1"));
    Ok(Box::new(Dac {
        sample_rate: *c.sample_rate as u32,
        hop,
        encoder: encoder(w, &c, width, layout)?,
        quantizer: ResidualQuantizer(quantizers?),
        decoder: decoder(w, &c, width, layout)?,
        entries: *c.codebook_size,
        has_odd_stride: c.decoder_rates.iter().any(|rate| **rate % 2 == 1),
        reach: decoder_reach(&c.decoder_rates),
    }))
}

/// Block `i` of an encoder or a decoder.
fn block(w: &Scope, i: usize) -> Scope {
    if w.has_below("conv2") { w.at("block").at(i) } else { w.part(i + 1, "") }
}

fn encoder(w: &Scope, c: &Config, width: i32, layout: Layout) -> Result<Sequence> {
    let (w, last) = (&w.at("encoder"), c.encoder_rates.len() + 1);
    let places: Vec<Scope> = (0..c.encoder_rates.len()).map(|i| block(w, i)).collect();
    let first = Kernel::new(1, *c.encoder_dim, TAPS).layout(layout);
    let mut blocks = vec![Block::new(w.part(0, "conv1").convolution(first, 3)?)];
    let mut channels = *c.encoder_dim;
    for (place, stride) in places.iter().zip(&c.encoder_rates) {
        let (input, output, stride) = (channels, 2 * channels, **stride);
        let sizes = BlockSizes { input, output, stride, is_depthwise: false, layout };
        blocks.extend(encoder_block(place, sizes)?);
        channels = output;
    }
    blocks.push(Block::new(w.part(last, "snake1").snake(channels, false)?));
    let kernel = Kernel::new(channels, width, 3).layout(layout);
    blocks.push(Block::new(w.part(last + 1, "conv2").convolution(kernel, 1)?));
    Ok(Sequence(blocks))
}

fn decoder(w: &Scope, c: &Config, width: i32, layout: Layout) -> Result<Sequence> {
    let (w, last) = (&w.at("decoder"), c.decoder_rates.len() + 1);
    let places: Vec<Scope> = (0..c.decoder_rates.len()).map(|i| block(w, i)).collect();
    let first = Kernel::new(width, *c.decoder_dim, TAPS).layout(layout);
    let mut blocks = vec![Block::new(w.part(0, "conv1").convolution(first, 3)?)];
    let mut channels = *c.decoder_dim;
    for (place, stride) in places.iter().zip(&c.decoder_rates) {
        let (input, output, stride) = (channels, channels / 2, **stride);
        let sizes = BlockSizes { input, output, stride, is_depthwise: false, layout };
        blocks.extend(decoder_block(place, sizes, None, false)?);
        channels = output;
    }
    blocks.push(Block::new(w.part(last, "snake1").snake(channels, false)?));
    let kernel = Kernel::new(channels, 1, TAPS).layout(layout);
    blocks.push(Block::new(w.part(last + 1, "conv2").convolution(kernel, 3)?));
    blocks.push(Block::new(Map(|x: &Array| Ok(ops::tanh(x)?))));
    Ok(Sequence(blocks))
}

impl Codec for Dac {
    fn sample_rate(&self) -> u32 {
        self.sample_rate
    }

    fn encode(&self, samples: &Array) -> Result<EncodedAudio> {
        let missing = (-samples.dim(1)).rem_euclid(self.hop);
        let padded = ops::pad(samples, &[(0, 0), (0, missing), (0, 0)][..], None, None)?;
        let codes = self.quantizer.encode(&self.encoder.run(&padded)?)?;
        Ok(EncodedAudio::Codes(vec![Codes::of_arrays(&codes)?]))
    }

    fn decode(&self, encoded: &EncodedAudio, noise: Noise) -> Result<Array> {
        let frames = vec![1; self.quantizer.0.len()];
        let codes = encoded.only_codes()?.arrays(&frames, self.entries)?;
        self.decoder.run_with(&self.quantizer.decode(&codes)?, noise)
    }

    /// Strides that are odd lose samples at the ends of every window.
    fn streaming(&self) -> Streaming<'_> {
        if self.has_odd_stride {
            return Streaming::Whole;
        }
        let codes = vec![1; self.quantizer.0.len()];
        Streaming::Windowed(Windows { codes, samples: self.hop as usize, context: self.reach })
    }
}
