//! `mynah chat`.

use crate::{
    Failure, Outcome,
    answer::{follow, shown},
    model::{self, Adapter, Sampling},
    terminal::{Interrupts, exit_interrupted, one_line, say, say_summary},
};
use clap::Args;
use mynah::{Error, Message, SessionOptions};
use rustyline::{DefaultEditor, error::ReadlineError};
use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

const COMMANDS: &str = "\
/clear starts a new conversation, /quit or Ctrl-D leaves, Ctrl-C stops an answer.
If standard input is not a terminal, each of its lines is a message.";

#[derive(Args)]
#[command(after_help = COMMANDS)]
pub struct Arguments {
    /// A directory or a hub repository, org/name[@revision]; default: the embedded demo model
    model: Option<String>,
    /// The system prompt
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    adapter: Adapter,
    #[command(flatten)]
    sampling: Sampling,
}

pub async fn run(arguments: Arguments) -> Outcome {
    let location = model::location(arguments.model.as_deref());
    let model = model::load(location, &arguments.adapter).await?;
    let options = arguments.sampling.options(&model);
    options.check(model.info().vocabulary)?;
    let beginning: Vec<_> = arguments.system.as_deref().map(Message::system).into_iter().collect();
    let mut messages = beginning.clone();
    let session = model.session(SessionOptions::default());
    let mut input = Input::open()?;
    let interrupts = input.interrupts()?;
    while let Some(line) = input.next()? {
        match line.trim() {
            "" => continue,
            "/quit" => break,
            "/clear" => messages.clone_from(&beginning),
            text => {
                messages.push(Message::user(text));
                let generation = match session.generate(messages.clone(), &options) {
                    Err(error @ Error::ContextOverflow { .. }) => {
                        messages.pop();
                        say(&format!("mynah: {error}; /clear starts a new conversation"));
                        continue;
                    }
                    generation => generation?,
                };
                let answer = follow(generation, &interrupts, shown(print)).await?;
                print("\n")?;
                answer.summary.iter().for_each(say_summary);
                messages.push(answer.message());
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print(text: &str) -> io::Result<()> {
    io::stdout().write_all(text.as_bytes())?;
    io::stdout().flush()
}

/// The source of the user's lines.
enum Input {
    Editor(Box<DefaultEditor>),
    Lines(io::Lines<io::StdinLock<'static>>),
}

impl Input {
    fn open() -> Result<Self, Failure> {
        if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
            return Ok(Input::Lines(io::stdin().lines()));
        }
        say(&one_line(COMMANDS.lines().next().unwrap_or_default()));
        Ok(Input::Editor(Box::new(DefaultEditor::new().map_err(io::Error::other)?)))
    }

    /// Between answers, Ctrl-C is a key of the editor; without an editor it ends the program.
    fn interrupts(&self) -> io::Result<Interrupts> {
        Interrupts::listen(match self {
            Input::Editor(_) => || {},
            Input::Lines(_) => exit_interrupted,
        })
    }

    fn next(&mut self) -> Result<Option<String>, Failure> {
        match self {
            Input::Lines(lines) => Ok(lines.next().transpose()?),
            Input::Editor(editor) => loop {
                match editor.readline("> ") {
                    Ok(line) => {
                        editor.add_history_entry(&line).ok();
                        return Ok(Some(line));
                    }
                    Err(ReadlineError::Interrupted) => {}
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(ReadlineError::Io(error)) => return Err(error.into()),
                    Err(error) => return Err(io::Error::other(error).into()),
                }
            },
        }
    }
}
