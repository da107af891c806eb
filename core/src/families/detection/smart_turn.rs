//! [Smart Turn](https://github.com/pipecat-ai/smart-turn) 3: the encoder of Whisper over the last 8 s, a mean
//! that attention weighs, and an MLP.
//!
//! Follows `mlx-audio` 0.6.2.

use crate::{
    checkpoint::file_rules::FileRules,
    families::{Build, Checkpoint, Entry, prelude::*},
    layers::{
        attention::bidirectional::{BidirectionalAttention, Heads},
        audio::{convolution::Kernel, log_mel::LogMel, sequence::Sequence},
    },
    models::detector::{Detector, DetectorStream, Task},
};
use std::rc::Rc;

pub const ENTRY: Entry = Entry {
    model_types: &["smart_turn", "smart_turn_v3", "smart-turn"],
    build: Build::Detector(build),
    recommended: Recommended::NOTHING,
    files: FileRules::USUAL,
    processor: None,
};

#[derive(Deserialize)]
struct EncoderConfig {
    num_mel_bins: Size,
    max_source_positions: Size,
    d_model: Size,
    encoder_attention_heads: Size,
    encoder_layers: Size,
    encoder_ffn_dim: Size,
}

#[derive(Deserialize)]
struct ProcessorConfig {
    sampling_rate: Size,
    max_audio_seconds: Size,
    normalize_audio: bool,
    threshold: f32,
}

struct SmartTurn {
    processor: Rc<ProcessorConfig>,
    network: Rc<Network>,
}

struct Network {
    mel: LogMel,
    convs: Sequence,
    /// `[positions, width]`.
    positions: Array,
    layers: Sequence,
    weigher: [Linear; 2],
    classifier: Sequence,
}

fn build(checkpoint: &Checkpoint) -> Result<Box<dyn Detector>> {
    let (json, w) = (checkpoint.config, checkpoint.weights);
    let c: EncoderConfig = config::read(&config::part(
        json,
        "encoder_config",
        json!({
            "num_mel_bins": 80, "max_source_positions": 400, "d_model": 384,
            "encoder_attention_heads": 6, "encoder_layers": 4, "encoder_ffn_dim": 1536,
        }),
    ))?;
    let whole = config::with_defaults(
        json,
        json!({
            "sample_rate": 16000, "max_audio_seconds": 8, "threshold": 0.5,
        }),
    );
    let processor: ProcessorConfig = config::read(&config::part(
        json,
        "processor_config",
        json!({
            "sampling_rate": whole.get("sample_rate"), "max_audio_seconds": whole.get("max_audio_seconds"),
            "threshold": whole.get("threshold"), "normalize_audio": true,
        }),
    ))?;
    w.ignore_starting("val_");
    let w = if w.has_below("inner") { w.at("inner") } else { w.clone() };
    let width = *c.d_model;
    let encoder = w.at("encoder");
    let layout = Kernel::new(*c.num_mel_bins, width, 3).layout_of(&encoder.at("conv1"));
    let conv = |name: &str, input, stride| {
        let kernel = Kernel::new(input, width, 3).stride(stride).layout(layout);
        encoder.at(name).convolution(kernel, 1).map(Block::new)
    };
    let convs = vec![
        conv("conv1", *c.num_mel_bins, 1)?,
        Block::new(Map(gelu)),
        conv("conv2", width, 2)?,
        Block::new(Map(gelu)),
    ];
    let mut layers: Vec<Block> = (0..*c.encoder_layers)
        .map(|i| layer(&encoder.at("layers").at(i), &c))
        .collect::<Result<_>>()?;
    layers.push(Block::new(encoder.layer_norm_with_bias("layer_norm", width, EPS)?));
    let positions = encoder.at("embed_positions");
    let network = Network {
        mel: LogMel::new(*c.num_mel_bins),
        convs: Sequence(convs),
        positions: positions.tensor("weight", &[*c.max_source_positions, width])?,
        layers: Sequence(layers),
        weigher: [
            part_of(&w, "pool_attention", 0, width, 256)?,
            part_of(&w, "pool_attention", 2, 256, 1)?,
        ],
        classifier: classifier(&w, width)?,
    };
    Ok(Box::new(SmartTurn { processor: Rc::new(processor), network: Rc::new(network) }))
}

const EPS: f32 = 1e-5;

/// Layer `i` of a list, which some files name `{list}_{i}`.
fn place(w: &Scope, list: &str, i: usize) -> Scope {
    w.first_of([format!("{list}_{i}"), format!("{list}.{i}")])
}

fn part_of(w: &Scope, list: &str, i: usize, input: i32, output: i32) -> Result<Linear> {
    let names = [format!("{list}_{i}"), format!("{list}.{i}")];
    let name = names.iter().find(|name| w.has_below(name)).unwrap_or(&names[1]);
    w.linear_with_bias(name, input, output)
}

fn classifier(w: &Scope, width: i32) -> Result<Sequence> {
    let norm = place(w, "classifier", 1);
    let linear = |i, input, output| -> Result<Block> {
        let linear = part_of(w, "classifier", i, input, output)?;
        Ok(Block::new(Map(move |x: &Array| linear.forward(x))))
    };
    let (weight, bias) = (norm.tensor("weight", &[256])?, norm.tensor("bias", &[256])?);
    Ok(Sequence(vec![
        linear(0, width, 256)?,
        Block::new(Norm::Layer { weight: Some(weight), bias: Some(bias), eps: EPS }),
        Block::new(Map(gelu)),
        linear(4, 256, 64)?,
        Block::new(Map(gelu)),
        linear(6, 64, 1)?,
    ]))
}

