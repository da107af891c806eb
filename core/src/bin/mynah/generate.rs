//! `mynah generate`.

use crate::{
    Failure, INTERRUPTED, Outcome,
    answer::{Answer, End, follow},
    model::{self, Adapter, Sampling},
    terminal::{print, print_json, say_summary},
};
use clap::Args;
use mynah::{FinishReason, GenerateOptions, Generation, Message, Model, Prompt, TemplateOptions};
use serde::Serialize;
use std::{path::Path, process::ExitCode};

const EXAMPLES: &str = "\
A single argument is the model if it is a directory or looks like a path or a repository: it
starts with `/`, `./`, `../` or `~/`, or contains a `/` and no space. Otherwise it is a prompt for
the demo model. Of several arguments, the first is the model. With --prompt or --tokens, an
argument is always the model.

The prompt is a user's message, rendered with the chat template of the checkpoint. With --raw, or
if the checkpoint has no chat template, the model continues the text as it is.

Examples:
  mynah generate \"What is 3 + 4?\"
  mynah generate org/name \"Why is the sky blue?\" --max-tokens 100
  mynah generate path/to/checkpoint - < question.txt
  mynah generate path/to/checkpoint --tokens 5,9,2 --json";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// A directory or a hub repository, org/name[@revision]; default: the embedded demo model
    model: Option<String>,
    /// The prompt; `-` reads it from standard input
    #[arg(value_name = "PROMPT")]
    words: Vec<String>,
    /// The prompt, if it could be mistaken for a model
    #[arg(long, value_name = "TEXT", conflicts_with = "words")]
    prompt: Option<String>,
    /// Continue these token ids
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    #[arg(conflicts_with_all = ["words", "prompt", "system", "raw"])]
    tokens: Option<Vec<u32>>,
    /// The system prompt
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// Continue the prompt as raw text, without the chat template
    #[arg(long)]
    raw: bool,
    /// Give control tokens in the prompt their meaning, instead of reading them as plain text
    #[arg(long, conflicts_with_all = ["raw", "tokens"])]
    control_tokens: bool,
    /// Continue after the end-of-text token
    #[arg(long)]
    ignore_eos: bool,
    /// Print one line of JSON at the end
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    adapter: Adapter,
    #[command(flatten)]
    sampling: Sampling,
}

/// The line that `--json` prints.
#[derive(Serialize)]
struct Report {
    tokens: Vec<u32>,
    text: String,
    logprobs: Vec<f32>,
    finish_reason: &'static str,
    prompt_tokens: usize,
    generated_tokens: usize,
    time_to_first_token: f64,
    prefill_tokens_per_second: f64,
    decode_tokens_per_second: f64,
    peak_memory: usize,
}

pub async fn run(arguments: Arguments) -> Outcome {
    let arguments = arguments.settle();
    let location = model::location(arguments.model.as_deref());
    if arguments.tokens.is_none() && arguments.prompt.is_none() {
        return Err(Failure::Usage("there is no prompt; see mynah generate --help"));
    }
    let model = model::load(location, &arguments.adapter).await?;
    let options = arguments.sampling.options(&model).ignore_end(arguments.ignore_eos);
    let generation = arguments.start(&model, &options)?;
    let answer = if arguments.json {
        let answer = follow(generation, |_| Ok(())).await?;
        print_json(&Report::new(&answer))?;
        answer
    } else {
        let answer = follow(generation, print).await?;
        print("\n")?;
        say_summary(
            &answer.summary,
            match answer.end(&options) {
                End::Usual => "",
                End::MaxTokens => "; the answer was cut: --max-tokens allows a longer one",
                End::ContextIsFull => "; the answer was cut: the context is full",
            },
        );
        answer
    };
    let cancelled = answer.summary.finish_reason == FinishReason::Cancelled;
    Ok(ExitCode::from(if cancelled { INTERRUPTED } else { 0 }))
}

impl Arguments {
    /// Tells the model and the prompt among the positional arguments.
    fn settle(mut self) -> Self {
        if !self.words.is_empty() {
            self.prompt = Some(std::mem::take(&mut self.words).join(" "));
        } else if self.tokens.is_none() && self.prompt.is_none() {
            self.prompt = self.model.take_if(|argument| !is_model(argument));
        }
        self
    }

    fn start(&self, model: &Model, options: &GenerateOptions) -> Result<Generation, Failure> {
        if let Some(tokens) = &self.tokens {
            return Ok(model.generate(Prompt::Tokens(tokens.clone()), options)?);
        }
        let text = model::text(self.prompt.clone().unwrap_or_default())?;
        let prompt = match &self.system {
            Some(system) => self.chat(vec![Message::system(system), Message::user(&text)]),
            None if self.control_tokens => self.chat(vec![Message::user(&text)]),
            None if self.raw => Prompt::Raw(text),
            None => Prompt::Text(text),
        };
        Ok(model.generate(prompt, options)?)
    }

    fn chat(&self, messages: Vec<Message>) -> Prompt {
        let options = TemplateOptions::default().sanitize_control_tokens(!self.control_tokens);
        Prompt::Chat(messages, options)
    }
}

/// Whether a single argument is a model rather than a prompt.
fn is_model(argument: &str) -> bool {
    let begins_as_path = ["/", "./", "../", "~/"].iter().any(|start| argument.starts_with(start));
    let is_path = argument.contains('/') && !argument.contains(char::is_whitespace);
    begins_as_path || is_path || Path::new(argument).is_dir()
}

impl Report {
    fn new(answer: &Answer) -> Self {
        let summary = &answer.summary;
        Report {
            tokens: answer.tokens.iter().map(|token| token.id).collect(),
            text: answer.text.clone(),
            logprobs: answer.tokens.iter().map(|token| token.logprob).collect(),
            finish_reason: summary.finish_reason.name(),
            prompt_tokens: summary.prompt_tokens,
            generated_tokens: summary.generated_tokens,
            time_to_first_token: summary.time_to_first_token.as_secs_f64(),
            prefill_tokens_per_second: summary.prefill_rate,
            decode_tokens_per_second: summary.decode_rate,
            peak_memory: summary.peak_memory,
        }
    }
}
