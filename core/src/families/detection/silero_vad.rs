//! [Silero VAD](https://github.com/snakers4/silero-vad) 5: a Fourier transform that the checkpoint stores as a
//! convolution, four convolutions, and an LSTM over windows of 32 ms, for 16 kHz and for 8 kHz.
//!
//! Follows `mlx-audio` 0.6.2, and `silero-vad` 6.2.3, whose checkpoint has 16 kHz only and no config.

use crate::{
    checkpoint::file_rules::FileRules,
    families::{Build, Checkpoint, Entry, prelude::*},
    layers::audio::{
        convolution::{Convolution, Kernel},
        lstm::Lstm,
    },
    models::{
        detector::{Detector, DetectorStream, Task},
        segments::SegmentRules,
    },
};
use std::rc::Rc;

pub const ENTRY: Entry = Entry {
    model_types: &["silero_vad", "silero", "silero-vad"],
    build: Build::Detector(build),
    recommended: Recommended::NOTHING,
    files: FileRules {
        weights: &["*.safetensors"],
        matches: Some(|contents| {
            let is_weights =
                |name: &String| name.starts_with("silero_vad") && name.ends_with(".safetensors");
            contents.config.is_none() && contents.names.iter().any(is_weights)
        }),
        ..FileRules::USUAL
    },
    processor: None,
};

#[derive(Deserialize)]
struct Config {
    threshold: f32,
    min_speech_duration_ms: f64,
    min_silence_duration_ms: f64,
    speech_pad_ms: f64,
    branch_16k: BranchConfig,
    branch_8k: BranchConfig,
}

#[derive(Clone, Copy, Deserialize)]
struct BranchConfig {
    filter_length: Size,
    hop_length: Size,
    pad: Size,
    cutoff: Size,
    context_size: Size,
    chunk_size: Size,
}

struct SileroVad {
    rules: SegmentRules,
    /// For 16 kHz and for 8 kHz.
    branches: [Option<Rc<Branch>>; 2],
}

/// The network for one sample rate.
struct Branch {
    c: BranchConfig,
    stft: Convolution,
    convs: [Convolution; 4],
    lstm: Lstm,
    last: Convolution,
}

fn build(checkpoint: &Checkpoint) -> Result<Box<dyn Detector>> {
    let wide = json!({
        "filter_length": 256, "hop_length": 128, "pad": 64, "cutoff": 129, "context_size": 64,
        "chunk_size": 512,
    });
    let narrow = json!({
        "filter_length": 128, "hop_length": 64, "pad": 32, "cutoff": 65, "context_size": 32,
        "chunk_size": 256,
    });
    let given = checkpoint.config;
    let branches = given
        .with("branch_16k", config::part(given, "branch_16k", wide))
        .with("branch_8k", config::part(given, "branch_8k", narrow));
    let c: Config = config::read(&config::with_defaults(
        &branches,
        json!({
            "threshold": 0.5, "min_speech_duration_ms": 250, "min_silence_duration_ms": 100,
            "speech_pad_ms": 30,
        }),
    ))?;
    let w = checkpoint.weights;
    w.ignore_starting("val_");
    let wide = if w.has_below("vad_16k") { w.at("vad_16k") } else { w.clone() };
    let narrow = w.at("vad_8k");
    let narrow = narrow.has_below("stft_conv").then(|| Branch::read(&narrow, c.branch_8k));
    Ok(Box::new(SileroVad {
        rules: SegmentRules {
            threshold: c.threshold,
            off_threshold: (c.threshold - 0.15).max(0.01),
            min_speech: c.min_speech_duration_ms / 1000.0,
            min_silence: c.min_silence_duration_ms / 1000.0,
            padding: c.speech_pad_ms / 1000.0,
        },
        branches: [
            Some(Rc::new(Branch::read(&wide, c.branch_16k)?)),
            narrow.transpose()?.map(Rc::new),
        ],
    }))
}

impl Branch {
    fn read(w: &Scope, c: BranchConfig) -> Result<Self> {
        const WIDTH: i32 = 128;
        let stft = Kernel::new(1, 2 * *c.cutoff, *c.filter_length).stride(*c.hop_length);
        let layout = stft.layout_of(&w.at("stft_conv"));
        let conv = |name: &str, input, output, stride| {
            w.at(name).convolution(Kernel::new(input, output, 3).stride(stride).layout(layout), 1)
        };
        let lstm = match w.has_below("lstm_cell") {
            true => w.at("lstm_cell").lstm("", WIDTH, WIDTH)?,
            false => w.at("lstm").mlx_lstm(WIDTH, WIDTH)?,
        };
        Ok(Branch {
            c,
            stft: w.at("stft_conv").convolution(stft.layout(layout), 0)?,
            convs: [
                conv("conv1", *c.cutoff, WIDTH, 1)?,
                conv("conv2", WIDTH, WIDTH / 2, 2)?,
                conv("conv3", WIDTH / 2, WIDTH / 2, 2)?,
                conv("conv4", WIDTH / 2, WIDTH, 1)?,
            ],
            lstm,
            last: w.at("final_conv").convolution(Kernel::new(WIDTH, 1, 1), 0)?,
        })
    }

