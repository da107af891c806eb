//! The files of the core, parsed, without what is compiled for tests only.

use std::{
    fs,
    path::{Path, PathBuf},
};
use syn::{Item, spanned::Spanned};

/// One file of the core.
pub struct Source {
    /// Its path below `core/src`, with slashes.
    pub path: String,
    /// Its text; the lines of tests are empty.
    pub text: String,
    /// Its items.
    pub items: Vec<Item>,
    /// Its opening, the lines of `//!`.
    pub opening: String,
}

impl Source {
    /// All files, in the order of their paths.
    pub fn all() -> Vec<Source> {
        let root = root().join("core/src");
        let mut paths = Vec::new();
        collect(&root, &mut paths);
        paths.sort();
        // A file `tests.rs` is a module of unit tests.
        let is_test = |path: &&PathBuf| path.file_name().is_some_and(|name| name == "tests.rs");
        paths.iter().filter(|path| !is_test(path)).map(|path| Source::read(path, &root)).collect()
    }

    fn read(path: &Path, root: &Path) -> Source {
        let text = fs::read_to_string(path).unwrap();
        let path = path.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/");
        let file = syn::parse_file(&text).unwrap_or_else(|error| panic!("{path}: {error}"));
        let (tests, items): (Vec<_>, Vec<_>) = file.items.into_iter().partition(is_for_tests);
        let mut lines: Vec<&str> = text.lines().collect();
        for item in tests {
            let span = item.span();
            lines[span.start().line - 1..span.end().line].fill("");
        }
        let opening = lines.iter().map_while(|line| line.strip_prefix("//!")).collect();
        Source { path, items, opening, text: lines.join("\n") }
    }

    pub fn is_in(&self, folder: &str) -> bool {
        self.path.starts_with(folder)
    }

    /// The lines with something other than comments, without their comments.
    pub fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let code = |line| match str::find(line, "//") {
            // Not the slashes of an address.
            Some(at) if !line[..at].ends_with(':') => line[..at].trim(),
            _ => line.trim(),
        };
        let lines = self.text.lines().enumerate().map(move |(i, line)| (i + 1, code(line)));
        lines.filter(|(_, line)| !line.is_empty())
    }

    /// The family that the file belongs to, if it belongs to one: the name below the folder of a
    /// modality, of a file or of a folder.
    pub fn family(&self) -> Option<&str> {
        let (_, name) = self.path.strip_prefix("families/")?.split_once('/')?;
        let name = name.split('/').next()?;
        let name = name.strip_suffix(".rs").unwrap_or(name);
        (name != "mod").then_some(name)
    }
}

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
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

fn is_for_tests(item: &Item) -> bool {
    let attributes = match item {
        Item::Mod(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Const(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        _ => return false,
    };
    attributes.iter().any(|attribute| {
        let is_cfg = attribute.path().is_ident("cfg");
        is_cfg && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
    })
}
