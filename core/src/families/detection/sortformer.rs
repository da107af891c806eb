//! [Sortformer](https://arxiv.org/abs/2409.06656): a FastConformer, a transformer with norms after each
//! branch, and the probability of each speaker every 80 ms. Speakers are numbered in the order in which
//! they begin to speak.
//!
//! Follows `mlx-audio` 0.6.2, over whole recordings. A recording in parts is heard when it ends.

use crate::{
    checkpoint::file_rules::FileRules,
    families::{Build, Checkpoint, Entry, prelude::*},
    layers::{
        attention::bidirectional::{BidirectionalAttention, Heads},
        audio::{
            conformer::{Conformer, ConformerSizes, OF_TRANSFORMERS},
            normalized_log_mel::{NormalizedLogMel, NormalizedLogMelSizes},
        },
    },
    models::{
        detector::{Detector, DetectorStream, Task},
        segments::SegmentRules,
    },
};
use std::rc::Rc;

pub const ENTRY: Entry = Entry {
    model_types: &["sortformer", "diar_sortformer"],
    build: Build::Detector(build),
    recommended: Recommended::NOTHING,
    files: FileRules::USUAL,
    processor: None,
};

#[derive(Deserialize)]
struct EncoderConfig {
    hidden_size: Size,
    num_hidden_layers: Size,
    num_attention_heads: Size,
    intermediate_size: Size,
    num_mel_bins: Size,
    conv_kernel_size: Size,
    subsampling_factor: Size,
    subsampling_conv_channels: Size,
    scale_input: bool,
}

#[derive(Deserialize)]
struct TransformerConfig {
    d_model: Size,
    encoder_layers: Size,
    encoder_attention_heads: Size,
    encoder_ffn_dim: Size,
    layer_norm_eps: Epsilon,
    max_source_positions: Size,
}

#[derive(Deserialize)]
struct ProcessorConfig {
    sampling_rate: Size,
    hop_length: Size,
    n_fft: Size,
    win_length: Size,
    preemphasis: f32,
}

struct Sortformer {
    network: Rc<Network>,
    sample_rate: u32,
    stride: usize,
}

struct Network {
    mel: NormalizedLogMel,
    conformer: Conformer,
    narrow: Linear,
    /// `[positions, width]`.
    positions: Array,
    layers: Vec<TransformerLayer>,
    output: [Linear; 2],
}

struct TransformerLayer {
    attention: BidirectionalAttention,
    attention_norm: Norm,
    mlp: PlainMlp,
    mlp_norm: Norm,
}

