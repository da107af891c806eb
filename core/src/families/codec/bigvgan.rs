//! [BigVGAN](https://arxiv.org/abs/2206.04658): a vocoder of transposed convolutions and residual blocks of
//! several kernel sizes, with anti-aliased Snake activations. Its features are log-mels.
//!
//! Follows `bigvgan` 2.4.1. Its configs have no `model_type`.

use crate::{
    checkpoint::file_rules::FileRules,
    families::{Build, Checkpoint, Entry, prelude::*},
    layers::audio::{
        anti_aliased::AntiAliased,
        convolution::{Kernel, Layout},
        filter_bank::{FilterBank, MelScale},
        noise::Noise,
        sequence::Sequence,
        stft::{Stft, Window, reflect},
    },
    models::codec::{Codec, EncodedAudio, Streaming},
};

pub const ENTRY: Entry = Entry {
    model_types: &["bigvgan"],
    build: Build::Codec(build),
    recommended: Recommended::NOTHING,
    files: FileRules {
        weights: &["*.safetensors"],
        matches: Some(|contents| {
            let config = contents.config;
            config.is_some_and(|config| config.get("snake_logscale").is_some())
        }),
        ..FileRules::USUAL
    },
    processor: None,
};

#[derive(Deserialize)]
struct Config {
    num_mels: Size,
    upsample_rates: Vec<Size>,
    upsample_kernel_sizes: Vec<Size>,
    upsample_initial_channel: Size,
    resblock: String,
    resblock_kernel_sizes: Vec<Size>,
    resblock_dilation_sizes: Vec<Vec<Size>>,
    activation: String,
    snake_logscale: bool,
    use_tanh_at_final: Option<bool>,
}

/// The front end.
#[derive(Deserialize)]
struct MelConfig {
    sampling_rate: Option<Size>,
    n_fft: Option<Size>,
    hop_size: Option<Size>,
    win_size: Option<Size>,
    fmin: Option<f64>,
    fmax: Option<f64>,
}

struct BigVgan {
    bins: i32,
    mel: MelConfig,
    network: Sequence,
}

fn build(checkpoint: &Checkpoint) -> Result<Box<dyn Codec>> {
    let (c, w): (Config, _) = (config::read(checkpoint.config)?, checkpoint.weights);
    if !["snake", "snakebeta"].contains(&&*c.activation) {
        return Err(Error::unsupported(
            "activation",
            format!("`{}` is not supported", c.activation),
        ));
    }
    let rates = c.upsample_rates.len();
    if c.upsample_kernel_sizes.len() != rates {
        let reason = format!("{} sizes for {rates} rates", c.upsample_kernel_sizes.len());
        return Err(Error::config("upsample_kernel_sizes", reason));
    }
    let mut channels = *c.upsample_initial_channel;
    let first = Kernel::new(*c.num_mels, channels, 7);
    // The last kernel has one output channel, so its shape fits one layout.
    let last_channels = channels >> rates.min(31);
    let layout = Kernel::new(last_channels.max(1), 1, 7).layout_of(&w.at("conv_post"));
    let mut blocks = vec![Block::new(w.at("conv_pre").convolution(first.layout(layout), 3)?)];
    for (i, (rate, size)) in c.upsample_rates.iter().zip(&c.upsample_kernel_sizes).enumerate() {
        let up = Kernel::new(channels, channels / 2, **size).stride(**rate).layout(layout);
        let up = w.at("ups").at(i).at(0).transposed_convolution(up, (**size - **rate) / 2, 0)?;
        channels /= 2;
        blocks.push(Block::new(up));
        blocks.push(residual_blocks(w, &c, i, channels, layout)?);
    }
    blocks.push(activation(&w.at("activation_post"), &c, channels)?);
    blocks.push(Block::new(
        w.at("conv_post").convolution(Kernel::new(channels, 1, 7).layout(layout), 3)?,
    ));
    let has_tanh = c.use_tanh_at_final.unwrap_or(true);
    blocks.push(Block::new(Map(move |x: &Array| {
        let bound = |value| mlx::scalar(value, x.dtype());
        Ok(if has_tanh { ops::tanh(x)? } else { ops::clip(x, (bound(-1.0)?, bound(1.0)?))? })
    })));
    let (bins, mel) = (*c.num_mels, config::read(checkpoint.config)?);
    Ok(Box::new(BigVgan { bins, mel, network: Sequence(blocks) }))
}

