//! `mynah score`.

use crate::{
    Outcome,
    media::{Media, messages, token_id},
    model::{self, Adapter},
    terminal::{print, print_json},
};
use clap::Args;
use mynah::{Location, Prompt, Score, TemplateOptions, Tokenizer, TranscribeOptions};
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

const MEANING: &str = "\
Log-probabilities are natural logarithms, conditioned on all tokens before. The last column of a
line shows the most probable tokens after it. A text is scored as it is, without the chat template.";

#[derive(Args)]
#[command(after_help = MEANING)]
pub struct Arguments {
    /// A directory or a hub repository, org/name[@revision]; default: the embedded demo model
    model: Option<String>,
    /// Score these token ids
    #[arg(long, value_name = "IDS", value_delimiter = ',', value_parser = token_id)]
    #[arg(required_unless_present_any = ["text", "messages"])]
    #[arg(conflicts_with_all = ["text", "messages"])]
    tokens: Option<Vec<u32>>,
    /// Score this text; `-` reads it from standard input
    #[arg(long, conflicts_with = "messages")]
    text: Option<String>,
    /// Score a conversation: a file with a JSON list of messages
    #[arg(long, value_name = "FILE")]
    messages: Option<PathBuf>,
    /// Score the tokens as a transcript of this audio file, with a speech model
    #[arg(long, value_name = "FILE", requires = "tokens", requires = "model")]
    audio: Option<PathBuf>,
    /// The language of the audio, such as en; default: detected
    #[arg(long, requires = "audio")]
    language: Option<String>,
    /// The number of most probable next tokens to show
    #[arg(long, value_name = "K", default_value_t = 8)]
    top: usize,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    media: Media,
    #[command(flatten)]
    adapter: Adapter,
}

/// The line that `--json` prints of a transcript; `top[i]` is the distribution of token `i`.
#[derive(Serialize)]
struct AudioReport<'a> {
    tokens: &'a [u32],
    prompt_tokens: usize,
    logprobs: &'a [Option<f32>],
    top: &'a [Vec<(u32, f32)>],
}

/// The line that `--json` prints; `top[i]` is the distribution after token `i`.
#[derive(Serialize)]
struct Report<'a> {
    tokens: &'a [u32],
    logprobs: &'a [Option<f32>],
    top: &'a [Vec<(u32, f32)>],
    prompt_tokens: usize,
}

pub async fn run(arguments: Arguments) -> Outcome {
    if let Some(audio) = &arguments.audio {
        return score_audio(&arguments, audio).await;
    }
    let location = model::location(arguments.model.as_deref());
    let prompt = match (arguments.tokens, arguments.messages) {
        (Some(tokens), _) => Prompt::Tokens(tokens),
        (None, Some(file)) => Prompt::Chat(messages(&file)?, TemplateOptions::default()),
        (None, None) => Prompt::Raw(model::text(arguments.text.unwrap_or_default())?),
    };
    let prompt = prompt.with_media(arguments.media.attachments()?);
    let model = model::load(location, &arguments.adapter, None).await?;
    let (tokens, score) = model.score(prompt, arguments.top).await?;
    if arguments.json {
        let Score { logprobs, top } = &score;
        let report = Report { tokens: &tokens, logprobs, top, prompt_tokens: tokens.len() };
        print_json(&report)?;
    } else {
        print(&table(model.tokenizer().ok(), &tokens, &score.logprobs, &score.top))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn score_audio(arguments: &Arguments, audio: &Path) -> Outcome {
    let name = arguments.model.as_deref().unwrap_or_default();
    let model = model::load_audio(Location::from(name)).await?;
    let tokens = arguments.tokens.as_deref().unwrap_or_default();
    let options = TranscribeOptions::default().language(arguments.language.clone());
    let (prompt, score) = model.score(audio, tokens, arguments.top, &options).await?;
    if arguments.json {
        print_json(&AudioReport {
            tokens,
            prompt_tokens: prompt,
            logprobs: &score.logprobs,
            top: &score.top,
        })?;
    } else {
        print(&table(model.tokenizer().ok(), tokens, &score.logprobs, &score.top))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The scores for people.
fn table(
    tokenizer: Option<&Tokenizer>,
    tokens: &[u32],
    logprobs: &[Option<f32>],
    top: &[Vec<(u32, f32)>],
) -> String {
    let text = |id: u32| {
        let text = tokenizer.and_then(|tokenizer| tokenizer.decode(&[id], false).ok());
        text.map_or_else(|| format!("#{id}"), |text| format!("{text:?}"))
    };
    let mut table = format!("{:>5} {:>7}  {:<16} {:>9}  next\n", "", "id", "token", "logprob");
    for (i, &id) in tokens.iter().enumerate() {
        let logprob = logprobs[i].map_or_else(String::new, |p| format!("{p:.4}"));
        let next = top[i].iter().map(|(id, p)| format!("{} {:.1} %", text(*id), 100.0 * p.exp()));
        let next = next.collect::<Vec<_>>().join("  ");
        table += &format!("{i:>5} {id:>7}  {:<16} {logprob:>9}  {next}\n", text(id));
    }
    let scored: Vec<f64> = logprobs.iter().flatten().map(|p| f64::from(*p)).collect();
    if !scored.is_empty() {
        let mean = scored.iter().sum::<f64>() / scored.len() as f64;
        table += &format!("perplexity {:.4} over {} tokens\n", (-mean).exp(), scored.len());
    }
    table
}
