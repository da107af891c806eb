//! The encoder of Qwen3-ASR and of its aligner: log-mel features in chunks through three convolutions of
//! stride 2, and attention within windows of several chunks. Follows `qwen3_asr` of mlx-audio.

use crate::{
    families::prelude::*,
    layers::audio::{
        convolution::Kernel,
        convolution_2d::{Convolution2d, halved},
        encoder::{
            BlockNames, EncoderSizes, TRANSFORMERS, encoder_block, norm, run_blocks, sinusoids,
        },
        log_mel::LogMel,
    },
};

#[derive(Deserialize)]
struct AudioConfig {
    activation_function: String,
    num_mel_bins: Size,
    encoder_layers: Size,
    encoder_attention_heads: Size,
    encoder_ffn_dim: Size,
    d_model: Size,
    n_window: Size,
    output_dim: Size,
    n_window_infer: Size,
    downsample_hidden_size: Size,
}

pub struct ChunkedEncoder {
    front_end: LogMel,
    convs: Vec<Convolution2d>,
    /// From the channels and frequencies of a position to the width.
    output: Linear,
    blocks: Vec<Block>,
    norm: Norm,
    projections: [Linear; 2],
    chunks: Chunks,
    /// The samples to which shorter clips are padded.
    shortest: usize,
}

/// How a recording is cut.
struct Chunks {
    /// Frames of a chunk.
    frames: i32,
    /// Chunks of a window.
    window: i32,
    /// Whether the checkpoint is in the layout of transformers, which pads a short chunk as well.
    is_of_transformers: bool,
}

impl ChunkedEncoder {
    /// Reads `audio_tower`; `config` has an `audio_config`. The layout of transformers pads a short chunk.
    ///
    /// # Errors
    /// As [`Scope::linear`].
    pub fn read(
        w: &Scope,
        config: &Json,
        is_of_transformers: bool,
        shortest: usize,
    ) -> Result<Self> {
        let c: AudioConfig = config::read(&config::part(
            config,
            "audio_config",
            json!({
                "activation_function": "gelu",
                "num_mel_bins": 128, "encoder_layers": 24, "encoder_attention_heads": 16,
                "encoder_ffn_dim": 4096, "d_model": 1024, "n_window": 50, "output_dim": 2048,
                "n_window_infer": 800, "downsample_hidden_size": 480,
            }),
        ))?;
        let (tower, width, hidden) = (w.at("audio_tower"), c.d_model.0, c.downsample_hidden_size.0);
        let conv = |name: &str, input: i32| {
            tower.at(name).convolution_2d(Kernel::new(input, hidden, 3).stride(2))
        };
        let convs = vec![conv("conv2d1", 1)?, conv("conv2d2", hidden)?, conv("conv2d3", hidden)?];
        let frequencies = halved(halved(halved(c.num_mel_bins.0)));
        let activation = activation::named("activation_function", &c.activation_function)?;
        let sizes = EncoderSizes {
            bins: c.num_mel_bins.0,
            width,
            inner: c.encoder_ffn_dim.0,
            heads: c.encoder_attention_heads.0,
            layers: c.encoder_layers.0,
            positions: 0,
            activation,
        };
        let names = BlockNames { norm: "ln_post", ..TRANSFORMERS };
        let layers = tower.at(names.layers);
        Ok(ChunkedEncoder {
            front_end: LogMel::new(c.num_mel_bins.0),
            convs,
            output: tower.linear("conv_out", hidden * frequencies, width)?,
            blocks: (0..sizes.layers)
                .map(|i| encoder_block(&layers.at(i), &names, sizes))
                .collect::<Result<_>>()?,
            norm: norm(&tower, names.norm, width)?,
            projections: [
                tower.linear_with_bias("proj1", width, width)?,
                tower.linear_with_bias("proj2", width, c.output_dim.0)?,
            ],
            chunks: Chunks {
                frames: 2 * c.n_window.0,
                window: (c.n_window_infer.0 / (2 * c.n_window.0)).max(1),
                is_of_transformers,
            },
            shortest,
        })
    }

    /// Samples to features `[1, frames, bins]`.
    ///
    /// # Errors
    /// [`Error::Mlx`].
    pub fn features(&self, samples: &[f32]) -> Result<Array> {
        let mut samples = samples.to_vec();
        samples.resize(samples.len().max(self.shortest), 0.0);
        Ok(self.front_end.forward(&samples)?.expand_dims(0)?)
    }

    /// Features to positions `[1, positions, width]`.
    ///
    /// # Errors
    /// [`Error::Mlx`].
    pub fn encode(&self, features: &Array) -> Result<Array> {
        let (frames, bins) = (features.dim(1), features.dim(2));
        let Chunks { frames: whole, window, is_of_transformers } = self.chunks;
        let chunk = if is_of_transformers { whole } else { whole.min(frames) };
        let chunks = (frames + chunk - 1) / chunk;
        let x = ops::pad(features, &[(0, 0), (0, chunks * chunk - frames), (0, 0)], None, None)?;
        let mut x = x.reshape(&[chunks, chunk, bins])?.swap_axes(1, 2)?.expand_dims(3)?;
        for conv in &self.convs {
            x = gelu(&conv.forward(&x)?)?;
        }
        // Frequencies, positions and channels of each chunk.
        let positions = x.dim(2);
        let x = x.transpose_axes(&[0, 2, 3, 1])?.reshape(&[chunks, positions, -1])?;
        let x = self.output.forward(&x)?;
        let x = x.add(sinusoids(positions, x.dim(2)).as_dtype(x.dtype())?)?;
        // All chunks but the last one are whole.
        let last = halved(halved(halved(frames - (chunks - 1) * chunk)));
        let total = (chunks - 1) * positions + last;
        let x = mlx::slice(&x.reshape(&[1, chunks * positions, -1])?, 1, 0, total)?;
        let window = positions * window;
        let starts = (0..total).step_by(window as usize);
        let windows = starts.map(|start| {
            let part = mlx::slice(&x, 1, start, total.min(start + window))?;
            run_blocks(&self.blocks, part)
        });
        let x = ops::concatenate(&windows.collect::<Result<Vec<_>>>()?, 1)?;
        let [first, second] = &self.projections;
        second.forward(&gelu(&first.forward(&self.norm.forward(&x)?)?)?)
    }
}
