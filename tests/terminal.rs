//! What people see who run the command in a terminal.

use mynah_tests::{
    hub::{
        content::{Content, Repository},
        server::{Fault, Server},
    },
    mynah,
};
use serde_json::{Value as Json, json};
use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};
use tempfile::TempDir;

/// The output of a finished command in a terminal, and its exit code.
struct Screen {
    text: String,
    code: Option<i32>,
}

/// Runs a command in a terminal with this number of columns. `steps` are lists: a text to wait for, what
/// is typed then or the new width, and for how many seconds nothing must have come before.
fn run(command: &Command, columns: usize, steps: &Json) -> Screen {
    let mut python = Command::new("python3");
    python.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("terminal.py"));
    python.arg(columns.to_string()).arg(steps.to_string());
    python.arg(command.get_program()).args(command.get_args()).env("TERM", "xterm");
    for (name, value) in command.get_envs().filter(|(name, _)| *name != "PATH") {
        match value {
            Some(value) => python.env(name, value),
            None => python.env_remove(name),
        };
    }
    let output = python.output().unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    Screen { text: String::from_utf8(output.stdout).unwrap(), code: output.status.code() }
}

impl Screen {
    /// The lines without the sequences that move the cursor or change the colour.
    fn lines(&self) -> Vec<String> {
        let mut text = String::new();
        let mut characters = self.text.chars();
        while let Some(c) = characters.next() {
            if c == '\x1b' {
                characters.find(|c| c.is_ascii_alphabetic());
            } else {
                text.push(c);
            }
        }
        text.split(['\r', '\n']).map(String::from).collect()
    }
}

/// The demo model with other texts in its files.
fn demo(edit: impl Fn(&mut Json, &str)) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/demo");
    for file in fs::read_dir(demo).unwrap() {
        let file = file.unwrap().path();
        let name = file.file_name().unwrap().to_str().unwrap();
        let mut content = fs::read(&file).unwrap();
        if name.ends_with("config.json") {
            let mut json = serde_json::from_slice(&content).unwrap();
            edit(&mut json, name);
            content = serde_json::to_vec(&json).unwrap();
        }
        fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

fn path(folder: &TempDir) -> &str {
    folder.path().to_str().unwrap()
}

/// What clears the screen and sets the title.
const HOSTILE: &str = "\x1b[2J\x1b]0;title\x07\u{9b}2J";

fn check_harmless(screen: &Screen, shown: &str) {
    for part in ["\x1b[2J", "\x1b]", "\x07", "\u{9b}"] {
        assert!(!screen.text.contains(part), "{:?}", screen.text);
    }
    assert!(screen.lines().concat().contains(shown), "{:?}", screen.text);
}

#[test]
fn no_text_of_a_model_steers_the_terminal() {
    // The demo model's tokens for the bytes of ESC and BEL.
    for (token, byte, shown) in [("218", "\x1b", "^[^[^["), ("198", "\x07", "^G^G^G")] {
        let bias = format!("{token}=1000");
        let mut generate = mynah();
        generate.args(["generate", "hi", "--max-tokens", "3", "--logit-bias", &bias]);
        let screen = run(&generate, 80, &json!([]));
        assert!(screen.text.starts_with(shown), "{:?}", screen.text);
        assert_eq!(screen.code, Some(0));
        let piped = generate.output().unwrap();
        assert_eq!(piped.stdout, format!("{byte}{byte}{byte}\n").as_bytes());
        let json = generate.arg("--json").output().unwrap();
        let json: Json = serde_json::from_slice(&json.stdout).unwrap();
        assert_eq!(json["text"], byte.repeat(3));
    }
}

#[test]
fn no_text_of_a_checkpoint_steers_the_terminal() {
    let raises = demo(|config, name| {
        if name == "tokenizer_config.json" {
            let raise = format!("{{{{ raise_exception({}) }}}}", json!(format!("why {HOSTILE}")));
            config["chat_template"] = json!(raise);
        }
    });
    let mut generate = mynah();
    generate.args(["generate", path(&raises), "hi"]);
    check_harmless(&run(&generate, 80, &json!([])), "^[[2J^[]0;title^G<U+009B>2J");

    let named = demo(|config, name| {
        if name == "config.json" {
            config["model_type"] = json!(format!("lama{HOSTILE}"));
        }
    });
    for arguments in [&["inspect", path(&named)][..], &["generate", path(&named), "hi"]] {
        let mut command = mynah();
        command.args(arguments);
        check_harmless(&run(&command, 80, &json!([])), "lama^[[2J");
        check_harmless(&run(command.arg("-vvv"), 80, &json!([])), "lama^[[2J");
    }
    let mut inspect = mynah();
    let output = inspect.args(["inspect", path(&named), "--json"]).output().unwrap();
    let json: Json = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["model_type"], format!("lama{HOSTILE}"));
    assert!(!output.stdout.contains(&0x9b));
}