fn build(checkpoint: &Checkpoint) -> Result<Box<dyn Detector>> {
    let (json, w) = (checkpoint.config, checkpoint.weights);
    let e: EncoderConfig = config::read(&config::part(
        json,
        "fc_encoder_config",
        json!({
            "hidden_size": 512, "num_hidden_layers": 18, "num_attention_heads": 8,
            "intermediate_size": 2048, "num_mel_bins": 80, "conv_kernel_size": 9,
            "subsampling_factor": 8, "subsampling_conv_channels": 256, "scale_input": true,
        }),
    ))?;
    let t: TransformerConfig = config::read(&config::part(
        json,
        "tf_encoder_config",
        json!({
            "d_model": 192, "encoder_layers": 18, "encoder_attention_heads": 8,
            "encoder_ffn_dim": 768, "layer_norm_eps": 1e-5, "max_source_positions": 1500,
        }),
    ))?;
    let p: ProcessorConfig = config::read(&config::part(
        json,
        "processor_config",
        json!({
            "sampling_rate": 16000, "hop_length": 160, "n_fft": 512, "win_length": 400,
            "preemphasis": 0.97,
        }),
    ))?;
    let speakers = config::part(json, "modules_config", json!({"num_speakers": 4}));
    let speakers = *config::field::<Size>(&speakers, "num_speakers")?;
    let encoder = w.at("fc_encoder");
    encoder.rename(OF_TRANSFORMERS);
    let (width, modules, tf) = (*t.d_model, w.at("sortformer_modules"), w.at("tf_encoder"));
    // Probabilities of pairs of frames, which only the training uses.
    modules.ignore("hidden_to_spks");
    let layer = |i: i32| TransformerLayer::read(&tf.at("layers").at(i), &t);
    let positions = tf.at("embed_positions").tensor("weight", &[*t.max_source_positions, width])?;
    let network = Network {
        mel: NormalizedLogMel::new(NormalizedLogMelSizes {
            sample_rate: *p.sampling_rate as u32,
            n_fft: *p.n_fft as usize,
            window: *p.win_length as usize,
            hop: *p.hop_length as usize,
            bins: *e.num_mel_bins as usize,
            pre_emphasis: p.preemphasis,
            is_last_frame_valid: true,
        }),
        conformer: Conformer::read(
            &encoder,
            ConformerSizes {
                bins: *e.num_mel_bins,
                width: *e.hidden_size,
                inner: *e.intermediate_size,
                heads: *e.num_attention_heads,
                layers: *e.num_hidden_layers,
                subsampling: *e.subsampling_factor,
                channels: *e.subsampling_conv_channels,
                taps: *e.conv_kernel_size,
                is_scaled: e.scale_input,
                activation: activation::silu,
            },
        )?,
        narrow: modules.linear_with_bias("encoder_proj", *e.hidden_size, width)?,
        positions,
        layers: (0..*t.encoder_layers).map(layer).collect::<Result<_>>()?,
        output: [
            modules.linear_with_bias("first_hidden_to_hidden", width, width)?,
            modules.linear_with_bias("single_hidden_to_spks", width, speakers)?,
        ],
    };
    Ok(Box::new(Sortformer {
        network: Rc::new(network),
        sample_rate: *p.sampling_rate as u32,
        stride: (*p.hop_length * *e.subsampling_factor) as usize,
    }))
}

impl TransformerLayer {
    fn read(w: &Scope, c: &TransformerConfig) -> Result<Self> {
        let (width, eps) = (*c.d_model, *c.layer_norm_eps);
        let attention = w.at("self_attn");
        let projection = |name: &str| attention.linear(name, width, width);
        let projections = [
            projection("q_proj")?,
            projection("k_proj")?,
            projection("v_proj")?,
            projection("out_proj")?,
        ];
        let heads = *c.encoder_attention_heads;
        let heads = Heads::equal(heads, width / heads);
        let up = w.linear_with_bias("fc1", width, *c.encoder_ffn_dim)?;
        let down = w.linear_with_bias("fc2", *c.encoder_ffn_dim, width)?;
        Ok(TransformerLayer {
            attention: BidirectionalAttention::new(projections, heads, Rope::None),
            attention_norm: w.layer_norm_with_bias("self_attn_layer_norm", width, eps)?,
            mlp: PlainMlp::new(up, down, activation::relu),
            mlp_norm: w.layer_norm_with_bias("final_layer_norm", width, eps)?,
        })
    }

    fn forward(&self, x: &Array) -> Result<Array> {
        let step = Step::prefill(0, x.dim(1));
        let x =
            self.attention_norm.forward(&x.add(self.attention.forward(x, &mut (), &step)?)?)?;
        self.mlp_norm.forward(&x.add(self.mlp.forward(&x, &mut (), &step)?)?)
    }
}

