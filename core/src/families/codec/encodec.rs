//! [EnCodec](https://arxiv.org/abs/2210.13438): a SEANet with an LSTM, and a residual quantizer. The 48 kHz
//! model is stereo and encodes chunks of a second, each with a scale of its own, which overlap.
//!
//! Follows `EncodecModel` of transformers, with its names or those of mlx-audio.

use crate::{
    checkpoint::file_rules::FileRules,
    families::{Build, Checkpoint, Entry, prelude::*},
    layers::audio::{
        conv::{Kernel, Layout},
        lstm::Lstm,
        noise::Noise,
        quantizer::{Codebook, ResidualQuantizer},
        seanet::{Edge, ResidualUnit, Style, elu_block},
        sequence::Sequence,
    },
    models::codec::{CausalDecoder, Codec, Codes, EncodedAudio, Streaming},
};

pub const ENTRY: Entry = Entry {
    model_types: &["encodec"],
    build: Build::Codec(build),
    recommended: Recommended::NOTHING,
    files: FileRules::USUAL,
};

#[derive(Deserialize)]
struct Config {
    sampling_rate: Size,
    audio_channels: Size,
    #[serde(default)]
    normalize: bool,
    chunk_length_s: Option<Positive>,
    overlap: Option<f32>,
    hidden_size: Size,
    num_filters: Size,
    num_residual_layers: Size,
    upsampling_ratios: Vec<Size>,
    norm_type: String,
    kernel_size: Size,
    last_kernel_size: Size,
    residual_kernel_size: Size,
    dilation_growth_rate: Size,
    use_causal_conv: bool,
    pad_mode: Edge,
    compress: Size,
    num_lstm_layers: Count,
    trim_right_ratio: f32,
    codebook_size: Size,
    use_conv_shortcut: Option<bool>,
    target_bandwidths: Vec<Positive>,
}

struct Encodec {
    c: Config,
    encoder: Sequence,
    quantizer: ResidualQuantizer<Codebook>,
    decoder: Sequence,
    /// Codebooks that the smallest bandwidth has.
    least: usize,
}

fn build(checkpoint: &Checkpoint) -> Result<Box<dyn Codec>> {
    let (c, w): (Config, _) = (config::read(checkpoint.config)?, checkpoint.weights);
    let hop = c.upsampling_ratios.iter();
    let hop = hop.try_fold(1, |hop, ratio| config::product("upsampling_ratios", [hop, **ratio]))?;
    let frame_rate = (*c.sampling_rate as f32 / hop as f32).ceil();
    // The largest bandwidth is meant for codebooks of 1024 entries.
    let count = |bandwidth: f32, bits: f32| (1000.0 * bandwidth / (frame_rate * bits)) as i32;
    let [first, last] = [c.target_bandwidths.first(), c.target_bandwidths.last()]
        .map(|bandwidth| bandwidth.ok_or_else(|| Error::config("target_bandwidths", "is empty")));
    let least = count(*first?.clone(), (*c.codebook_size as f32).log2().max(1.0)).max(1) as usize;
    let table = |i: i32| {
        let w = w.at("quantizer.layers").at(i).at("codebook");
        w.ignore_named(&["cluster_size", "embed_avg", "inited"]);
        Codebook::new(w.tensor("embed", &[*c.codebook_size, *c.hidden_size])?)
    };
    let tables: Result<Vec<_>> = (0..count(*last?.clone(), 10.0).max(1)).map(table).collect();
    let first = Kernel::new(*c.audio_channels, *c.num_filters, *c.kernel_size);
    let layout = first.layout_of(&w.at("encoder.layers.0.conv"));
    let encoder = encoder(&w.at("encoder"), &c, layout)?;
    let decoder = decoder(&w.at("decoder"), &c, layout)?;
    Ok(Box::new(Encodec { encoder, decoder, quantizer: ResidualQuantizer(tables?), least, c }))
}

impl Config {
    fn style(&self) -> Result<Style> {
        let has_norm = match self.norm_type.as_str() {
            "weight_norm" => false,
            "time_group_norm" => true,
            other => return Err(Error::unsupported("norm_type", format!("`{other}`"))),
        };
        Ok(Style {
            is_causal: self.use_causal_conv,
            edge: self.pad_mode,
            has_norm,
            trim_right: self.trim_right_ratio,
        })
    }

