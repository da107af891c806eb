//! What keeps the house in order as it grows, in numbers: `ARCHITECTURE.md` says why.

mod imports;
mod sizes;
mod source;

use imports::{Imports, module_of};
use source::{Source, root};
use std::{collections::BTreeSet, fs, path::Path};
use syn::{Expr, ExprStruct, Lit, Member, visit::Visit};

/// The rooms of the core. Each may import from those before it. `lib.rs` and `bin/` are above all.
const ROOMS: &[&str] = &[
    "error",
    "mlx",
    "checkpoint",
    "media",
    "text",
    "answer",
    "hub",
    "processors",
    "layers",
    "models",
    "families",
    "generate",
    "engine",
    "api",
];

/// Words that are both a family's name and something else's: where, and why there.
/// The wire formats of tool calls, which have the names of the models that write them and of the parsers
/// that checkpoints name.
const WIRE_FORMATS: &str = "answer/formats.rs";

const ALLOWED: &[(&str, &str, &str)] = &[
    ("layers/recurrent/mamba2.rs", "mamba2", "the mechanism, which families share"),
    ("layers/recurrent/mod.rs", "mamba2", "the same"),
    ("layers/recurrent/mamba2.rs", "mamba", "the same, in prose"),
    ("layers/recurrent/selective_scan.rs", "mamba", "the paper has the name"),
    ("layers/recurrent/hybrid.rs", "mamba", "configs call this kind of layer by the name"),
    ("layers/position/rope.rs", "telechat3", "configs call this kind of scaling by the name"),
    ("layers/position/wavelengths.rs", "llama", "configs call this kind of scaling by the name"),
    ("layers/position/sections.rs", "qwen2", "the paper has the name"),
    ("checkpoint/quantization.rs", "bitnet", "configs call this kind of quantization by the name"),
    ("answer/tags.rs", "minimax", "the marks of a format have the name"),
    ("text/template.rs", "deepseek_v32", "configs ask for a template by the name"),
    ("text/template.rs", "deepseek", "the same, in prose"),
    ("text/mod.rs", "deepseek_v32", "the same"),
    ("text/tokenizer/vocabularies/mod.rs", "qwen", "a file has the name"),
    ("text/tokenizer/vocabularies/vocab_txt.rs", "bert", "the file is of its tokenizer"),
    ("text/tokenizer/vocabularies/scored_pieces.rs", "plamo", "tokens have the name"),
    ("text/tokenizer/mod.rs", "qwen", "a file has the name"),
];

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_')
}

/// Fails with one line for each breach.
fn none(rule: &str, breaches: Vec<String>) {
    assert!(breaches.is_empty(), "{rule}:\n{}", breaches.join("\n"));
}

/// The room of a module; the root of the crate is above all.
fn room(module: &str) -> usize {
    let name = module.split("::").next().unwrap();
    if name.is_empty() {
        return ROOMS.len();
    }
    ROOMS.iter().position(|room| *room == name).unwrap_or_else(|| panic!("{name} is no room"))
}

#[test]
fn rooms_import_downwards_and_files_in_no_circle() {
    let sources = Source::all();
    let imports = Imports::of(&sources);
    let all = imports.arrows.keys().chain(imports.exports.keys());
    let upwards = all.filter(|(from, to)| room(to) > room(from));
    let mut breaches: Vec<_> =
        upwards.map(|(from, to)| format!("{} above it", imports.place(from, to))).collect();
    let circles = imports.circles();
    for circle in &circles {
        let next = circle.iter().cycle().skip(1);
        breaches.push(format!("a circle of {} files:", circle.len()));
        breaches.extend(
            circle.iter().zip(next).map(|(from, to)| format!("  {}", imports.place(from, to))),
        );
    }
    let between: BTreeSet<_> = imports
        .arrows
        .keys()
        .map(|(from, to)| (room(from), room(to)))
        .filter(|(from, to)| from != to && *from < ROOMS.len())
        .collect();
    println!(
        "{} rooms, {} arrows between them; {} files, {} arrows between them, {} circles",
        ROOMS.len(),
        between.len(),
        imports.files.len(),
        imports.arrows.len(),
        circles.len()
    );
    none("imports that no room or no file may have", breaches);
}