impl Network {
    /// Samples to the probabilities of the speakers, `[1, frames, speakers]`.
    fn forward(&self, samples: &[f32]) -> Result<Array> {
        /// Features are filled up to a multiple of this.
        const MULTIPLE: i32 = 16;
        let features = self.mel.forward(samples)?.expand_dims(0)?;
        let missing = (-features.dim(1)).rem_euclid(MULTIPLE);
        let features = ops::pad(&features, &[(0, 0), (0, missing), (0, 0)][..], None, None)?;
        let mut x = self.narrow.forward(&self.conformer.forward(&features)?)?;
        if x.dim(1) > self.positions.dim(0) {
            let reason = format!(
                "the recording has {} frames, and this model hears at most {} at once",
                x.dim(1),
                self.positions.dim(0)
            );
            return Err(Error::option("audio", reason));
        }
        x = x.add(mlx::slice(&self.positions, 0, 0, x.dim(1))?)?;
        for layer in &self.layers {
            x = layer.forward(&x)?;
        }
        let [first, last] = &self.output;
        let x = first.forward(&activation::relu(&x)?)?;
        Ok(ops::sigmoid(&last.forward(&activation::relu(&x)?)?)?)
    }
}

impl Detector for Sortformer {
    fn task(&self) -> Task {
        Task::Speakers(SegmentRules {
            threshold: 0.5,
            off_threshold: 0.5,
            min_speech: 0.0,
            min_silence: 0.0,
            padding: 0.0,
        })
    }

    fn sample_rate(&self, _: u32) -> u32 {
        self.sample_rate
    }

    fn frame_stride(&self, _: u32) -> usize {
        self.stride
    }

    fn stream(&self, _: u32) -> Result<Box<dyn DetectorStream>> {
        let (network, sample_rate) = (self.network.clone(), self.sample_rate);
        Ok(Box::new(Recording { network, sample_rate, samples: Vec::new(), offset: 0 }))
    }
}

/// A recording that is being heard.
struct Recording {
    network: Rc<Network>,
    sample_rate: u32,
    samples: Vec<f32>,
    /// Samples of silence at the beginning.
    offset: usize,
}

impl DetectorStream for Recording {
    fn push(&mut self, samples: &[f32]) -> Result<Vec<Vec<f32>>> {
        self.samples.extend_from_slice(samples);
        Ok(Vec::new())
    }

    fn offset(&self) -> usize {
        self.offset
    }

    /// Hears what is between the silence at both ends, at a peak of about 1.
    fn finish(&mut self) -> Result<Vec<Vec<f32>>> {
        if self.samples.is_empty() {
            return Ok(Vec::new());
        }
        let range = sound(&self.samples, self.sample_rate as usize);
        self.offset = range.start;
        let sound = &self.samples[range];
        let peak = sound.iter().fold(0.0_f32, |peak, x| peak.max(x.abs())) + 1e-3;
        let sound: Vec<f32> = sound.iter().map(|x| x / peak).collect();
        let probabilities = self.network.forward(&sound)?;
        let speakers = probabilities.dim(2) as usize;
        let values: Vec<f32> = mlx::to_vec(&probabilities)?;
        Ok(values.chunks(speakers).map(<[f32]>::to_vec).collect())
    }
}

/// What is between the first and the last half second that are louder than a hundredth of the loudest
/// 30 ms; everything where there is less than a second.
fn sound(samples: &[f32], sample_rate: usize) -> std::ops::Range<usize> {
    let frame = (sample_rate * 30 / 1000).max(1);
    let least = 16;
    let loudness = |frame: &[f32]| {
        let squares = frame.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        (squares / frame.len() as f64).sqrt()
    };
    let loudness: Vec<f64> = samples.chunks_exact(frame).map(loudness).collect();
    if loudness.len() < 2 * least {
        return 0..samples.len();
    }
    let floor = loudness.iter().copied().fold(0.0, f64::max) * 0.01;
    let is_sound = |frames: &[f64]| frames.iter().all(|loudness| *loudness > floor);
    let start = loudness.windows(least).position(is_sound).unwrap_or(0);
    let end = loudness.windows(least).rposition(is_sound).map_or(loudness.len(), |i| i + least);
    match (start, end * frame) {
        (0, end) if end == samples.len() => 0..samples.len(),
        (start, end) => start * frame..end.min(samples.len()),
    }
}
