//! The command `mynah`: the library in a terminal.
//!
//! Answers go to standard output and everything else to standard error, so that both can be piped.

mod answer;
mod chat;
mod generate;
mod hub;
mod inspect;
mod model;
mod score;
mod terminal;

use clap::{ArgAction, Parser, Subcommand, error::ErrorKind};
use mynah::Error;
use std::{future::Future, io, process::ExitCode};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

/// Runs language models on this machine.
#[derive(Parser)]
#[command(version, arg_required_else_help = true, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Say on standard error what happens; twice for details, or as RUST_LOG says
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
}

const EXIT_CODES: &str = "\
Exit codes: 0 success, 1 error, 2 wrong usage, 130 interrupted by Ctrl-C.";

#[derive(Subcommand)]
enum Command {
    /// Continue a prompt
    Generate(generate::Arguments),
    /// Talk to a model
    Chat(chat::Arguments),
    /// Say how likely a model finds a text, token by token
    Score(score::Arguments),
    /// Say what a checkpoint is without reading its weights
    Inspect(inspect::Arguments),
    /// Fetch a model from a hub, or what is missing of it
    Download(hub::DownloadArguments),
    /// List the models that are on disk
    Models(hub::ModelsArguments),
    /// Delete models from the disk
    Rm(hub::RemoveArguments),
    /// List the model types that are supported, by family
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
        Command::Generate(arguments) => block_on(generate::run(arguments)),
        Command::Chat(arguments) => block_on(chat::run(arguments)),
        Command::Score(arguments) => block_on(score::run(arguments)),
        Command::Inspect(arguments) => block_on(inspect::run(arguments)),
        Command::Download(arguments) => block_on(hub::download(arguments)),
        Command::Models(arguments) => hub::models(arguments),
        Command::Rm(arguments) => hub::remove(arguments),
        Command::Families(arguments) => inspect::families(arguments),
    };
    outcome.unwrap_or_else(|failure| match failure {
        Failure::Library(error) => fail(1, &error.to_string()),
        Failure::Usage(message) => fail(USAGE, message),
        // Whoever reads our output has seen enough.
        Failure::Io(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Failure::Io(error) => fail(1, &error.to_string()),
    })
}

fn block_on(command: impl Future<Output = Outcome>) -> Outcome {
    tokio::runtime::Builder::new_current_thread().build()?.block_on(command)
}

fn fail(code: u8, message: &str) -> ExitCode {
    terminal::say(&format!("mynah: {}", terminal::one_line(message)));
    ExitCode::from(code)
}

/// What clap has to say: the help in full, a complaint in one line.
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
    let level = [LevelFilter::WARN, LevelFilter::DEBUG, LevelFilter::TRACE];
    let level = level[usize::from(verbose).min(2)];
    let filter = EnvFilter::builder().with_default_directive(level.into()).from_env_lossy();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
}

#[test]
fn the_grammar_is_consistent() {
    <Cli as clap::CommandFactory>::command().debug_assert();
}
