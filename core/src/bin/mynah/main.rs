//! The command `mynah`: the library in a terminal.
//!
//! Answers go to standard output and everything else to standard error, so that both can be piped.

mod align;
mod answer;
mod chat;
mod codec;
mod embed;
mod features;
mod generate;
mod hub;
mod input;
mod inspect;
mod interrupts;
mod media;
mod model;
mod preprocess;
mod progress;
mod rerank;
mod score;
mod speak;
mod terminal;
mod transcribe;
mod vad;

use clap::{ArgAction, Parser, Subcommand, error::ErrorKind};
use mynah::Error;
use std::{future::Future, io, process::ExitCode};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs language models on this machine.
#[derive(Parser)]
#[command(version, arg_required_else_help = true, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Log to standard error; repeat it for steps (-vv) and everything (-vvv), or set RUST_LOG
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
}

const EXIT_CODES: &str = "\
Exit codes: 0 success, 1 error, 2 wrong usage, 130 interrupted by Ctrl-C.";

#[derive(Subcommand)]
enum Command {
    /// Generate an answer to a prompt
    Generate(Box<generate::Arguments>),
    /// Chat with a model
    Chat(chat::Arguments),
    /// Write down what is said in an audio file
    Transcribe(transcribe::Arguments),
    /// Print the log-probability of each token of a text
    Score(score::Arguments),
    /// Turn texts into vectors
    Embed(embed::Arguments),
    /// Order documents by how well they fit a query
    Rerank(rerank::Arguments),
    /// Show what a model reads of pictures
    Preprocess(preprocess::Arguments),
    /// Find when the words of a text are said in a recording
    Align(align::Arguments),
    /// Speak a text
    Speak(speak::Arguments),
    /// Find speech, the end of a turn, or speakers in audio
    Vad(vad::Arguments),
    /// Encode audio to codes, and decode it
    #[command(subcommand)]
    Codec(codec::Action),
    /// Print what a speech model computes of an audio file before it writes text
    Features(features::Arguments),
    /// Show what a checkpoint is and what it needs, without reading its weights
    Inspect(inspect::Arguments),
    /// Download a model from a hub, or resume its download
    Download(hub::DownloadArguments),
    /// List the downloaded models
    Models(hub::ModelsArguments),
    /// Delete downloaded models
    Rm(hub::RemoveArguments),
    /// List the supported model types, by family
    Families(inspect::FamiliesArguments),
}

/// Why a command ends early.
enum Failure {
    Library(Error),
    Usage(&'static str),
    Io(io::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Library(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Io(error)
    }
}

type Outcome = Result<ExitCode, Failure>;

const USAGE: u8 = 2;
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    trace(cli.verbose);
    let outcome = match cli.command {
        Command::Generate(arguments) => block_on(generate::run(*arguments)),
        Command::Chat(arguments) => block_on(chat::run(arguments)),
        Command::Transcribe(arguments) => block_on(transcribe::run(arguments)),
        Command::Score(arguments) => block_on(score::run(arguments)),
        Command::Embed(arguments) => block_on(embed::run(arguments)),
        Command::Rerank(arguments) => block_on(rerank::run(arguments)),
        Command::Preprocess(arguments) => block_on(preprocess::run(arguments)),
        Command::Align(arguments) => block_on(align::run(arguments)),
        Command::Speak(arguments) => block_on(speak::run(arguments)),
        Command::Vad(arguments) => block_on(vad::run(arguments)),
        Command::Codec(action) => block_on(codec::run(action)),
        Command::Features(arguments) => block_on(features::run(arguments)),
        Command::Inspect(arguments) => block_on(inspect::run(arguments)),
        Command::Download(arguments) => block_on(hub::download(arguments)),
        Command::Models(arguments) => hub::models(arguments),
        Command::Rm(arguments) => hub::remove(arguments),
        Command::Families(arguments) => inspect::families(arguments),
    };
    outcome.unwrap_or_else(|failure| match failure {
        Failure::Library(error) => fail(1, &error.to_string()),
        Failure::Usage(message) => fail(USAGE, message),
        // The reader of the output has closed it.
        Failure::Io(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Failure::Io(error) => fail(1, &error.to_string()),
    })
}

fn block_on(command: impl Future<Output = Outcome>) -> Outcome {
    interrupts::listen()?;
    tokio::runtime::Builder::new_current_thread().build()?.block_on(command)
}

fn fail(code: u8, message: &str) -> ExitCode {
    terminal::say(&format!("mynah: {}", terminal::one_line(message)));
    ExitCode::from(code)
}

/// Prints clap's help in full, and its errors in one line.
fn refuse(error: &clap::Error) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        error.print().ok();
        return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
    }
    let text = error.to_string();
    let paragraphs = text.trim_start_matches("error: ").split("\n\n").map(str::trim);
    let told = |paragraph: &&str| {
        !paragraph.is_empty()
            && !["Usage:", "For more"].iter().any(|start| paragraph.starts_with(start))
    };
    let complaint = paragraphs.filter(told).collect::<Vec<_>>().join("; ");
    fail(USAGE, &complaint)
}

fn trace(verbose: u8) {
    let level = [LevelFilter::WARN, LevelFilter::INFO, LevelFilter::DEBUG, LevelFilter::TRACE];
    let level = level[usize::from(verbose).min(3)];
    let filter = EnvFilter::builder().with_default_directive(level.into()).from_env_lossy();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| terminal::Log).init();
}

#[test]
fn the_grammar_is_consistent() {
    <Cli as clap::CommandFactory>::command().debug_assert();
}
