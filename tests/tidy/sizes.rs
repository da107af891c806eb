//! How large files, structs and lists of arguments are, counted where the code is used.

use crate::{Imports, Source, module_of, none};
use std::collections::{BTreeMap, BTreeSet};
use syn::{
    Expr, Fields, FnArg, GenericArgument, ItemImpl, ItemStruct, PathArguments, Signature, Type,
    spanned::Spanned,
    visit::{self, Visit},
};

/// Lines of code that a file of a family has at most.
const FAMILY_FILE: usize = 300;
/// Lines of code that a file of `layers/` has at most.
const LAYERS_FILE: usize = 200;
/// The files of `layers/` that are longer, with their limits and reasons.
const LONGER: &[(&str, usize, &str)] = &[
    ("layers/linear.rs", 256, "three kinds of matrices, with adapters and rotations of each"),
    (
        "layers/attention/grouped.rs",
        210,
        "the layouts of four projections, and what varies between them",
    ),
    (
        "layers/attention/kv_cache.rs",
        240,
        "growing, ring and quantized buffers, and their verify passes",
    ),
    (
        "layers/position/rope.rs",
        220,
        "every scaling of the rotation, from one position or from many",
    ),
    ("layers/state.rs", 250, "three kinds of states, each with all operations of a cache"),
];
/// Fields that a struct of a layer, a model or a family has at most.
const FIELDS: usize = 12;
/// Arguments that a function has at most, beside `self`.
const ARGUMENTS: usize = 5;
/// Arguments without names for their elements that each file still has. New ones are refused, and an
/// entry that is too large is too.
const UNNAMED: &[(&str, usize)] = &[
    ("checkpoint/config/numbers.rs", 1),
    ("layers/attention/bidirectional.rs", 1),
    ("layers/attention/cross.rs", 1),
    ("layers/attention/gated.rs", 1),
    ("layers/attention/grouped.rs", 8),
    ("layers/attention/indexer.rs", 1),
    ("layers/attention/mla.rs", 1),
    ("layers/attention/quantized.rs", 1),
];

#[test]
fn families_are_short() {
    let sources = Source::all();
    let imports = Imports::of(&sources);
    let mut families: BTreeMap<&str, usize> = BTreeMap::new();
    let mut users: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut breaches = Vec::new();
    for source in &sources {
        let Some(family) = source.family() else { continue };
        let lines = source.code().count();
        *families.entry(family).or_default() += lines;
        if lines > FAMILY_FILE {
            breaches.push(format!("{}: {lines} lines of code", source.path));
        }
        for module in imports.reachable(&module_of(&source.path)) {
            users.entry(module).or_default().insert(family);
        }
    }
    let own: usize = families.values().sum();
    // What only one family imports is the family's, wherever it stands. A family that imports another
    // one counts as a user of what that one imports.
    let mut lent = Vec::new();
    for source in sources.iter().filter(|source| source.is_in("layers/")) {
        let users = users.get(module_of(&source.path).as_str());
        if let Some(users) = users.filter(|users| users.len() == 1) {
            let (family, lines) = (users.first().unwrap(), source.code().count());
            *families.get_mut(family).unwrap() += lines;
            lent.push(format!("{} ({lines} lines, {family})", source.path));
        }
    }
    let all: usize = families.values().sum();
    let (longest, lines) = families.iter().max_by_key(|(_, lines)| **lines).unwrap();
    let summary = format!(
        "{} families of {:.1} lines of code on average, {:.1} of them in their own files; the longest \
         is {longest} with {lines}; in layers/ for one family: {lent:?}",
        families.len(),
        all as f64 / families.len() as f64,
        own as f64 / families.len() as f64,
    );
    println!("{summary}");
    none(&format!("a file of a family is too long ({summary})"), breaches);
}

#[test]
fn layers_are_small() {
    let mut breaches = Vec::new();
    for source in Source::all().iter().filter(|source| source.is_in("layers/")) {
        let lines = source.code().count();
        let longer = LONGER.iter().find(|(path, ..)| *path == source.path);
        let limit = longer.map_or(LAYERS_FILE, |(_, limit, _)| *limit);
        if lines > limit || longer.is_some() && lines <= LAYERS_FILE {
            breaches.push(format!("{}: {lines} lines of code, the limit is {limit}", source.path));
        }
    }
    none("a file of layers/ is too long, or no longer an exception", breaches);
}

/// Structs with more fields than they may have.
struct Structs<'a>(&'a Source, Vec<String>);

