//! `mynah chat`.

use crate::{
    Outcome,
    answer::{End, follow, shown},
    input::{Entry, Input},
    media::Media,
    model::{self, Adapter, Draft, Sampling},
    terminal::{print, say, say_summary},
};
use clap::Args;
use mynah::{Error, Message, SessionOptions};
use std::process::ExitCode;

const COMMANDS: &str = "\
/help   lists this
/clear  starts a new conversation
/quit   leaves, as Ctrl-D does

Ctrl-C stops an answer. Alt-Enter begins a new line, and so does Enter in a message that starts
with \"\"\", up to the next \"\"\". A line that starts with a space is never a command.
";

const INPUT: &str = "\
If standard input is not a terminal, each of its lines is a message or a command.";

#[derive(Args)]
#[command(after_help = format!("{COMMANDS}{INPUT}"))]
pub struct Arguments {
    /// A directory or a hub repository, org/name[@revision]; default: the embedded demo model
    model: Option<String>,
    /// The system prompt
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Pictures and clips of the first message
    #[command(flatten)]
    media: Media,
    #[command(flatten)]
    adapter: Adapter,
    #[command(flatten)]
    draft: Draft,
    #[command(flatten)]
    sampling: Sampling,
}

pub async fn run(arguments: Arguments) -> Outcome {
    let location = model::location(arguments.model.as_deref());
    let model = model::load(location, &arguments.adapter, Some(&arguments.draft)).await?;
    let options = arguments.sampling.options(&model);
    options.check(model.info().vocabulary)?;
    let beginning: Vec<_> = arguments.system.as_deref().map(Message::system).into_iter().collect();
    let mut messages = beginning.clone();
    let mut media = arguments.media.attachments()?;
    let session = model.session(SessionOptions::default());
    let mut input = Input::open()?;
    while let Some(entry) = input.next()? {
        let text = match entry {
            Entry::Message(text) => text,
            Entry::Command(name) => {
                match name.as_str() {
                    "help" | "?" => print(COMMANDS)?,
                    "clear" => {
                        messages.clone_from(&beginning);
                        say("a new conversation begins");
                    }
                    "quit" | "exit" => break,
                    _ => say(&format!("mynah: there is no command /{name}; /help lists them")),
                }
                continue;
            }
        };
        messages.push(match std::mem::take(&mut media) {
            media if media.is_empty() => Message::user(&text),
            media => Message::with_media(media, &text),
        });
        let generation = match session.generate(messages.clone(), &options) {
            Err(error @ Error::ContextOverflow { .. }) => {
                messages.pop();
                say(&format!("mynah: {error}; /clear starts a new conversation"));
                continue;
            }
            generation => generation?,
        };
        let (answer, summary) = follow(generation, shown()).await?;
        print("\n")?;
        say_summary(
            &summary,
            match End::of(&summary, &options) {
                End::Usual => "",
                End::MaxTokens => "; the answer was cut: --max-tokens allows longer ones",
                End::ContextIsFull => {
                    "; the answer was cut: the context is full, and /clear starts a new conversation"
                }
            },
        );
        messages.push(answer.message());
    }
    Ok(ExitCode::SUCCESS)
}