#[test]
fn the_map_lists_the_rooms_in_their_order() {
    const TITLE: &str = "## The rooms of `core/src`";
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let map = text.split_once(TITLE).unwrap_or_else(|| panic!("no section {TITLE}")).1;
    let map = map.split_once("\n## ").map_or(map, |(map, _)| map);
    let rows = map.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let names: Vec<_> = rows
        .map(|(name, _)| name.trim_end_matches('/').trim_end_matches(".rs"))
        .filter(|name| !["lib", "bin", "bin/mynah"].contains(name))
        .collect();
    assert_eq!(names, ROOMS, "the rows of the map begin with the rooms, in their order");
}

/// The values of `model_type` that families read.
struct ModelTypes(BTreeSet<String>);

impl<'a> Visit<'a> for ModelTypes {
    fn visit_expr_struct(&mut self, item: &'a ExprStruct) {
        let field = item
            .fields
            .iter()
            .find(|field| matches!(&field.member, Member::Named(name) if name == "model_types"));
        let Some(field) = field else { return };
        let Expr::Reference(list) = &field.expr else { panic!("model_types is no list") };
        let Expr::Array(list) = &*list.expr else { panic!("model_types is no list") };
        for name in &list.elems {
            let Expr::Lit(name) = name else { panic!("a model type is no text") };
            let Lit::Str(name) = &name.lit else { panic!("a model type is no text") };
            self.0.insert(name.value());
        }
    }
}

#[test]
fn only_families_know_the_names_of_families() {
    let sources = Source::all();
    let mut types = ModelTypes(BTreeSet::new());
    for source in sources.iter().filter(|source| source.family().is_some()) {
        source.items.iter().for_each(|item| types.visit_item(item));
    }
    let ModelTypes(mut names) = types;
    assert!(names.len() > 100, "only {} model types are found", names.len());
    names.extend(sources.iter().filter_map(Source::family).map(String::from));
    // A family's own mechanisms, which lie in its folder, have names of several words.
    let stem = |source: &Source| Path::new(&source.path).file_stem()?.to_str().map(String::from);
    let own = sources.iter().filter(|source| source.family().is_some()).filter_map(stem);
    names.extend(own.filter(|name| name.contains('_')));
    let (mut breaches, mut used) = (Vec::new(), BTreeSet::new());
    let shared = |source: &&Source| !source.is_in("families/") && source.path != WIRE_FORMATS;
    for source in sources.iter().filter(shared) {
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
        if !used.contains(&i) {
            breaches.push(format!("{path} does not say {word} any more"));
        }
    }
    none("shared code names a family", breaches);
}

#[test]
fn unsafe_code_is_in_one_folder() {
    let mut breaches = Vec::new();
    for source in Source::all().iter().filter(|source| !source.is_in("mlx/ffi/")) {
        for (number, line) in source.code() {
            if words(line).any(|word| ["unsafe", "mlx_sys"].contains(&word)) {
                breaches.push(format!("{}:{number}: {line}", source.path));
            }
        }
    }
    none("unsafe code outside of mlx/ffi/", breaches);
}

#[test]
fn families_name_their_reference() {
    let sources = Source::all();
    // The first file of a family speaks for those beside it.
    let is_first = |source: &&Source| {
        let (file, folder) =
            source.family().map(|name| (format!("/{name}.rs"), format!("/{name}/mod.rs"))).unzip();
        file.is_some_and(|file| source.path.ends_with(&file))
            || folder.is_some_and(|folder| source.path.ends_with(&folder))
    };
    let silent = sources
        .iter()
        .filter(is_first)
        .filter(|source| !source.opening.to_lowercase().contains("follows `"));
    let silent = silent.map(|source| source.path.clone()).collect();
    none("the opening of a family does not say what it follows", silent);
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