impl<'a> Visit<'a> for Structs<'_> {
    fn visit_item_struct(&mut self, item: &'a ItemStruct) {
        let Fields::Named(fields) = &item.fields else { return };
        let count: usize = fields.named.iter().map(|field| elements(&field.ty)).sum();
        if count > FIELDS {
            let line = item.ident.span().start().line;
            self.1.push(format!("{}:{line}: {} has {count} fields", self.0.path, item.ident));
        }
    }
}

/// The fields that a field is: an unnamed tuple is one for each of its elements.
fn elements(ty: &Type) -> usize {
    match ty {
        Type::Tuple(tuple) => tuple.elems.iter().map(elements).sum(),
        Type::Reference(reference) => elements(&reference.elem),
        Type::Path(path) => {
            let Some(last) = path.path.segments.last() else { return 1 };
            let PathArguments::AngleBracketed(arguments) = &last.arguments else { return 1 };
            let inner = arguments.args.iter().filter_map(|argument| match argument {
                GenericArgument::Type(ty) => Some(elements(ty)),
                _ => None,
            });
            // A list of pairs is a list; an optional pair is a pair.
            if last.ident == "Option" { inner.sum() } else { 1 }
        }
        _ => 1,
    }
}

#[test]
fn structs_have_few_fields() {
    let mut breaches = Vec::new();
    for source in Source::all() {
        if ["layers/", "models/", "families/"].iter().any(|folder| source.is_in(folder)) {
            let mut structs = Structs(&source, Vec::new());
            source.items.iter().for_each(|item| structs.visit_item(item));
            breaches.extend(structs.1);
        }
    }
    none("a struct has too many fields", breaches);
}

/// Functions with too many arguments, and arguments whose elements have no names.
struct Functions<'a> {
    source: &'a Source,
    long: Vec<String>,
    unnamed: Vec<String>,
}

impl<'a> Visit<'a> for Functions<'_> {
    /// The arguments of a trait's functions are the trait's.
    fn visit_item_impl(&mut self, item: &'a ItemImpl) {
        if item.trait_.is_none() {
            visit::visit_item_impl(self, item);
        }
    }

    fn visit_signature(&mut self, signature: &'a Signature) {
        let arguments = signature.inputs.iter().filter_map(|argument| match argument {
            FnArg::Typed(argument) => Some(argument),
            FnArg::Receiver(_) => None,
        });
        let line = signature.ident.span().start().line;
        let place = format!("{}:{line}: {}", self.source.path, signature.ident);
        if arguments.clone().count() > ARGUMENTS {
            self.long.push(format!("{place} has {} arguments", arguments.clone().count()));
        }
        let unnamed = arguments.filter(|argument| is_unnamed(&argument.ty)).map(|argument| {
            let text = argument.span().source_text().unwrap_or_default();
            format!("{place}: {text}")
        });
        self.unnamed.extend(unnamed);
        visit::visit_signature(self, signature);
    }
}

/// Whether a type has elements that only their order tells apart: a tuple, or an array of a few.
fn is_unnamed(ty: &Type) -> bool {
    match ty {
        Type::Tuple(tuple) => tuple.elems.len() > 1,
        Type::Array(array) => {
            let is_few = matches!(&array.len, Expr::Lit(_));
            let is_bytes = matches!(&*array.elem, Type::Path(path) if path.path.is_ident("u8"));
            is_few && !is_bytes
        }
        Type::Reference(reference) => is_unnamed(&reference.elem),
        Type::Path(path) => {
            let Some(last) = path.path.segments.last() else { return false };
            let PathArguments::AngleBracketed(arguments) = &last.arguments else { return false };
            last.ident == "Option"
                && arguments
                    .args
                    .iter()
                    .any(|argument| matches!(argument, GenericArgument::Type(ty) if is_unnamed(ty)))
        }
        _ => false,
    }
}

#[test]
fn functions_have_few_arguments_and_each_has_a_name() {
    let (mut breaches, mut all) = (Vec::new(), 0);
    let sources = Source::all();
    for source in &sources {
        let mut functions = Functions { source, long: Vec::new(), unnamed: Vec::new() };
        source.items.iter().for_each(|item| functions.visit_item(item));
        breaches.extend(functions.long);
        let count = functions.unnamed.len();
        let known =
            UNNAMED.iter().find(|(path, _)| *path == source.path).map_or(0, |known| known.1);
        if count > known {
            breaches.extend(functions.unnamed);
        } else if count < known {
            breaches.push(format!("{}: {count} are left, say so in UNNAMED", source.path));
        }
        all += count;
    }
    for (path, _) in UNNAMED {
        if !sources.iter().any(|source| source.path == *path) {
            breaches.push(format!("{path} of UNNAMED does not exist"));
        }
    }
    println!("{all} arguments have elements without names");
    none("arguments that a reader cannot tell apart, or too many", breaches);
}