fn layer(w: &Scope, c: &EncoderConfig) -> Result<Block> {
    let (width, heads) = (*c.d_model, *c.encoder_attention_heads);
    let attention = w.at("self_attn");
    let projection = |name: &str| attention.linear(name, width, width);
    let projections = [
        projection("q_proj")?,
        projection("k_proj")?,
        projection("v_proj")?,
        projection("out_proj")?,
    ];
    let heads = Heads::equal(heads, width / heads);
    let up = w.linear_with_bias("fc1", width, *c.encoder_ffn_dim)?;
    let down = w.linear_with_bias("fc2", *c.encoder_ffn_dim, width)?;
    let norm = |name: &str| w.layer_norm_with_bias(name, width, EPS);
    let attention = BidirectionalAttention::new(projections, heads, Rope::None);
    Ok(Block::new((
        Residual::pre(norm("self_attn_layer_norm")?, attention),
        Residual::pre(norm("final_layer_norm")?, PlainMlp::new(up, down, gelu)),
    )))
}

impl Network {
    /// The probability that the turn has ended.
    fn forward(&self, samples: &[f32]) -> Result<f32> {
        let x = self.convs.run(&self.mel.forward(samples)?.expand_dims(0)?)?;
        if x.dim(1) > self.positions.dim(0) {
            let reason = format!("{}, and the audio has {}", self.positions.dim(0), x.dim(1));
            return Err(Error::config("encoder_config.max_source_positions", reason));
        }
        let x = x.add(mlx::slice(&self.positions, 0, 0, x.dim(1))?)?;
        let x = self.layers.run(&x)?;
        let scores = self.weigher[1].forward(&ops::tanh(&self.weigher[0].forward(&x)?)?)?;
        let weights = ops::softmax_axis(&scores, 1, true)?;
        let logit = self.classifier.run(&x.multiply(weights)?.sum_axis(1, true)?)?;
        Ok(mlx::to_vec::<f32>(&ops::sigmoid(&logit)?)?[0])
    }
}

impl Detector for SmartTurn {
    fn task(&self) -> Task {
        Task::Turn { threshold: self.processor.threshold }
    }

    /// Any rate, because it interpolates linearly.
    fn sample_rate(&self, given: u32) -> u32 {
        given
    }

    fn frame_stride(&self, sample_rate: u32) -> usize {
        *self.processor.max_audio_seconds as usize * sample_rate as usize
    }

    fn stream(&self, sample_rate: u32) -> Result<Box<dyn DetectorStream>> {
        let (processor, network) = (self.processor.clone(), self.network.clone());
        Ok(Box::new(TurnStream { processor, network, sample_rate, samples: Vec::new() }))
    }
}

/// A turn that is being heard.
struct TurnStream {
    processor: Rc<ProcessorConfig>,
    network: Rc<Network>,
    sample_rate: u32,
    /// At its rate.
    samples: Vec<f32>,
}

impl DetectorStream for TurnStream {
    fn push(&mut self, samples: &[f32]) -> Result<Vec<Vec<f32>>> {
        self.samples.extend_from_slice(samples);
        Ok(Vec::new())
    }

    /// The end of the recording, after silence where it is short, at a mean of 0 and a variance of 1.
    fn finish(&mut self) -> Result<Vec<Vec<f32>>> {
        let c = &self.processor;
        let heard = interpolated(&self.samples, self.sample_rate, *c.sampling_rate as u32);
        let length = (*c.max_audio_seconds * *c.sampling_rate) as usize;
        let heard = &heard[heard.len().saturating_sub(length)..];
        let mut samples = vec![0.0; length - heard.len()];
        samples.extend_from_slice(heard);
        if c.normalize_audio {
            let mean = samples.iter().map(|x| f64::from(*x)).sum::<f64>() / length as f64;
            let square = |x: &f32| (f64::from(*x) - mean).powi(2);
            let deviation = (samples.iter().map(square).sum::<f64>() / length as f64).sqrt();
            let scaled = |x: &mut f32| *x = ((f64::from(*x) - mean) / deviation.max(1e-7)) as f32;
            samples.iter_mut().for_each(scaled);
        }
        Ok(vec![vec![self.network.forward(&samples)?]])
    }
}

/// Samples at another rate, on straight lines between those that there are.
fn interpolated(samples: &[f32], from: u32, to: u32) -> Vec<f32> {
    if from == to || samples.is_empty() {
        return samples.to_vec();
    }
    let count = samples.len() as f64;
    let length = (count * f64::from(to) / f64::from(from)).round().max(1.0);
    let sample = |i: usize| {
        let place = i as f64 * count / length;
        let next = (place as usize + 1).min(samples.len() - 1);
        let (before, after) = (f64::from(samples[place as usize]), f64::from(samples[next]));
        (before + (after - before) * place.fract()) as f32
    };
    (0..length as usize).map(sample).collect()
}