    /// The residual units at one rate, from layer `next` on.
    fn units(&self, w: &Scope, next: &mut usize, channels: i32, layout: Layout) -> Result<Vec<Block>> {
        let hidden = channels / *self.compress;
        let unit = |j: i32| {
            let dilation = self.dilation_growth_rate.pow(j as u32);
            let first = Kernel::new(channels, hidden, *self.residual_kernel_size).dilation(dilation);
            let kernels = [first, Kernel::new(hidden, channels, 1)].map(|kernel| kernel.layout(layout));
            let place = w.at("layers").at(*next + j as usize);
            let has_shortcut = self.use_conv_shortcut.unwrap_or(true);
            ResidualUnit::read(&place, kernels, has_shortcut, self.style()?).map(Block::new)
        };
        let units = (0..*self.num_residual_layers).map(unit).collect();
        *next += *self.num_residual_layers as usize;
        units
    }

    fn widest(&self) -> Result<i32> {
        let scale = 1 << self.upsampling_ratios.len().min(16);
        config::product("num_filters", [*self.num_filters, scale])
    }
}

fn encoder(w: &Scope, c: &Config, layout: Layout) -> Result<Sequence> {
    let style = c.style()?;
    let conv = |i: usize, kernel: Kernel| {
        w.at("layers").seanet_conv(&i.to_string(), kernel.layout(layout), style).map(Block::new)
    };
    let mut channels = *c.num_filters;
    let mut blocks = vec![conv(0, Kernel::new(*c.audio_channels, channels, *c.kernel_size))?];
    let mut next = 1;
    c.widest()?;
    for ratio in c.upsampling_ratios.iter().rev() {
        blocks.extend(c.units(w, &mut next, channels, layout)?);
        let down = Kernel::new(channels, 2 * channels, 2 * **ratio).stride(**ratio);
        blocks.extend([elu_block(), conv(next + 1, down)?]);
        (channels, next) = (2 * channels, next + 2);
    }
    blocks.extend([lstm(&w.at("layers").at(next), c, channels)?, elu_block()]);
    blocks.push(conv(next + 2, Kernel::new(channels, *c.hidden_size, *c.last_kernel_size))?);
    Ok(Sequence(blocks))
}

fn decoder(w: &Scope, c: &Config, layout: Layout) -> Result<Sequence> {
    let style = c.style()?;
    let conv = |i: usize, kernel: Kernel| {
        w.at("layers").seanet_conv(&i.to_string(), kernel.layout(layout), style).map(Block::new)
    };
    let mut channels = c.widest()?;
    let mut blocks = vec![conv(0, Kernel::new(*c.hidden_size, channels, *c.kernel_size))?];
    blocks.push(lstm(&w.at("layers").at(1), c, channels)?);
    let mut next = 2;
    for ratio in &c.upsampling_ratios {
        let up = Kernel::new(channels, channels / 2, 2 * **ratio).stride(**ratio).layout(layout);
        let up = w.at("layers").seanet_up(&(next + 1).to_string(), up, style)?;
        blocks.extend([elu_block(), Block::new(up)]);
        (channels, next) = (channels / 2, next + 2);
        blocks.extend(c.units(w, &mut next, channels, layout)?);
    }
    let last = Kernel::new(channels, *c.audio_channels, *c.last_kernel_size);
    blocks.extend([elu_block(), conv(next + 1, last)?]);
    Ok(Sequence(blocks))
}

/// LSTMs one after the other, added to their input.
fn lstm(w: &Scope, c: &Config, width: i32) -> Result<Block> {
    let w = w.at("lstm");
    let layer = |i: i32| -> Result<Lstm> {
        if w.at(i).has("Wx") { w.at(i).mlx_lstm(width, width) } else { w.lstm(i, "", width, width) }
    };
    let layers: Result<Vec<_>> = (0..*c.num_lstm_layers).map(|i| layer(i).map(Block::new)).collect();
    Ok(Block::new(Residual::plain(Sequence(layers?))))
}

impl Encodec {
    /// Samples of a chunk, and from the beginning of one to that of the next.
    fn chunk(&self) -> Option<(i32, i32)> {
        let length = (*self.c.chunk_length_s? * *self.c.sampling_rate as f32) as i32;
        let stride = ((1.0 - self.c.overlap.unwrap_or(0.0)) * length as f32) as i32;
        Some((length, stride.max(1)))
    }

    fn encode_chunk(&self, x: &Array) -> Result<Codes> {
        let mut x = x.clone();
        let mut scale = None;
        if self.c.normalize {
            let loudness = x.mean_axis(2, true)?.square()?.mean_axes(&[1], true)?.sqrt()?;
            let loudness = loudness.add(mlx::scalar(1e-8, x.dtype())?)?;
            x = x.divide(&loudness)?;
            scale = Some(mlx::to_vec::<f32>(&loudness)?[0]);
        }
        let quantizer = self.quantizer.encode_first(&self.encoder.run(&x)?, self.least)?;
        Ok(Codes { scale, ..Codes::of_arrays(&quantizer)? })
    }

