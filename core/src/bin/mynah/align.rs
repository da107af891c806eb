//! `mynah align`.

use crate::{
    Outcome, model,
    terminal::{print, print_json},
};
use clap::Args;
use mynah::{AlignedWord, AudioModel};
use serde_json::json;
use std::{path::PathBuf, process::ExitCode};

#[derive(Args)]
pub struct Arguments {
    /// A directory or a hub repository, org/name[@revision]
    model: String,
    /// The audio: WAV, FLAC, MP3, M4A or Ogg
    #[arg(long, value_name = "FILE")]
    audio: PathBuf,
    /// What is said; `-` reads it from standard input
    #[arg(long)]
    text: String,
    /// The language that is spoken, by its code or its English name; default: English
    #[arg(long, value_name = "LANGUAGE")]
    language: Option<String>,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

pub async fn run(arguments: Arguments) -> Outcome {
    let Arguments { model, audio, text, language, json } = arguments;
    let text = model::text(text)?;
    let model = AudioModel::load(&*model).await?;
    let words = model.align(audio, &text, language.as_deref()).await?;
    if json {
        let word =
            |word: &AlignedWord| json!({"word": word.word, "start": word.start, "end": word.end});
        print_json(&json!({"words": words.iter().map(word).collect::<Vec<_>>()}))?;
    } else {
        let line =
            |word: &AlignedWord| format!("{:8.3} {:8.3} {}\n", word.start, word.end, word.word);
        print(&words.iter().map(line).collect::<String>())?;
    }
    Ok(ExitCode::SUCCESS)
}
