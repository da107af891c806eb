//! [EnCodec](https://arxiv.org/abs/2210.13438): a SEANet with an LSTM, and a residual quantizer. The 48 kHz
//! model is stereo and encodes chunks of a second, each with a scale of its own, which overlap.
//!
//! Follows `EncodecModel` of transformers, with its names or those of mlx-audio.

use crate::{
    checkpoint::file_rules::FileRules,
    families::{Build, Checkpoint, Entry, prelude::*},
    layers::audio::{
        noise::Noise,
        quantizer::{Codebook, ResidualQuantizer},
        seanet_stack::SeanetConfig,
        sequence::Sequence,
    },
    models::codec::{CausalDecoder, Codec, Codes, EncodedAudio, Streaming, run_next, stream_cache},
};

pub const ENTRY: Entry = Entry {
    model_types: &["encodec"],
    build: Build::Codec(build),
    recommended: Recommended::NOTHING,
    files: FileRules::USUAL,
    processor: None,
};

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    normalize: bool,
    chunk_length_s: Option<Positive<f64>>,
    overlap: Option<f64>,
    codebook_size: Size,
    target_bandwidths: Vec<Positive>,
}

struct Encodec {
    c: Config,
    seanet: SeanetConfig,
    encoder: Sequence,
    quantizer: ResidualQuantizer<Codebook>,
    decoder: Sequence,
    /// Codebooks that the smallest bandwidth has.
    least: usize,
}

fn build(checkpoint: &Checkpoint) -> Result<Box<dyn Codec>> {
    let (json, w) = (checkpoint.config, checkpoint.weights);
    let (c, seanet): (Config, _) = (config::read(json)?, SeanetConfig::read(json)?);
    let frame_rate = (*seanet.rates.sampling_rate as f32 / seanet.hop()? as f32).ceil();
    let bits = (*c.codebook_size as f32).log2().max(1.0);
    let bandwidth = c.target_bandwidths.first();
    let bandwidth = bandwidth.ok_or_else(|| Error::config("target_bandwidths", "is empty"))?;
    let least = ((1000.0 * **bandwidth / (frame_rate * bits)) as usize).max(1);
    // References compute their number in different ways where they do not have 1024 entries.
    let list = w.at("quantizer.layers");
    let count = (0..).take_while(|i| list.has_below(&i.to_string())).count().max(1);
    let table = |i: usize| {
        let w = list.at(i).at("codebook");
        w.ignore_named(&["cluster_size", "embed_avg", "inited"]);
        Codebook::new(w.tensor("embed", &[*c.codebook_size, *seanet.rates.hidden_size])?)
    };
    let tables: Result<Vec<_>> = (0..count).map(table).collect();
    let layout = seanet.layout(&w.at("encoder"));
    Ok(Box::new(Encodec {
        encoder: seanet.encoder(&w.at("encoder"), layout)?,
        decoder: seanet.decoder(&w.at("decoder"), layout)?,
        quantizer: ResidualQuantizer(tables?),
        least,
        seanet,
        c,
    }))
}

impl Encodec {
    /// Samples of a chunk, and from the beginning of one to that of the next.
    fn chunk(&self) -> Option<(i32, i32)> {
        let length = (*self.c.chunk_length_s? * f64::from(*self.seanet.rates.sampling_rate)) as i32;
        let stride = ((1.0 - self.c.overlap.unwrap_or(0.0)) * f64::from(length)) as i32;
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
        let codes = self.quantizer.encode_first(&self.encoder.run(&x)?, self.least)?;
        Ok(Codes { scale, ..Codes::of_arrays(&codes)? })
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
        *self.seanet.rates.sampling_rate as u32
    }

    fn channels(&self) -> usize {
        *self.seanet.rates.audio_channels as usize
    }

    fn is_chunked(&self) -> bool {
        self.c.chunk_length_s.is_some()
    }

    fn encode(&self, samples: &Array) -> Result<EncodedAudio> {
        let Some((length, stride)) = self.chunk() else {
            return Ok(EncodedAudio::Codes(vec![self.encode_chunk(samples)?]));
        };
        // The last chunk is whole.
        let count = ((samples.dim(1) + stride - 1) / stride).max(1);
        let missing = (count - 1) * stride + length - samples.dim(1);
        let padded = ops::pad(samples, &[(0, 0), (0, missing), (0, 0)][..], None, None)?;
        let chunk =
            |i: i32| self.encode_chunk(&mlx::slice(&padded, 1, i * stride, i * stride + length)?);
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
        let style = &self.seanet.style;
        let is_causal = style.is_causal && !style.has_norm && style.trim_right == 1.0;
        if is_causal && !self.is_chunked() { Streaming::Causal(self) } else { Streaming::Whole }
    }
}

impl CausalDecoder for Encodec {
    /// The first convolution mirrors the frames after the first.
    fn first_frames(&self) -> usize {
        self.seanet.first_taps as usize
    }

    fn cache(&self) -> Cache {
        stream_cache(&[&self.decoder.0])
    }

    fn decode_next(&self, codes: &Codes, cache: &mut Cache) -> Result<Array> {
        run_next(&[&self.decoder.0], 0, &self.latents(codes)?, cache)
    }
}
