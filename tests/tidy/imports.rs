//! Which file imports which: `use` declarations and paths in the code, each followed through
//! re-exports to the file that defines what it names.

use crate::source::Source;
use std::collections::{BTreeMap, BTreeSet};
use syn::{
    Item, ItemUse, UseTree, VisRestricted, Visibility,
    spanned::Spanned,
    visit::{self, Visit},
};

/// The imports between the modules of the core.
pub struct Imports {
    /// From a module to another one, with the line of the first import.
    pub arrows: BTreeMap<(String, String), usize>,
    /// Re-exports, likewise. What imports them is an arrow to the defining file instead.
    pub exports: BTreeMap<(String, String), usize>,
    /// The file of each module.
    pub files: BTreeMap<String, String>,
}

/// The modules of the files, and the names that each re-exports.
struct Modules {
    files: BTreeMap<String, String>,
    exports: BTreeMap<String, BTreeMap<String, String>>,
    /// The modules that define something.
    defining: BTreeSet<String>,
}

/// The imports of one file.
struct Collector<'a> {
    modules: &'a Modules,
    /// The module of the file.
    module: &'a str,
    /// The names of its submodules.
    children: BTreeSet<String>,
    /// All words of the file: what a glob import brings is what the file names.
    words: BTreeSet<&'a str>,
    found: Vec<(String, usize, bool)>,
}

impl Imports {
    pub fn of(sources: &[Source]) -> Imports {
        let sources: Vec<_> = sources.iter().filter(|source| !source.is_in("bin/")).collect();
        let modules = Modules::of(&sources);
        let (mut arrows, mut exports) = (BTreeMap::new(), BTreeMap::new());
        for source in sources {
            let module = module_of(&source.path);
            let mut collector = Collector {
                modules: &modules,
                module: &module,
                children: children(&source.items),
                words: source.code().flat_map(|(_, line)| crate::words(line)).collect(),
                found: Vec::new(),
            };
            source.items.iter().for_each(|item| collector.visit_item(item));
            for (target, line, is_export) in collector.found {
                if target != module {
                    let map = if is_export { &mut exports } else { &mut arrows };
                    map.entry((module.clone(), target)).or_insert(line);
                }
            }
        }
        Imports { arrows, exports, files: modules.files }
    }

    /// `file:line: what`, of an import of a module.
    pub fn place(&self, from: &str, to: &str) -> String {
        let key = (from.to_string(), to.to_string());
        let line = self.arrows.get(&key).or(self.exports.get(&key)).unwrap();
        format!("{}:{line}: imports {}", self.files[from], self.files[to])
    }

    /// A circle of modules for each group of modules that import each other.
    pub fn circles(&self) -> Vec<Vec<String>> {
        let mut after: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (from, to) in self.arrows.keys() {
            after.entry(from).or_default().insert(to);
        }
        let mut circles = Vec::new();
        loop {
            // Whatever imports nothing that is left is in no circle.
            while let Some(done) = after
                .keys()
                .copied()
                .find(|module| !after[module].iter().any(|imported| after.contains_key(imported)))
            {
                after.remove(done);
            }
            let Some(start) = after.keys().next().copied() else { return circles };
            let mut path = vec![start];
            let again = loop {
                let last = path[path.len() - 1];
                let next = after[last].iter().find(|module| after.contains_key(*module)).unwrap();
                if let Some(at) = path.iter().position(|module| module == next) {
                    break at;
                }
                path.push(next);
            };
            let circle: Vec<_> = path[again..].iter().map(|module| module.to_string()).collect();
            for module in &path[again..] {
                after.remove(module);
            }
            circles.push(circle);
        }
    }

    /// The modules that a module imports, and those that they import.
    pub fn reachable(&self, from: &str) -> BTreeSet<&str> {
        let (mut found, mut rest) = (BTreeSet::new(), vec![from]);
        while let Some(module) = rest.pop() {
            let after = self.arrows.range((module.to_string(), String::new())..);
            for (_, to) in after.map(|(arrow, _)| arrow).take_while(|(from, _)| from == module) {
                if found.insert(to.as_str()) {
                    rest.push(to);
                }
            }
        }
        found
    }
}

impl Modules {
    fn of(sources: &[&Source]) -> Modules {
        let files =
            sources.iter().map(|source| (module_of(&source.path), source.path.clone())).collect();
        let mut modules = Modules { files, exports: BTreeMap::new(), defining: BTreeSet::new() };
        for source in sources {
            let module = module_of(&source.path);
            let children = children(&source.items);
            let mut exports = BTreeMap::new();
            for item in &source.items {
                match item {
                    Item::Use(item) if is_export(item) => {
                        for (path, name) in leaves(&item.tree) {
                            if let Some(path) = absolute(&path, &module, &children) {
                                exports.insert(name, path);
                            }
                        }
                    }
                    Item::Use(_) | Item::Mod(_) => {}
                    _ => drop(modules.defining.insert(module.clone())),
                }
            }
            modules.exports.insert(module, exports);
        }
        modules
    }

