//! `mynah generate`.

use crate::{
    Failure, INTERRUPTED, Outcome,
    answer::{End, follow, shown},
    media::{Media, messages, read, token_id},
    model::{self, Adapter, Draft, Sampling},
    terminal::{print, print_json, say_summary},
};
use clap::Args;
use mynah::{
    Answer, Event, FinishReason, GenerateOptions, Generation, Message, Model, OutputFormat, Prompt,
    Reasoning, RejectedToolCall, Summary, TemplateOptions, ToolCall, ToolChoice,
};
use serde::Serialize;
use serde_json::{Value, json};
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

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
    #[arg(long, value_name = "IDS", value_delimiter = ',', value_parser = token_id)]
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
    /// The messages of a conversation: a file with a JSON list of them
    #[arg(long, value_name = "FILE")]
    #[arg(conflicts_with_all = ["words", "prompt", "system", "raw", "tokens"])]
    messages: Option<PathBuf>,
    /// The tools that the model may call: a file with a JSON list of their definitions
    #[arg(long, value_name = "FILE", conflicts_with_all = ["raw", "tokens"])]
    tools: Option<PathBuf>,
    /// Whether the model calls tools: auto, none, required, or the name of the tool
    #[arg(long, value_name = "CHOICE", requires = "tools", value_parser = tool_choice)]
    tool_choice: Option<ToolChoice>,
    /// Write JSON that is valid under the JSON schema of this file
    #[arg(long, value_name = "FILE")]
    schema: Option<PathBuf>,
    /// Write text that matches this regular expression
    #[arg(long, value_name = "REGEX", conflicts_with = "schema")]
    regex: Option<String>,
    /// Write text of the Lark grammar of this file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["schema", "regex"])]
    grammar: Option<PathBuf>,
    /// How much the model thinks: off, minimal, low, medium, high, xhigh, max, or budget:N
    #[arg(long, value_name = "EFFORT", value_parser = str::parse::<Reasoning>)]
    reasoning: Option<Reasoning>,
    /// Print one line of JSON at the end
    #[arg(long)]
    json: bool,
    /// Print one line of JSON for each event of the answer
    #[arg(long, conflicts_with = "json")]
    events: bool,
    #[command(flatten)]
    media: Media,
    #[command(flatten)]
    adapter: Adapter,
    #[command(flatten)]
    draft: Draft,
    #[command(flatten)]
    sampling: Sampling,
}

/// The line that `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    tokens: Vec<u32>,
    text: &'a str,
    reasoning: &'a str,
    tool_calls: &'a [ToolCall],
    rejected_tool_calls: &'a [RejectedToolCall],
    logprobs: Vec<f32>,
    finish_reason: &'static str,
    prompt_tokens: usize,
    generated_tokens: usize,
    drafted_tokens: usize,
    accepted_tokens: usize,
    time_to_first_token: f64,
    prefill_tokens_per_second: f64,
    decode_tokens_per_second: f64,
    peak_memory: usize,
}

pub async fn run(arguments: Arguments) -> Outcome {
    let arguments = arguments.settle();
    let location = model::location(arguments.model.as_deref());
    let has_prompt = arguments.prompt.is_some() || arguments.messages.is_some();
    if arguments.tokens.is_none() && !has_prompt {
        return Err(Failure::Usage("there is no prompt; see mynah generate --help"));
    }
    let model = model::load(location, &arguments.adapter, Some(&arguments.draft)).await?;
    let mut options = arguments.sampling.options(&model).ignore_end(arguments.ignore_eos);
    options.reasoning = arguments.reasoning.unwrap_or(options.reasoning);
    options.tool_choice = arguments.tool_choice.clone().unwrap_or_default();
    options.output = arguments.output()?;
    let generation = arguments.start(&model, &options)?;
    let summary = if arguments.json {
        let (answer, summary) = follow(generation, |_| Ok(())).await?;
        print_json(&Report::new(&answer, &summary))?;
        summary
    } else if arguments.events {
        let (answer, summary) = follow(generation, print_event).await?;
        print_json(&json!({"finished": Report::new(&answer, &summary)}))?;
        summary
    } else {
        let (_, summary) = follow(generation, shown()).await?;
        print("\n")?;
        say_summary(
            &summary,
            match End::of(&summary, &options) {
                End::Usual => "",
                End::MaxTokens => "; the answer was cut: --max-tokens allows a longer one",
                End::ContextIsFull => "; the answer was cut: the context is full",
            },
        );
        summary
    };
    let cancelled = summary.finish_reason == FinishReason::Cancelled;
    Ok(ExitCode::from(if cancelled { INTERRUPTED } else { 0 }))
}

