//! `mynah speak`.

use crate::{
    Outcome,
    codec::NoiseOptions,
    model,
    terminal::{print_json, say},
};
use clap::Args;
use mynah::{Script, SpeakOptions, Speech, SpeechModel, WavWriter, read_lexicon};
use serde_json::json;
use std::{path::PathBuf, process::ExitCode, sync::mpsc};

#[derive(Args)]
pub struct Arguments {
    /// A directory or a hub repository, org/name[@revision]
    model: String,
    /// Speak this text; `-` reads it from standard input
    #[arg(long, required_unless_present = "phonemes", conflicts_with = "phonemes")]
    text: Option<String>,
    /// Speak these phonemes, in the alphabet of the model
    #[arg(long)]
    phonemes: Option<String>,
    /// Pronunciations of words of the text, in the form of eSpeak NG's dictionaries
    #[arg(long, value_name = "FILE")]
    lexicon: Option<PathBuf>,
    /// The voice, or several to be averaged; default: the model's first one
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    voice: Vec<String>,
    /// Speak faster (more than 1) or slower
    #[arg(long, value_name = "S", default_value_t = 1.0, allow_negative_numbers = true)]
    speed: f32,
    /// Temperature of models that sample tokens; no supported model does yet
    #[arg(long, value_name = "T", default_value_t = 0.0, hide = true)]
    temperature: f32,
    #[command(flatten)]
    noise: NoiseOptions,
    /// The WAV file to write, of 32-bit floats
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

pub async fn run(arguments: Arguments) -> Outcome {
    let Arguments {
        model,
        text,
        phonemes,
        lexicon,
        voice,
        speed,
        noise,
        output,
        json,
        temperature: _,
    } = arguments;
    let script = match (text, phonemes) {
        (_, Some(phonemes)) => Script::Phonemes(model::text(phonemes)?),
        (text, None) => Script::Text(model::text(text.unwrap_or_default())?),
    };
    let pronunciations = lexicon.map(read_lexicon).transpose()?.unwrap_or_default();
    let model = SpeechModel::load(&*model).await?;
    let options = SpeakOptions { voices: voice, speed, seed: noise.seed(), pronunciations };
    let (send, pieces) = mpsc::channel();
    let hear = move |piece: Speech| {
        send.send(piece).ok();
    };
    model.speak(script, options, hear).await?;
    let mut writer = WavWriter::create(&output, model.sample_rate(), 1)?;
    let (mut tokens, mut durations, mut f0, mut energy) = (vec![], vec![], vec![], vec![]);
    let mut samples = 0;
    for piece in pieces {
        writer.write(&piece.samples)?;
        samples += piece.samples.len();
        tokens.extend(piece.tokens);
        durations.extend(piece.durations);
        f0.extend(piece.f0);
        energy.extend(piece.energy);
    }
    writer.finish()?;
    if json {
        print_json(&json!({
            "sample_rate": model.sample_rate(), "samples": samples, "prompt_tokens": tokens,
            "durations": durations, "f0": f0, "energy": energy,
        }))?;
    } else {
        let seconds = samples as f64 / f64::from(model.sample_rate());
        say(&format!("{}: {seconds:.2} s", output.display()));
    }
    Ok(ExitCode::SUCCESS)
}