    /// Windows `[windows, samples]` that follow each other to probabilities, after the state.
    fn forward(&self, windows: &Array, state: &mut Recurrent) -> Result<Vec<f32>> {
        let (count, length, pad) = (windows.dim(0), windows.dim(1), *self.c.pad);
        let mirrored = ops::arange::<_, i32>(length - 2, length - pad - 2, -1)?;
        let padded = ops::concatenate(&[windows, &windows.take_axis(mirrored, 1)?], 1)?;
        let spectra = self.stft.forward(&padded.expand_dims(-1)?)?.split_equal(2, -1)?;
        let mut x = spectra[0].square()?.add(spectra[1].square()?)?.sqrt()?;
        for conv in &self.convs {
            x = activation::relu(&conv.forward(&x)?)?;
        }
        let steps = x.dim(1);
        let x = self.lstm.run(&x.reshape(&[1, count * steps, x.dim(2)])?, state)?;
        let y = ops::sigmoid(&self.last.forward(&activation::relu(&x)?)?)?;
        mlx::to_vec(&y.reshape(&[count, steps])?.mean_axis(1, false)?)
    }
}

impl Detector for SileroVad {
    fn task(&self) -> Task {
        Task::Speech(self.rules)
    }

    fn sample_rate(&self, given: u32) -> u32 {
        if given == 8_000 && self.branches[1].is_some() { 8_000 } else { 16_000 }
    }

    fn frame_stride(&self, sample_rate: u32) -> usize {
        let branch = self.branches[usize::from(sample_rate == 8_000)].as_ref();
        branch.map_or(512, |branch| *branch.c.chunk_size as usize)
    }

    fn stream(&self, sample_rate: u32) -> Result<Box<dyn DetectorStream>> {
        let place = match sample_rate {
            16_000 => 0,
            8_000 => 1,
            other => {
                let reason = format!("{other} Hz; this model hears 16,000 Hz and 8,000 Hz");
                return Err(Error::option("sample rate", reason));
            }
        };
        let missing = || Error::option("sample rate", "this checkpoint hears 16,000 Hz only");
        let branch = self.branches[place].clone().ok_or_else(missing)?;
        let samples = vec![0.0; *branch.c.context_size as usize];
        Ok(Box::new(SileroStream { branch, samples, state: Recurrent::default() }))
    }
}

/// A recording that is being heard.
struct SileroStream {
    branch: Rc<Branch>,
    /// The end of the window before, and samples of no window yet.
    samples: Vec<f32>,
    state: Recurrent,
}

/// Windows that are computed at once, about 16 s.
const BATCH: usize = 512;

impl DetectorStream for SileroStream {
    fn push(&mut self, samples: &[f32]) -> Result<Vec<Vec<f32>>> {
        let c = &self.branch.c;
        let (context, stride) = (*c.context_size as usize, *c.chunk_size as usize);
        self.samples.extend_from_slice(samples);
        let mut rows = Vec::new();
        let mut start = 0;
        loop {
            let count = ((self.samples.len() - start - context) / stride).min(BATCH);
            if count == 0 {
                break;
            }
            let window = |i: usize| &self.samples[start + i * stride..][..context + stride];
            let windows: Vec<f32> = (0..count).flat_map(|i| window(i).iter().copied()).collect();
            let windows = Array::from_slice(&windows, &[count as i32, (context + stride) as i32]);
            let found = self.branch.forward(&windows, &mut self.state)?;
            rows.extend(found.into_iter().map(|probability| vec![probability]));
            start += count * stride;
        }
        self.samples.drain(..start);
        Ok(rows)
    }

    /// The last window is filled with silence.
    fn finish(&mut self) -> Result<Vec<Vec<f32>>> {
        let c = &self.branch.c;
        let (context, stride) = (*c.context_size as usize, *c.chunk_size as usize);
        if self.samples.len() == context {
            return Ok(Vec::new());
        }
        self.push(&vec![0.0; context + stride - self.samples.len()])
    }
}