    /// The module that defines what a path from the root of the crate names.
    fn definition(&self, path: &str) -> String {
        let names: Vec<&str> = path.split("::").collect();
        for count in (0..=names.len()).rev() {
            let module = names[..count].join("::");
            if self.files.contains_key(&module) {
                let next = names.get(count).and_then(|name| self.exports[&module].get(*name));
                return next.map_or(module, |path| self.definition(path));
            }
        }
        String::new()
    }
}

impl<'a> Collector<'a> {
    fn add(&mut self, path: &[String], line: usize, is_export: bool) {
        let Some(path) = absolute(path, self.module, &self.children) else { return };
        let Some(module) = path.strip_suffix("::*") else {
            return self.found.push((self.modules.definition(&path), line, is_export));
        };
        let names = self.modules.exports.get(module).unwrap_or_else(|| panic!("{path} is no file"));
        for (_, path) in names.iter().filter(|(name, _)| self.words.contains(name.as_str())) {
            self.found.push((self.modules.definition(path), line, is_export));
        }
        if self.modules.defining.contains(module) {
            self.found.push((module.to_string(), line, is_export));
        }
    }
}

impl<'a> Visit<'a> for Collector<'_> {
    fn visit_item_use(&mut self, item: &'a ItemUse) {
        for (path, _) in leaves(&item.tree) {
            self.add(&path, item.span().start().line, is_export(item));
        }
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        if path.segments.len() > 1 {
            let names: Vec<_> =
                path.segments.iter().map(|segment| segment.ident.to_string()).collect();
            self.add(&names, path.span().start().line, false);
        }
        visit::visit_path(self, path);
    }

    fn visit_vis_restricted(&mut self, _: &'a VisRestricted) {}

    fn visit_macro(&mut self, item: &'a syn::Macro) {
        self.visit_path(&item.path);
        // Paths among tokens: names with `::` between them.
        let text = item.tokens.to_string().replace(" :: ", "::");
        let line = item.span().start().line;
        for path in text.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':') {
            let names: Vec<_> = path.split("::").map(String::from).collect();
            if names.len() > 1 && names.iter().all(|name| !name.is_empty()) {
                self.add(&names, line, false);
            }
        }
    }
}

/// The module of a file: `""` is the root of the crate.
pub fn module_of(path: &str) -> String {
    let path = path.strip_suffix(".rs").unwrap();
    let path = if path == "lib" { "" } else { path.strip_suffix("/mod").unwrap_or(path) };
    path.replace('/', "::")
}

fn children(items: &[Item]) -> BTreeSet<String> {
    let name = |item: &Item| match item {
        Item::Mod(item) if item.content.is_none() => Some(item.ident.to_string()),
        _ => None,
    };
    items.iter().filter_map(name).collect()
}

fn is_export(item: &ItemUse) -> bool {
    !matches!(item.vis, Visibility::Inherited)
}

/// A path from the root of the crate, if it leads into this crate.
fn absolute(path: &[String], module: &str, children: &BTreeSet<String>) -> Option<String> {
    let mut base: Vec<&str> = module.split("::").filter(|name| !name.is_empty()).collect();
    let mut names = path.iter().map(String::as_str).peekable();
    match names.peek().copied()? {
        "crate" => {
            names.next();
            base.clear();
        }
        "self" => drop(names.next()),
        "super" => {
            while names.next_if_eq(&"super").is_some() {
                base.pop();
            }
        }
        name if children.contains(name) => {}
        _ => return None,
    }
    base.extend(names.filter(|name| *name != "self"));
    Some(base.join("::"))
}

/// The paths of a `use` declaration, and the name that each gets.
fn leaves(tree: &UseTree) -> Vec<(Vec<String>, String)> {
    let below = |name: String, tree: &UseTree| {
        let mut paths = leaves(tree);
        for (path, alias) in &mut paths {
            if alias == "self" {
                *alias = name.clone();
            }
            path.insert(0, name.clone());
        }
        paths
    };
    match tree {
        UseTree::Path(tree) => below(tree.ident.to_string(), &tree.tree),
        UseTree::Name(tree) => vec![(vec![tree.ident.to_string()], tree.ident.to_string())],
        UseTree::Rename(tree) => vec![(vec![tree.ident.to_string()], tree.rename.to_string())],
        UseTree::Glob(_) => vec![(vec!["*".into()], "*".into())],
        UseTree::Group(tree) => tree.items.iter().flat_map(leaves).collect(),
    }
}
