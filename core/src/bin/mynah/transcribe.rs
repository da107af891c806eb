//! `mynah transcribe`.

use crate::{
    Outcome, model,
    progress::Progress,
    terminal::{harmless, print, print_json},
};
use clap::{Args, ValueEnum};
use mynah::{
    Location, Segment, Task, Timestamps, TranscribeOptions, Transcript, TranscriptionEvent, Word,
};
use serde::Serialize;
use std::{path::PathBuf, process::ExitCode};

#[derive(Args)]
pub struct Arguments {
    /// A directory or a hub repository, org/name[@revision]
    model: String,
    /// The audio file: WAV, AIFF, FLAC, MP3, M4A or Ogg Vorbis
    #[arg(long, value_name = "FILE")]
    audio: PathBuf,
    /// The language that is spoken, such as en; default: detected
    #[arg(long)]
    language: Option<String>,
    /// What to write
    #[arg(long, value_enum, default_value = "transcribe")]
    task: TaskArgument,
    /// The times to print
    #[arg(long, value_enum, default_value = "none")]
    timestamps: TimestampsArgument,
    /// Text before the audio: names and spellings to prefer
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Write numbers as digits, where the model has the choice
    #[arg(long)]
    itn: bool,
    /// Temperature, without other attempts; default: 0, then higher until the text is plausible
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Maximum number of tokens of a window
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum TaskArgument {
    /// What is said, in its language
    Transcribe,
    /// What is said, in English
    Translate,
}

#[derive(Clone, Copy, ValueEnum)]
enum TimestampsArgument {
    /// None
    None,
    /// Those of segments
    Segment,
    /// Those of words, too
    Word,
}

/// The line that `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    text: &'a str,
    language: Option<&'a str>,
    tokens: &'a [u32],
    #[serde(skip_serializing_if = "<[f32]>::is_empty")]
    logprobs: &'a [f32],
    segments: Vec<SegmentReport<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    emotion: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'a str>,
}

#[derive(Serialize)]
struct SegmentReport<'a> {
    start: f64,
    end: f64,
    text: &'a str,
    tokens: &'a [u32],
    avg_logprob: f32,
    compression_ratio: f32,
    no_speech_prob: f32,
    temperature: f32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    words: Vec<WordReport<'a>>,
}

#[derive(Serialize)]
struct WordReport<'a> {
    word: &'a str,
    start: f64,
    end: f64,
    probability: f32,
}

pub async fn run(arguments: Arguments) -> Outcome {
    let model = model::load_audio(Location::from(arguments.model.as_str())).await?;
    let timestamps = arguments.timestamps;
    let options = arguments.options();
    let mut transcription = model.transcribe(arguments.audio, &options)?;
    let mut progress = Progress::default();
    while let Some(event) = transcription.next().await {
        match event? {
            TranscriptionEvent::Segments { segments, share } => {
                progress.show_share("transcribing", share);
                if !arguments.json && !matches!(timestamps, TimestampsArgument::None) {
                    segments.iter().try_for_each(|segment| print(&lines(segment, timestamps)))?;
                }
            }
            TranscriptionEvent::Finished(transcript) if arguments.json => {
                print_json(&Report::of(&transcript))?;
            }
            TranscriptionEvent::Finished(transcript) => {
                if matches!(timestamps, TimestampsArgument::None) {
                    print(&format!("{}\n", harmless(&transcript.text)))?;
                }
            }
            _ => {}
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl Arguments {
    fn options(&self) -> TranscribeOptions {
        let mut options = TranscribeOptions::default()
            .language(self.language.clone())
            .prompt(self.prompt.clone())
            .max_tokens(self.max_tokens)
            .inverse_text_normalization(self.itn)
            .task(match self.task {
                TaskArgument::Transcribe => Task::Transcribe,
                TaskArgument::Translate => Task::Translate,
            })
            .timestamps(match self.timestamps {
                TimestampsArgument::None => Timestamps::None,
                TimestampsArgument::Segment => Timestamps::Segments,
                TimestampsArgument::Word => Timestamps::Words,
            });
        if let Some(temperature) = self.temperature {
            options = options.temperatures(vec![temperature]);
        }
        options
    }
}

/// A segment for people: its times and its text, or a line for each of its words.
fn lines(segment: &Segment, timestamps: TimestampsArgument) -> String {
    let line = |start, end, text: &str| {
        format!("[{} - {}] {}\n", time(start), time(end), harmless(text.trim()))
    };
    match timestamps {
        TimestampsArgument::Word => {
            segment.words.iter().map(|word| line(word.start, word.end, &word.word)).collect()
        }
        _ => line(segment.start, segment.end, &segment.text),
    }
}

/// `minutes:seconds`.
fn time(seconds: f64) -> String {
    format!("{:02}:{:05.2}", (seconds / 60.0) as u64, seconds % 60.0)
}

impl<'a> Report<'a> {
    fn of(transcript: &'a Transcript) -> Self {
        Report {
            text: &transcript.text,
            language: transcript.language.as_deref(),
            tokens: &transcript.tokens,
            logprobs: &transcript.logprobs,
            segments: transcript.segments.iter().map(SegmentReport::of).collect(),
            emotion: transcript.emotion.as_deref(),
            event: transcript.event.as_deref(),
        }
    }
}

impl<'a> SegmentReport<'a> {
    fn of(segment: &'a Segment) -> Self {
        let word = |word: &'a Word| WordReport {
            word: &word.word,
            start: word.start,
            end: word.end,
            probability: word.probability,
        };
        SegmentReport {
            start: segment.start,
            end: segment.end,
            text: &segment.text,
            tokens: &segment.tokens,
            avg_logprob: segment.avg_logprob,
            compression_ratio: segment.compression_ratio,
            no_speech_prob: segment.no_speech_probability,
            temperature: segment.temperature,
            words: segment.words.iter().map(word).collect(),
        }
    }
}
