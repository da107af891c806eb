//! `mynah speak`.

use crate::{
    Outcome,
    codec::NoiseOptions,
    model,
    terminal::{print_json, say},
};
use clap::Args;
use mynah::{
    Audio, AudioCodec, Script, SpeakOptions, Speech, SpeechModel, WavWriter, read_lexicon,
};
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
    /// The codec of a model that writes the codes of another repository's codec
    #[arg(long, value_name = "MODEL")]
    codec: Option<String>,
    /// Clone the voice of this recording
    #[arg(long, value_name = "FILE")]
    reference: Option<PathBuf>,
    /// What is said in the recording
    #[arg(long, value_name = "TEXT", requires = "reference")]
    reference_text: Option<String>,
    #[command(flatten)]
    sampling: SamplingOptions,
    #[command(flatten)]
    noise: NoiseOptions,
    /// The WAV file to write, of 32-bit floats
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// Options of models that sample tokens; the model's own where none is given.
#[derive(Args)]
struct SamplingOptions {
    /// Divides the logits of tokens; 0 is greedy decoding; default: the model's own
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Sample only the most probable tokens that make up this probability
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Sample from this number of the most probable tokens; 0 is no limit
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Divides the logits of recent tokens; 1 changes nothing
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    repetition_penalty: Option<f32>,
    /// The most tokens of a piece of the text
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
}

pub async fn run(arguments: Arguments) -> Outcome {
    let Arguments {
        model,
        text,
        phonemes,
        lexicon,
        voice,
        speed,
        codec,
        reference,
        reference_text,
        sampling,
        noise,
        output,
        json,
    } = arguments;
    let script = match (text, phonemes) {
        (_, Some(phonemes)) => Script::Phonemes(model::text(phonemes)?),
        (text, None) => Script::Text(model::text(text.unwrap_or_default())?),
    };
    let pronunciations = lexicon.map(read_lexicon).transpose()?.unwrap_or_default();
    let reference = reference.map(Audio::read).transpose()?;
    let mut model = SpeechModel::load(&*model).await?;
    if let Some(codec) = codec {
        model = model.with_codec(&AudioCodec::load(&*codec).await?);
    }
    let reference = reference
        .map(|audio| model.reference(&audio, reference_text.unwrap_or_default()))
        .transpose()?;
    let options = SpeakOptions {
        voices: voice,
        speed,
        seed: noise.seed(),
        pronunciations,
        reference,
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        top_k: sampling.top_k,
        repetition_penalty: sampling.repetition_penalty,
        max_tokens: sampling.max_tokens,
    };
    let (send, pieces) = mpsc::channel();
    let hear = move |piece: Speech| {
        send.send(piece).ok();
    };
    model.speak(script, options, hear).await?;
    let mut writer = WavWriter::create(&output, model.sample_rate(), 1)?;
    let (mut all, mut samples) = (Speech::default(), 0);
    for piece in pieces {
        writer.write(&piece.samples)?;
        samples += piece.samples.len();
        all.tokens.extend(piece.tokens);
        all.generated.extend(piece.generated);
        all.codes.resize(all.codes.len().max(piece.codes.len()), Vec::new());
        all.codes.iter_mut().zip(piece.codes).for_each(|(all, codes)| all.extend(codes));
        all.durations.extend(piece.durations);
        all.f0.extend(piece.f0);
        all.energy.extend(piece.energy);
    }
    writer.finish()?;
    if json {
        print_json(&json!({
            "sample_rate": model.sample_rate(), "samples": samples, "prompt_tokens": all.tokens,
            "tokens": all.generated, "codes": all.codes, "durations": all.durations, "f0": all.f0,
            "energy": all.energy,
        }))?;
    } else {
        let seconds = samples as f64 / f64::from(model.sample_rate());
        say(&format!("{}: {seconds:.2} s", output.display()));
    }
    Ok(ExitCode::SUCCESS)
}
