//! What keeps the house in order as it grows, in numbers: `ARCHITECTURE.md` says why.

use mynah::internals::families;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Words that are both a family's name and something else's: where, and why there.
const ALLOWED: &[(&str, &str, &str)] = &[
    ("layers/recurrent/mamba2.rs", "mamba2", "the mechanism, which families share"),
    ("layers/position/rope.rs", "telechat3", "configs call this kind of scaling by the name"),
    ("layers/position/wavelengths.rs", "llama", "configs call this kind of scaling by the name"),
    ("checkpoint/quantization.rs", "bitnet", "configs call this kind of quantization by the name"),
    ("text/template.rs", "deepseek_v32", "configs ask for a template by the name"),
    ("text/tokenizer/vocabularies/mod.rs", "qwen", "a file has the name"),
    ("text/tokenizer/vocabularies/scored_pieces.rs", "plamo", "tokens have the name"),
    ("text/tokenizer/mod.rs", "qwen", "a file has the name"),
];

/// One file of the core.
struct Source {
    /// Its path below `core/src`, with slashes.
    path: String,
    /// Its text without modules of tests.
    text: String,
}

impl Source {
    fn all() -> Vec<Source> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/src");
        let mut paths = Vec::new();
        collect(&root, &mut paths);
        paths.sort();
        let read = |path: PathBuf| {
            let name = path.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/");
            Source { path: name, text: without_tests(&fs::read_to_string(&path).unwrap()) }
        };
        paths.into_iter().map(read).collect()
    }

    fn is_in(&self, folder: &str) -> bool {
        self.path.starts_with(folder)
    }

    /// The lines with something other than comments, without their comments.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let code = |line| match str::find(line, "//") {
            // Not the one in an address.
            Some(at) if !line[..at].ends_with(':') => line[..at].trim(),
            _ => line.trim(),
        };
        let lines = self.text.lines().enumerate().map(move |(i, line)| (i + 1, code(line)));
        lines.filter(|(_, line)| !line.is_empty())
    }
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
}

/// Cuts what is compiled for tests only: items at the margin.
fn without_tests(text: &str) -> String {
    let (mut kept, mut in_tests) = (Vec::new(), false);
    for line in text.lines() {
        in_tests |= line == "#[cfg(test)]";
        kept.push(if in_tests { "" } else { line });
        in_tests &= line != "}";
    }
    kept.join("\n")
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_')
}

/// Fails with one line for each breach.
fn none(rule: &str, breaches: Vec<String>) {
    assert!(breaches.is_empty(), "{rule}:\n{}", breaches.join("\n"));
}

#[test]
fn only_families_know_the_names_of_families() {
    let sources = Source::all();
    let mut names: BTreeSet<String> = families::all()
        .flat_map(|family| family.model_types)
        .map(|name| name.to_string())
        .collect();
    let modules = sources.iter().filter(|source| source.is_in("families/"));
    let stem = |source: &Source| Path::new(&source.path).file_stem().unwrap().to_os_string();
    names.extend(modules.map(|source| stem(source).into_string().unwrap()));
    // The modules of modalities, not of families.
    for modality in ["mod", "text", "vision", "speech"] {
        names.remove(modality);
    }
    let (mut breaches, mut used) = (Vec::new(), BTreeSet::new());
    for source in sources.iter().filter(|source| !source.is_in("families/")) {
        for (i, line) in source.text.lines().enumerate() {
            for word in words(line).map(str::to_lowercase).filter(|word| names.contains(word)) {
                let reason = ALLOWED
                    .iter()
                    .position(|(path, name, _)| (*path, *name) == (&*source.path, &*word));
                match reason {
                    Some(reason) => drop(used.insert(reason)),
                    None => breaches.push(format!("{}:{}: {word}: {line}", source.path, i + 1)),
                }
            }
        }
    }
    for (i, (path, word, _)) in ALLOWED.iter().enumerate() {
        if !used.contains(&i) && names.contains(*word) {
            breaches.push(format!("{path} does not say {word} any more"));
        }
    }
    none("shared code names a family", breaches);
}

#[test]
fn unsafe_code_is_in_one_file() {
    let mut breaches = Vec::new();
    for source in Source::all().iter().filter(|source| source.path != "mlx/ffi.rs") {
        for (number, line) in source.code() {
            if words(line).any(|word| ["unsafe", "mlx_sys"].contains(&word)) {
                breaches.push(format!("{}:{number}: {line}", source.path));
            }
        }
    }
    none("unsafe code outside of mlx/ffi.rs", breaches);
}

#[test]
fn parts_are_small() {
    const LINES: usize = 300;
    const FIELDS: usize = 12;
    let mut breaches = Vec::new();
    for source in Source::all().iter().filter(|source| source.is_in("layers/")) {
        let lines = source.text.trim_end().lines().count();
        if lines > LINES {
            breaches.push(format!("{}: {lines} lines", source.path));
        }
        for (number, line) in source.code() {
            let is_struct = words(line).any(|word| word == "struct") && line.ends_with('{');
            let body = source.code().skip_while(|(other, _)| *other <= number);
            let body = body.take_while(|(_, line)| *line != "}");
            let fields =
                body.filter(|(_, line)| line.ends_with(',') && line.contains(": ")).count();
            if is_struct && fields > FIELDS {
                breaches.push(format!("{}:{number}: {line} {fields} fields }}", source.path));
            }
        }
    }
    none("a part is too large", breaches);
}

#[test]
fn families_are_short_and_name_their_reference() {
    const LINES: usize = 250;
    const AVERAGE: usize = 60;
    let mut breaches = Vec::new();
    let (mut files, mut all_lines) = (0, 0);
    for source in Source::all().iter().filter(|source| source.is_in("families/")) {
        let opening: Vec<_> =
            source.text.lines().map_while(|line| line.strip_prefix("//!")).collect();
        if source.path.ends_with("mod.rs") {
            continue;
        }
        let opening = opening.concat().to_lowercase();
        if !opening.contains("follows `") {
            breaches.push(format!("{}: its opening does not say what it follows", source.path));
        }
        let lines = source.code().count();
        if lines > LINES {
            breaches.push(format!("{}: {lines} lines of code", source.path));
        }
        (files, all_lines) = (files + 1, all_lines + lines);
    }
    if all_lines >= AVERAGE * files {
        breaches.push(format!("{all_lines} lines of code in {files} files: {AVERAGE} on average"));
    }
    none("a family is not as it should be", breaches);
}

#[test]
fn nothing_is_left_to_do_and_nothing_unwraps() {
    let forbidden = ["todo!", "unimplemented!", "dbg!", ".unwrap()", ".unwrap_err()", "panic!("];
    let mut breaches = Vec::new();
    for source in Source::all() {
        for (number, line) in source.code() {
            if forbidden.iter().any(|word| line.contains(word)) {
                breaches.push(format!("{}:{number}: {line}", source.path));
            }
        }
    }
    none("code that panics", breaches);
}
