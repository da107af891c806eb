//! `mynah features`.

use crate::{
    Outcome, model,
    terminal::{print, print_json},
};
use clap::{Args, ValueEnum};
use mynah::{AudioFeatures, Location, Stage};
use serde::Serialize;
use std::{path::PathBuf, process::ExitCode};

#[derive(Args)]
pub struct Arguments {
    /// A directory or a hub repository, org/name[@revision]
    model: String,
    /// The audio file
    #[arg(long, value_name = "FILE")]
    audio: PathBuf,
    /// What to compute
    #[arg(long, value_enum, default_value = "front-end")]
    stage: StageArgument,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum StageArgument {
    /// The features of the front end
    FrontEnd,
    /// The output of the encoder
    Encoder,
}

/// The line that `--json` prints.
#[derive(Serialize)]
struct Report {
    /// Frames and values of a frame.
    shape: [usize; 2],
    mean: f64,
    std: f64,
    /// 32 values at equal distances, from the first to the last.
    samples: Vec<f32>,
}

pub async fn run(arguments: Arguments) -> Outcome {
    let model = model::load_audio(Location::from(arguments.model)).await?;
    let stage = match arguments.stage {
        StageArgument::FrontEnd => Stage::FrontEnd,
        StageArgument::Encoder => Stage::Encoder,
    };
    let report = Report::of(&model.features(arguments.audio, stage).await?);
    if arguments.json {
        print_json(&report)?;
    } else {
        let [frames, bins] = report.shape;
        let Report { mean, std, .. } = report;
        print(&format!("{frames} frames of {bins} values, mean {mean:.4}, deviation {std:.4}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Report {
    fn of(features: &AudioFeatures) -> Self {
        const SAMPLES: usize = 32;
        let values = &features.values;
        let (count, last) = (values.len().max(1) as f64, values.len().saturating_sub(1));
        let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
        let squares = values.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>();
        let at = |i: usize| values.get(i * last / (SAMPLES - 1)).copied();
        Report {
            shape: [features.frames, features.bins],
            mean,
            std: (squares / count).sqrt(),
            samples: (0..SAMPLES).filter_map(at).collect(),
        }
    }
}
