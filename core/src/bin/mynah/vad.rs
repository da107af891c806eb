//! `mynah vad`.

use crate::{
    Failure, Outcome,
    terminal::{print, print_json},
};
use clap::Args;
use mynah::{Audio, Detection, SpeechSegment, VadModel};
use serde_json::json;
use std::{path::PathBuf, process::ExitCode};

#[derive(Args)]
pub struct Arguments {
    /// A directory or a hub repository, org/name[@revision]
    model: String,
    /// The audio: WAV, FLAC, MP3, M4A or Ogg
    #[arg(long, value_name = "FILE")]
    audio: PathBuf,
    /// Hear the audio in parts, as if they came one after the other
    #[arg(long)]
    stream: bool,
    /// The length of a part in seconds
    #[arg(long, value_name = "S", default_value_t = 0.1, requires = "stream")]
    chunk_seconds: f64,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

pub async fn run(arguments: Arguments) -> Outcome {
    let Arguments { model, audio, stream, chunk_seconds, json } = arguments;
    if !(chunk_seconds.is_finite() && chunk_seconds > 0.0) {
        return Err(Failure::Usage("--chunk-seconds must be more than 0"));
    }
    let audio = Audio::read(audio)?;
    let model = VadModel::load(&*model).await?;
    let detection = if stream {
        let frames = (chunk_seconds * f64::from(audio.sample_rate)).max(1.0) as usize;
        model.detect_parts(&audio, frames, |_| {}).await?
    } else {
        model.detect(&audio).await?
    };
    if json {
        print_json(&to_json(&detection))?
    } else {
        print(&describe(&detection))?
    }
    Ok(ExitCode::SUCCESS)
}

fn to_json(detection: &Detection) -> serde_json::Value {
    match detection {
        Detection::Speech { probabilities, frame_stride, sample_rate, segments } => {
            let times =
                |segment: &SpeechSegment| json!({"start": segment.start, "end": segment.end});
            json!({
                "probabilities": probabilities, "frame_stride_samples": frame_stride,
                "sample_rate": sample_rate,
                "segments": segments.iter().map(times).collect::<Vec<_>>(),
            })
        }
        Detection::Turn { probability, has_ended } => {
            json!({"probability": probability, "prediction": i32::from(*has_ended)})
        }
        Detection::Speakers { probabilities, frame_stride, sample_rate, segments } => {
            let segments = in_order(segments).into_iter().map(|(speaker, segment)| {
                json!({"start": segment.start, "end": segment.end, "speaker": speaker})
            });
            json!({
                "probabilities": probabilities, "frame_stride_samples": frame_stride,
                "sample_rate": sample_rate, "segments": segments.collect::<Vec<_>>(),
            })
        }
    }
}

/// The stretches of all speakers in the order of time.
fn in_order(segments: &[Vec<SpeechSegment>]) -> Vec<(usize, SpeechSegment)> {
    let of_speaker = |(speaker, segments): (usize, &Vec<SpeechSegment>)| {
        segments.iter().map(|segment| (speaker, *segment)).collect::<Vec<_>>()
    };
    let mut all: Vec<_> = segments.iter().enumerate().flat_map(of_speaker).collect();
    all.sort_by(|(_, one), (_, other)| one.start.total_cmp(&other.start));
    all
}

fn describe(detection: &Detection) -> String {
    let line =
        |segment: &SpeechSegment| format!("{:8.2} s to {:8.2} s", segment.start, segment.end);
    match detection {
        Detection::Speech { segments, .. } if segments.is_empty() => "no speech\n".into(),
        Detection::Speech { segments, .. } => {
            segments.iter().map(|segment| line(segment) + "\n").collect()
        }
        Detection::Turn { probability, has_ended } => {
            let answer = if *has_ended { "has ended" } else { "goes on" };
            format!("the turn {answer} (probability of its end {probability:.3})\n")
        }
        Detection::Speakers { segments, .. } => in_order(segments)
            .iter()
            .map(|(speaker, segment)| format!("{}  speaker {speaker}\n", line(segment)))
            .collect(),
    }
}
