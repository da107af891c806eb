//! The commands of the README do what it says, as they stand there.

use mynah_tests::{
    PictureFile,
    hub::{content::Repository, server::Server},
    mynah,
};
use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The commands that no test runs, and why.
const EXCEPTIONS: &[(&str, Why)] = &[
    ("./scripts/setup", Why::Runs(&["scripts/test", "scripts/demo"])),
    ("./scripts/demo", Why::Builds),
    ("./scripts/test", Why::Runs(&[".ci/run"])),
    ("./scripts/bindings", Why::Runs(&["scripts/test"])),
    ("./scripts/swift run --package-path apple/Examples chat", Why::Runs(&["scripts/test"])),
    ("./scripts/kotlin package", Why::Builds),
    ("./scripts/xcframework", Why::NeedsMac),
];

enum Why {
    /// These run it, around this test or for longer than a test may take.
    Runs(&'static [&'static str]),
    /// It builds for longer than a test may take.
    Builds,
    /// It is for a Mac and says so elsewhere.
    NeedsMac,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn readme() -> String {
    fs::read_to_string(root().join("README.md")).unwrap()
}

/// All commands: the lines of blocks in the language of shells, and code inside a sentence that starts
/// as they do.
fn commands() -> BTreeSet<String> {
    let readme = readme();
    let mut commands = BTreeSet::new();
    for (i, part) in readme.split("```").enumerate() {
        match part.strip_prefix("sh\n").filter(|_| i % 2 == 1) {
            Some(block) => {
                let command = |line: &str| line.split(" #").next().unwrap().trim().to_string();
                commands.extend(block.lines().map(command).filter(|line| !line.is_empty()));
            }
            None if i % 2 == 0 => {
                let code = part.split('`').skip(1).step_by(2).map(|code| code.replace('\n', " "));
                let is_command = |code: &String| {
                    ["./scripts/", "mynah "].iter().any(|start| code.starts_with(start))
                };
                commands.extend(code.filter(is_command));
            }
            None => {}
        }
    }
    commands
}

#[test]
fn every_command_runs_as_it_stands() {
    let binary = PathBuf::from(mynah().get_program());
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start().unwrap();
    server.publish("org/name", &Repository::demo());
    server.tag("org/name", "revision");
    server.publish("org/vision", &Repository::vision());
    let photo = PictureFile::all().into_iter().find(|file| file.0 == "jpeg").unwrap();
    fs::write(folder.path().join("photo.jpg"), photo.bytes()).unwrap();
    let checkpoint = folder.path().join("path/to/checkpoint");
    fs::create_dir_all(&checkpoint).unwrap();
    for file in fs::read_dir(root().join("core/demo")).unwrap() {
        let file = file.unwrap().path();
        fs::copy(&file, checkpoint.join(file.file_name().unwrap())).unwrap();
    }
    let commands: Vec<_> =
        commands().into_iter().filter(|c| EXCEPTIONS.iter().all(|(named, _)| named != c)).collect();
    let shown: Vec<_> = commands.iter().filter(|command| command.starts_with("mynah ")).collect();
    assert!(shown.len() >= 7, "{commands:?}");
    for command in commands {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &command]).current_dir(folder.path()).stdin(Stdio::null());
        // Without a C++ compiler MLX fuses nothing, and no test waits for one.
        shell.env("PATH", binary.parent().unwrap());
        for (name, _) in
            env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HF_"))
        {
            shell.env_remove(name);
        }
        shell.env("HF_HOME", folder.path().join("home")).env("HF_ENDPOINT", server.endpoint());
        let output = shell.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{command}: {out}{err}");
        // The chat gets no input.
        assert!(command.starts_with("mynah chat") || !out.is_empty(), "{command}: {err}");
    }
}

#[test]
fn commands_that_no_test_runs_are_what_they_are_said_to_be() {
    let commands = commands();
    for (command, why) in EXCEPTIONS {
        assert!(commands.contains(*command), "the README does not have {command}: {commands:?}");
        let script = command.split(' ').next().unwrap().trim_start_matches("./");
        assert!(root().join(script).is_file(), "{script}");
        match why {
            Why::Runs(callers) => {
                for caller in *callers {
                    let text = fs::read_to_string(root().join(caller)).unwrap();
                    assert!(text.contains(script), "{caller} does not run {script}");
                }
            }
            Why::Builds => {
                let text = fs::read_to_string(root().join(script)).unwrap();
                assert!(text.contains("build") || text.contains("mvn"), "{script}");
            }
            Why::NeedsMac if cfg!(target_os = "macos") => {}
            Why::NeedsMac => {
                let output = Command::new(root().join(script)).output().unwrap();
                let err = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(
                    !output.status.success() && err.to_lowercase().contains("mac"),
                    "{script}: {err}"
                );
            }
        }
    }
}