fn activation(w: &Scope, c: &Config, channels: i32) -> Result<Block> {
    // The filters follow from their sizes.
    w.ignore("upsample");
    w.ignore("downsample");
    let snake = w.at("act").snake(channels, c.snake_logscale)?;
    Ok(Block::new(AntiAliased::new(snake, channels)?))
}

/// The mean of the residual blocks after one transposed convolution.
fn residual_blocks(
    w: &Scope,
    c: &Config,
    stage: usize,
    channels: i32,
    layout: Layout,
) -> Result<Block> {
    let count = c.resblock_kernel_sizes.len();
    let block = |(j, size): (usize, &Size)| -> Result<Sequence> {
        let w = w.at("resblocks").at(stage * count + j);
        let dilations =
            config::entry("resblock_dilation_sizes", &c.resblock_dilation_sizes, j as i32)?;
        let unit = |(k, dilation): (usize, &Size)| -> Result<Block> {
            let conv = |list: &str, dilation| {
                let kernel =
                    Kernel::new(channels, channels, **size).dilation(dilation).layout(layout);
                w.at(list).at(k).convolution(kernel, kernel.same()).map(Block::new)
            };
            let activation = |i: usize| activation(&w.at("activations").at(i), c, channels);
            let branch = match c.resblock.as_str() {
                "1" => vec![
                    activation(2 * k)?,
                    conv("convs1", **dilation)?,
                    activation(2 * k + 1)?,
                    conv("convs2", 1)?,
                ],
                _ => vec![activation(k)?, conv("convs", **dilation)?],
            };
            Ok(Block::new(Residual::plain(Sequence(branch))))
        };
        Ok(Sequence(dilations.iter().enumerate().map(unit).collect::<Result<_>>()?))
    };
    let blocks = c.resblock_kernel_sizes.iter().enumerate().map(block);
    let blocks: Vec<Sequence> = blocks.collect::<Result<_>>()?;
    Ok(Block::new(Map(move |x: &Array| {
        let all: Result<Vec<Array>> = blocks.iter().map(|block| block.run(x)).collect();
        Ok(ops::stack(&all?, 0)?.mean_axis(0, false)?)
    })))
}

impl Codec for BigVgan {
    fn sample_rate(&self) -> u32 {
        self.mel.sampling_rate.map_or(24_000, |rate| *rate as u32)
    }

    /// Log-mels of frames that are mirrored at both ends.
    fn encode(&self, samples: &Array) -> Result<EncodedAudio> {
        let size = |field: &str, size: Option<Size>| {
            size.map(|size| *size as usize).ok_or_else(|| Error::config(field, "missing"))
        };
        let (n_fft, hop) = (size("n_fft", self.mel.n_fft)?, size("hop_size", self.mel.hop_size)?);
        let window = size("win_size", self.mel.win_size)?.min(n_fft);
        let rate = f64::from(self.sample_rate());
        let bank = FilterBank {
            low: self.mel.fmin.unwrap_or(0.0),
            high: self.mel.fmax.unwrap_or(rate / 2.0),
            ..FilterBank::whole(rate, n_fft, self.bins as usize)
        };
        let stft = Stft::new(&Window::PeriodicHann.values(window), n_fft, hop);
        let samples: Vec<f32> = mlx::to_vec(samples)?;
        let power = stft.power(&reflect(&samples, n_fft.saturating_sub(hop) / 2))?;
        let spectra = power.add(Array::from_f32(1e-9))?.sqrt()?;
        let mels = spectra.matmul(bank.weights(MelScale::Slaney))?;
        let mels = ops::maximum(mels, Array::from_f32(1e-5))?.log()?;
        EncodedAudio::of_features(&mels.expand_dims(0)?)
    }

    fn decode(&self, encoded: &EncodedAudio, noise: Noise) -> Result<Array> {
        self.network.run_with(&encoded.features(self.bins)?, noise)
    }

    fn streaming(&self) -> Streaming<'_> {
        Streaming::Whole
    }
}