    fn decode_chunk(&self, codes: &Codes) -> Result<Array> {
        let y = self.decoder.run(&self.latents(codes)?)?;
        match codes.scale {
            Some(scale) => Ok(y.multiply(mlx::scalar(scale, y.dtype())?)?),
            None => Ok(y),
        }
    }

    fn latents(&self, codes: &Codes) -> Result<Array> {
        let frames = vec![1; self.quantizer.0.len()];
        self.quantizer.decode(&codes.arrays(&frames, *self.c.codebook_size)?)
    }
}

/// Adds up chunks that begin `stride` samples apart, each weighted by a triangle.
fn overlap_add(chunks: &[Array], stride: i32) -> Result<Array> {
    let Some((first, last)) = chunks.first().zip(chunks.last()) else {
        return Err(Error::option("codes", "there are none"));
    };
    let total = stride * (chunks.len() as i32 - 1) + last.dim(1);
    let length = first.dim(1);
    let weight = |i: i32| 0.5 - ((i + 1) as f32 / (length + 1) as f32 - 0.5).abs();
    let weights: Vec<f32> = (0..length).map(weight).collect();
    let mut sum = ops::zeros_dtype(&[1, total, first.dim(2)], first.dtype())?;
    let mut weight_sum = ops::zeros_dtype(&[1, total, 1], first.dtype())?;
    for (i, chunk) in (0..).zip(chunks) {
        let size = chunk.dim(1);
        let weights = Array::from_slice(&weights[..size.min(length) as usize], &[1, size, 1]);
        let around = [(0, 0), (i * stride, total - i * stride - size), (0, 0)];
        let place = |x: &Array| ops::pad(x, &around[..], None, None);
        sum = sum.add(place(&chunk.multiply(&weights)?)?)?;
        weight_sum = weight_sum.add(place(&weights.as_dtype(chunk.dtype())?)?)?;
    }
    Ok(sum.divide(weight_sum)?)
}

impl Codec for Encodec {
    fn sample_rate(&self) -> u32 {
        *self.c.sampling_rate as u32
    }

    fn channels(&self) -> usize {
        *self.c.audio_channels as usize
    }

    fn is_chunked(&self) -> bool {
        self.c.chunk_length_s.is_some()
    }

    fn encode(&self, samples: &Array) -> Result<EncodedAudio> {
        let Some((length, stride)) = self.chunk() else {
            return Ok(EncodedAudio::Codes(vec![self.encode_chunk(samples)?]));
        };
        // The last chunk is whole.
        let count = (samples.dim(1) - length).max(0).div_ceil(stride) + 1;
        let missing = (count - 1) * stride + length - samples.dim(1);
        let padded = ops::pad(samples, &[(0, 0), (0, missing), (0, 0)][..], None, None)?;
        let chunk = |i: i32| {
            self.encode_chunk(&mlx::slice(&padded, 1, i * stride, i * stride + length)?)
        };
        Ok(EncodedAudio::Codes((0..count).map(chunk).collect::<Result<_>>()?))
    }

    fn decode(&self, encoded: &EncodedAudio, _: Noise) -> Result<Array> {
        let (EncodedAudio::Codes(chunks), Some((_, stride))) = (encoded, self.chunk()) else {
            return self.decode_chunk(encoded.only_codes()?);
        };
        let decoded: Result<Vec<_>> = chunks.iter().map(|codes| self.decode_chunk(codes)).collect();
        overlap_add(&decoded?, stride)
    }

    fn streaming(&self) -> Streaming<'_> {
        let is_causal = self.c.use_causal_conv && self.c.norm_type == "weight_norm";
        if is_causal && self.chunk().is_none() && self.c.trim_right_ratio == 1.0 {
            Streaming::Causal(self)
        } else {
            Streaming::Whole
        }
    }
}

impl CausalDecoder for Encodec {
    /// The first convolution mirrors the frames after the first.
    fn first_frames(&self) -> usize {
        *self.c.kernel_size as usize
    }

    fn cache(&self) -> Cache {
        let plan = CachePlan::default();
        Cache::new(vec![Box::new(self.decoder.state(&plan))], &plan)
    }

    fn decode_next(&self, codes: &Codes, cache: &mut Cache) -> Result<Array> {
        let x = self.latents(codes)?;
        self.decoder.run_in(&x, cache, |step| Ok(step))
    }
}
