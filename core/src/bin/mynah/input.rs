//! The user's lines in a chat: from an editor on a terminal, or from standard input.

use crate::{Failure, interrupts, terminal::say};
use rustyline::{
    Cmd, Config, Editor, Helper, KeyEvent,
    completion::Completer,
    error::ReadlineError,
    highlight::Highlighter,
    hint::Hinter,
    history::FileHistory,
    validate::{ValidationContext, ValidationResult, Validator},
};
use std::{
    env, fs,
    io::{self, IsTerminal},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// What the user has typed.
#[derive(Debug, PartialEq, Eq)]
pub enum Entry {
    Message(String),
    /// A command, without its slash.
    Command(String),
}

/// Where the user's lines come from.
pub enum Input {
    Editor { editor: Box<Editor<Fences, FileHistory>>, history: Option<PathBuf> },
    Lines(io::Lines<io::StdinLock<'static>>),
}

impl Input {
    pub fn open() -> Result<Self, Failure> {
        if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
            return Ok(Input::Lines(io::stdin().lines()));
        }
        const ENTRIES: usize = 1000;
        let config = Config::builder().max_history_size(ENTRIES).map_err(failure)?.build();
        let mut editor = Box::new(Editor::with_config(config).map_err(failure)?);
        editor.set_helper(Some(Fences));
        editor.bind_sequence(KeyEvent::alt('\r'), Cmd::Newline);
        let history = history_file();
        if let Some(file) = &history {
            // There is none yet at the first time.
            editor.load_history(file).ok();
        }
        interrupts::stay();
        say("/help lists the commands");
        Ok(Input::Editor { editor, history })
    }

    /// The next message or command; `None` at the end.
    pub fn next(&mut self) -> Result<Option<Entry>, Failure> {
        loop {
            let Some(text) = self.read()? else { return Ok(None) };
            if let Some(entry) = Entry::of(&text) {
                return Ok(Some(entry));
            }
        }
    }

    /// The next line, or lines between fences.
    fn read(&mut self) -> Result<Option<String>, Failure> {
        match self {
            Input::Lines(lines) => {
                let Some(mut text) = lines.next().transpose()? else { return Ok(None) };
                while is_open(&text) {
                    let Some(line) = lines.next().transpose()? else { break };
                    text += "\n";
                    text += &line;
                }
                Ok(Some(text))
            }
            Input::Editor { editor, history } => loop {
                match editor.readline("> ") {
                    Ok(text) => {
                        editor.add_history_entry(&text).map_err(failure)?;
                        if let Some(file) = history {
                            // A chat goes on where the file cannot be written.
                            editor.append_history(file).ok();
                        }
                        return Ok(Some(text));
                    }
                    Err(ReadlineError::Interrupted) => say("Ctrl-D or /quit leaves"),
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(error) => return Err(failure(error)),
                }
            },
        }
    }
}

fn failure(error: ReadlineError) -> Failure {
    match error {
        ReadlineError::Io(error) => error.into(),
        error => io::Error::other(error).into(),
    }
}

/// The mark around a message of several lines.
const FENCE: &str = "\"\"\"";

/// Whether a fence is open at the end of a text.
fn is_open(text: &str) -> bool {
    let inside = text.trim_start().strip_prefix(FENCE);
    inside.is_some_and(|inside| !inside.trim_end().ends_with(FENCE))
}

impl Entry {
    /// The entry that a text is; `None` if there is nothing in it.
    fn of(text: &str) -> Option<Self> {
        let entry = match text.trim().strip_prefix(FENCE) {
            Some(inside) => {
                Entry::Message(inside.strip_suffix(FENCE).unwrap_or(inside).trim().into())
            }
            None => match command(text) {
                Some(name) => Entry::Command(name.into()),
                None => Entry::Message(text.trim().into()),
            },
        };
        Some(entry).filter(|entry| *entry != Entry::Message(String::new()))
    }
}

/// The name of the command that a text is. Paths and comments are none, and neither is what stands
/// after a space.
fn command(text: &str) -> Option<&str> {
    let name = text.strip_prefix('/')?.split_whitespace().next().unwrap_or_default();
    let is_name = name.chars().all(|c| c.is_ascii_alphabetic() || c == '?');
    (is_name && !text.trim_end().contains('\n')).then_some(name)
}

/// The file of the lines typed in earlier chats, in a folder that only the user can read.
fn history_file() -> Option<PathBuf> {
    let state = env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let usual =
        if cfg!(target_os = "macos") { "Library/Application Support" } else { ".local/state" };
    let folder = state.or_else(|| Some(env::home_dir()?.join(usual)))?.join("mynah");
    create_private(&folder).ok()?;
    Some(folder.join("chat_history"))
}

fn create_private(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Keeps the editor in one entry while a fence is open.
pub struct Fences;

impl Validator for Fences {
    fn validate(&self, context: &mut ValidationContext) -> rustyline::Result<ValidationResult> {
        Ok(match is_open(context.input()) {
            true => ValidationResult::Incomplete,
            false => ValidationResult::Valid(None),
        })
    }
}

impl Completer for Fences {
    type Candidate = String;
}

impl Hinter for Fences {
    type Hint = String;
}

impl Highlighter for Fences {}
impl Helper for Fences {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_message_or_a_command() {
        let message = |text: &str| Some(Entry::Message(text.into()));
        let command = |name: &str| Some(Entry::Command(name.into()));
        for (text, expected) in [
            ("", None),
            (" \n", None),
            ("\"\"\"\n\"\"\"", None),
            ("Hello ", message("Hello")),
            ("/help", command("help")),
            ("/? ", command("?")),
            ("/clear all", command("clear")),
            ("/", command("")),
            (" /help", message("/help")),
            ("/etc/hosts", message("/etc/hosts")),
            ("// no", message("// no")),
            ("/a\nb", message("/a\nb")),
            ("\"\"\"\n/a\n b\n\"\"\"", message("/a\n b")),
            ("\"\"\"one\"\"\"", message("one")),
            ("\"\"\"never closed", message("never closed")),
        ] {
            assert_eq!(Entry::of(text), expected, "{text:?}");
        }
        assert!(is_open("\"\"\"") && is_open("\"\"\"a\nb") && !is_open("a\"\"\""));
        assert!(!is_open("\"\"\"a\nb\"\"\" "));
    }
}
