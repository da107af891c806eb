//! `mynah codec`.

use crate::{
    Failure, Outcome,
    terminal::{print_json, say},
};
use clap::{Args, Subcommand};
use mynah::{Audio, AudioCodec, Codes, EncodedAudio, Error};
use serde_json::{Value as Json, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

#[derive(Subcommand)]
pub enum Action {
    /// Encode audio to codes or features
    Encode(Encode),
    /// Decode codes or features to audio
    Decode(Decode),
    /// Encode audio and decode it again
    Reconstruct(Reconstruct),
}

#[derive(Args)]
pub struct Encode {
    /// A directory or a hub repository, org/name[@revision]
    model: String,
    /// The audio: WAV, FLAC, MP3, M4A or Ogg
    #[arg(long, value_name = "FILE")]
    audio: PathBuf,
    /// Write the JSON to this file instead of standard output
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print one line of JSON, which is what is printed anyway
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct Decode {
    /// A directory or a hub repository, org/name[@revision]
    model: String,
    /// The codes, {"codes": [codebook][frame]}; chunked codecs: [chunk][codebook][frame] and "scales"
    #[arg(long, value_name = "FILE", required_unless_present = "features")]
    codes: Option<PathBuf>,
    /// The features, {"features": [frame][bin]}
    #[arg(long, value_name = "FILE", conflicts_with = "codes")]
    features: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

#[derive(Args)]
pub struct Reconstruct {
    /// A directory or a hub repository, org/name[@revision]
    model: String,
    /// The audio: WAV, FLAC, MP3, M4A or Ogg
    #[arg(long, value_name = "FILE")]
    audio: PathBuf,
    #[command(flatten)]
    output: Output,
}

/// The noise of a decoder.
#[derive(Args)]
pub struct NoiseOptions {
    /// Random numbers of the decoder: `zero` for none
    #[arg(long, value_name = "KIND", value_parser = ["zero", "random"], default_value = "random")]
    noise: String,
    /// The seed of random numbers
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

impl NoiseOptions {
    /// The seed; none for no noise.
    pub fn seed(&self) -> Option<u64> {
        (self.noise != "zero").then_some(self.seed)
    }
}

#[derive(Args)]
struct Output {
    /// The WAV file to write, of 32-bit floats
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    noise: NoiseOptions,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

impl Output {
    fn write(&self, audio: &Audio) -> Outcome {
        audio.write_wav(&self.output)?;
        let frames = audio.samples.len() / audio.channels.max(1);
        if self.json {
            print_json(&json!({
                "sample_rate": audio.sample_rate, "channels": audio.channels, "samples": frames,
            }))?;
        } else {
            let seconds = frames as f64 / f64::from(audio.sample_rate);
            say(&format!("{}: {seconds:.2} s", self.output.display()));
        }
        Ok(ExitCode::SUCCESS)
    }
}

pub async fn run(action: Action) -> Outcome {
    match action {
        Action::Encode(Encode { model, audio, output, json: _ }) => {
            let codec = AudioCodec::load(&*model).await?;
            let encoded = codec.encode(&Audio::read(audio)?).await?;
            let json = to_json(&encoded, codec.is_chunked());
            match output {
                Some(path) => write(&path, &json)?,
                None => print_json(&json)?,
            }
            Ok(ExitCode::SUCCESS)
        }
        Action::Decode(Decode { model, codes, features, output }) => {
            let path =
                codes.or(features).ok_or(Failure::Usage("--codes or --features is missing"))?;
            let encoded = from_json(&path)?;
            let codec = AudioCodec::load(&*model).await?;
            output.write(&codec.decode(encoded, output.noise.seed()).await?)
        }
        Action::Reconstruct(Reconstruct { model, audio, output }) => {
            let audio = Audio::read(audio)?;
            let codec = AudioCodec::load(&*model).await?;
            let encoded = codec.encode(&audio).await?;
            let mut again = codec.decode(encoded, output.noise.seed()).await?;
            // A codec completes the last frame.
            let ratio = f64::from(codec.sample_rate()) / f64::from(audio.sample_rate);
            let frames = (audio.samples.len() / audio.channels.max(1)) as f64 * ratio;
            again.samples.truncate(frames.ceil() as usize * codec.channels());
            output.write(&again)
        }
    }
}

fn write(path: &Path, json: &Json) -> Result<(), Failure> {
    let unwritable = |source| Error::Io { path: path.into(), source };
    Ok(fs::write(path, json.to_string()).map_err(unwritable)?)
}

fn to_json(encoded: &EncodedAudio, is_chunked: bool) -> Json {
    match encoded {
        EncodedAudio::Features(features) => json!({ "features": features }),
        EncodedAudio::Codes(chunks) => {
            let codes: Vec<_> = chunks.iter().map(|chunk| &chunk.codebooks).collect();
            let scales: Vec<f32> = chunks.iter().filter_map(|chunk| chunk.scale).collect();
            let mut json = match codes.as_slice() {
                [only] if !is_chunked => json!({ "codes": only }),
                all => json!({ "codes": all }),
            };
            if !scales.is_empty() {
                json["scales"] = json!(scales);
            }
            json
        }
    }
}

/// Reads codes or features.
fn from_json(path: &Path) -> Result<EncodedAudio, Failure> {
    let wrong = |reason: String| Error::Checkpoint { file: path.into(), reason };
    let text =
        fs::read_to_string(path).map_err(|source| Error::Io { path: path.into(), source })?;
    let json: Json = serde_json::from_str(&text).map_err(|e| wrong(format!("is not JSON: {e}")))?;
    if let Some(features) = json.get("features") {
        let features = serde_json::from_value(features.clone());
        let features =
            features.map_err(|e| wrong(format!("`features` is not [frame][bin]: {e}")))?;
        return Ok(EncodedAudio::Features(features));
    }
    let codes =
        json.get("codes").ok_or_else(|| wrong("has neither `codes` nor `features`".into()))?;
    let chunks = serde_json::from_value::<Vec<Vec<Vec<u32>>>>(codes.clone())
        .or_else(|_| serde_json::from_value(codes.clone()).map(|codebooks| vec![codebooks]))
        .map_err(|_| {
            wrong("`codes` is neither [codebook][frame] nor [chunk][codebook][frame]".into())
        })?;
    let scales = json.get("scales").cloned().unwrap_or(Json::Null);
    let scales: Option<Vec<Option<f32>>> = serde_json::from_value(scales)
        .map_err(|_| wrong("`scales` is not a list of numbers".into()))?;
    let scale = |i: usize| scales.as_ref().and_then(|scales| scales.get(i).copied().flatten());
    let chunks = chunks.into_iter().enumerate();
    let chunks = chunks.map(|(i, codebooks)| Codes { codebooks, scale: scale(i) });
    Ok(EncodedAudio::Codes(chunks.collect()))
}