/// Prints an event of the answer as a line of JSON.
fn print_event(event: &Event) -> io::Result<()> {
    match event {
        Event::Token(token) if token.text.is_empty() => Ok(()),
        Event::Token(token) => print_json(&json!({"text": token.text})),
        Event::Text(text) => print_json(&json!({"text": text})),
        Event::Reasoning(text) => print_json(&json!({"reasoning": text})),
        Event::ToolCallDelta(delta) => print_json(&json!({"tool_call_delta": delta})),
        Event::ToolCall(call) => print_json(&json!({"tool_call": call})),
        Event::RejectedToolCall(call) => print_json(&json!({"rejected_tool_call": call})),
        _ => Ok(()),
    }
}

fn tool_choice(text: &str) -> Result<ToolChoice, String> {
    Ok(match text {
        "auto" => ToolChoice::Auto,
        "none" => ToolChoice::None,
        "required" => ToolChoice::Required,
        name => ToolChoice::Named(name.into()),
    })
}

/// The text of a file.
fn read_text(path: &Path) -> Result<String, Failure> {
    let text = fs::read_to_string(path);
    let named = |error: io::Error| format!("{}: {error}", path.display());
    Ok(text.map_err(|error| io::Error::new(error.kind(), named(error)))?)
}

impl Arguments {
    /// Tells the model and the prompt among the positional arguments.
    fn settle(mut self) -> Self {
        if !self.words.is_empty() {
            self.prompt = Some(std::mem::take(&mut self.words).join(" "));
        } else if self.tokens.is_none() && self.prompt.is_none() && self.messages.is_none() {
            self.prompt = self.model.take_if(|argument| !is_model(argument));
        }
        self
    }

    fn output(&self) -> Result<OutputFormat, Failure> {
        Ok(match (&self.schema, &self.regex, &self.grammar) {
            (Some(file), ..) => OutputFormat::Schema(read(file)?),
            (_, Some(regex), _) => OutputFormat::Regex(regex.clone()),
            (.., Some(file)) => OutputFormat::Lark(read_text(file)?),
            _ => OutputFormat::Text,
        })
    }

    fn start(&self, model: &Model, options: &GenerateOptions) -> Result<Generation, Failure> {
        let prompt = self.prompt()?.with_media(self.media.attachments()?);
        Ok(model.generate(prompt, options)?)
    }

    /// The prompt without the pictures of other arguments.
    fn prompt(&self) -> Result<Prompt, Failure> {
        if let Some(tokens) = &self.tokens {
            return Ok(Prompt::Tokens(tokens.clone()));
        }
        if let Some(file) = &self.messages {
            return self.chat(messages(file)?);
        }
        let text = model::text(self.prompt.clone().unwrap_or_default())?;
        Ok(match &self.system {
            Some(system) => self.chat(vec![Message::system(system), Message::user(&text)])?,
            None if self.control_tokens || self.tools.is_some() => {
                self.chat(vec![Message::user(&text)])?
            }
            None if self.raw => Prompt::Raw(text),
            None => Prompt::Text(text),
        })
    }

    fn chat(&self, messages: Vec<Message>) -> Result<Prompt, Failure> {
        let tools: Vec<Value> = self.tools.as_deref().map(read).transpose()?.unwrap_or_default();
        let options = TemplateOptions::default().sanitize_control_tokens(!self.control_tokens);
        Ok(Prompt::Chat(messages, options.tools(tools)))
    }
}

/// Whether a single argument is a model rather than a prompt.
fn is_model(argument: &str) -> bool {
    let begins_as_path = ["/", "./", "../", "~/"].iter().any(|start| argument.starts_with(start));
    let is_path = argument.contains('/') && !argument.contains(char::is_whitespace);
    begins_as_path || is_path || Path::new(argument).is_dir()
}

impl<'a> Report<'a> {
    fn new(answer: &'a Answer, summary: &Summary) -> Self {
        Report {
            tokens: answer.tokens.iter().map(|token| token.id).collect(),
            text: &answer.text,
            reasoning: &answer.reasoning,
            tool_calls: &answer.tool_calls,
            rejected_tool_calls: &answer.rejected_tool_calls,
            logprobs: answer.tokens.iter().map(|token| token.logprob).collect(),
            finish_reason: summary.finish_reason.name(),
            prompt_tokens: summary.prompt_tokens,
            generated_tokens: summary.generated_tokens,
            drafted_tokens: summary.drafted_tokens,
            accepted_tokens: summary.accepted_tokens,
            time_to_first_token: summary.time_to_first_token.as_secs_f64(),
            prefill_tokens_per_second: summary.prefill_rate,
            decode_tokens_per_second: summary.decode_rate,
            peak_memory: summary.peak_memory,
        }
    }
}