/// A slow download, and its environment.
fn download() -> (Server, TempDir, Command) {
    const BYTES: u64 = 20_000_000;
    let weights = Content::safetensors(&[("tensor", "U8", &[BYTES])], 0);
    let config = r#"{"model_type": "llama"}"#;
    let repository =
        Repository::default().with("config.json", config).with_large("model.safetensors", weights);
    let server = Server::start().unwrap();
    server.publish("org/name", &repository);
    server.fail("/storage/", usize::MAX, Fault::Slow(BYTES / 10));
    let cache = tempfile::tempdir().unwrap();
    let mut command = mynah();
    command.args(["download", "org/name"]).env("HF_HUB_OFFLINE", "0").env_remove("HF_TOKEN");
    command.env("HF_ENDPOINT", server.endpoint()).env("HF_HOME", cache.path());
    (server, cache, command)
}

#[test]
fn the_line_of_a_download_fits_the_terminal() {
    let (_server, _cache, command) = download();
    let screen = run(&command, 60, &json!([[" % of ", 40, 0], [" % of ", 30, 0]]));
    assert_eq!(screen.code, Some(0), "{:?}", screen.text);
    let lines = screen.lines();
    let lines: Vec<_> = lines.iter().filter(|line| line.contains(" % of ")).collect();
    assert!(lines.len() > 5, "{lines:?}");
    let widths: Vec<_> = lines.iter().map(|line| line.chars().count()).collect();
    assert!(widths.iter().all(|width| *width < 60), "{widths:?}");
    assert!(widths.iter().rev().take(3).all(|width| *width < 30), "{widths:?}");
    // A line that has been broken by a narrower terminal is overwritten from its start.
    assert!(screen.text.contains("\x1b[1A\r"), "{:?}", screen.text);
}

#[test]
fn an_interrupted_download_ends_its_line() {
    let (_server, _cache, command) = download();
    let screen = run(&command, 40, &json!([[" % of ", "\x03", 0]]));
    assert_eq!(screen.code, Some(130), "{:?}", screen.text);
    assert!(screen.text.ends_with('\n'), "{:?}", screen.text);
}

#[test]
fn a_chat_explains_itself_and_remembers_what_was_typed() {
    let state = tempfile::tempdir().unwrap();
    let mut chat = mynah();
    chat.arg("chat").env("XDG_STATE_HOME", state.path());
    // A key reaches the editor only when it waits for one.
    const QUIET: f32 = 0.5;
    let typed = |steps: &[(&str, &str)]| {
        json!(steps.iter().map(|(wait, key)| json!([wait, key, QUIET])).collect::<Vec<_>>())
    };
    let steps = typed(&[
        ("> ", "/help\r"),
        ("Ctrl-C stops", "/nonsense\r"),
        ("no command /nonsense", "/clear\r"),
        ("new conversation begins", "\x03"),
        ("/quit leaves", "\"\"\"What is\r"),
        ("What is", "3 + 4?\"\"\"\r"),
        ("tokens/s", "What is\x1b\r"),
        ("What is", "3 + 4?\r"),
        ("tokens/s", "\x04"),
    ]);
    let screen = run(&chat, 80, &steps);
    assert_eq!(screen.code, Some(0), "{:?}", screen.text);
    // Two for each answer.
    assert_eq!(screen.text.matches("tokens/s").count(), 4, "{:?}", screen.text);

    let history = state.path().join("mynah/chat_history");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&history), mode(history.parent().unwrap())), (0o600, 0o700));
    // The arrow recalls the last line of the chat before.
    let steps = typed(&[("> ", "\x1b[A"), ("3 + 4?", "\x03"), ("/quit", "\x04")]);
    let recalled = run(&chat, 80, &steps);
    assert_eq!(recalled.code, Some(0), "{:?}", recalled.text);
}

#[test]
fn what_is_said_beside_an_answer_fits_the_terminal() {
    let mut generate = mynah();
    generate.args(["generate", "What is 3 + 4?", "--max-tokens", "2"]);
    let screen = run(&generate, 40, &json!([]));
    let lines = screen.lines();
    assert!(lines.iter().all(|line| line.chars().count() <= 40), "{lines:?}");
    assert!(lines.concat().contains("--max-tokens"), "{lines:?}");
}
