//! Every field of every config, with values of every type and size.

use crate::*;
use serde::Deserialize;
use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
};

/// What is known of fields, by their names: `fields.json`.
#[derive(Deserialize)]
struct Known {
    /// By family, fields that published configs have and from which no number of the family follows.
    unread: HashMap<String, Vec<String>>,
    /// Fields whose zero means "none of them".
    may_be_zero: Vec<String>,
    /// Fields that may be any number.
    may_be_negative: Vec<String>,
    /// Fields of which absurd values make numbers overflow.
    may_overflow: Vec<String>,
    /// Fields that are written as integers and need not be.
    may_be_fractions: Vec<String>,
    /// Fields that are checked against others, which the error may name instead.
    tied: HashMap<String, Vec<String>>,
    /// The entries of `tied` that an error has needed.
    #[serde(skip)]
    used: RefCell<BTreeSet<(String, String)>>,
    /// How often each field has got each of its values.
    #[serde(skip)]
    tried: RefCell<HashMap<(String, String), usize>>,
}

impl Known {
    fn read() -> Known {
        serde_json::from_str(include_str!("fields.json")).unwrap()
    }

    /// Whether an error is about a field or, where several are at odds, one that it is tied to.
    fn names(&self, error: &Error, path: &str) -> bool {
        let (Error::Config { field, reason, .. } | Error::Unsupported { field, reason, .. }) =
            error
        else {
            return false;
        };
        let name = path.rsplit('/').next().unwrap();
        let parent = path.split('/').nth(1).unwrap();
        let mut named = field.split(['.', '[', ']']);
        let mut words = reason.split(|c: char| !c.is_alphanumeric() && c != '_');
        if named.any(|part| part == name || part == parent) || words.any(|word| word == name) {
            return true;
        }
        let last = field.rsplit('.').next().unwrap();
        let tied = self.tied.get(name).into_iter().flatten();
        let found = tied.into_iter().find(|other| *other == last || *other == field);
        if let Some(other) = found {
            self.used.borrow_mut().insert((name.into(), other.clone()));
        }
        found.is_some()
    }

    /// Whether a family tries a value of a field. Most families read a field in the same way: the
    /// first three with it try every value, and of the others every fourth, in turns.
    fn tries(&self, name: &str, value: &Option<Json>) -> bool {
        const ALL: usize = 3;
        let mut tried = self.tried.borrow_mut();
        let count = tried.entry((name.into(), format!("{value:?}"))).or_default();
        *count += 1;
        let turn = format!("{name}{value:?}").bytes().map(usize::from).sum::<usize>();
        *count <= ALL || (*count + turn).is_multiple_of(4) || self.tied.contains_key(name)
    }

    /// The entries of `tied` that no error needs.
    fn unused(&self) -> Vec<String> {
        let used = self.used.borrow();
        let all = self.tied.iter().flat_map(|(field, others)| {
            others.iter().map(move |other| (field.clone(), other.clone()))
        });
        let unused = all.filter(|pair| !used.contains(pair));
        unused.map(|(field, other)| format!("{field} is tied to {other} for nothing")).collect()
    }
}

/// The fields of an object and of the objects in it, as paths.
fn fields(config: &Json, prefix: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for (name, value) in config.as_object().into_iter().flatten() {
        let path = format!("{prefix}/{name}");
        paths.extend(fields(value, &path));
        paths.push(path);
    }
    paths
}

fn with(config: &Json, path: &str, value: Option<Json>) -> Json {
    let mut config = config.clone();
    let (parent, name) = path.rsplit_once('/').unwrap();
    let parent = config.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    match value {
        Some(value) => drop(parent.insert(name.into(), value)),
        None => drop(parent.remove(name)),
    }
    config
}

/// Whether an error says that the tensors have other sizes than the config.
fn is_about_tensors(error: &Error) -> bool {
    match error {
        Error::TensorShape { .. } | Error::MissingTensor(_) | Error::UnusedTensors(_) => true,
        // The packed elements and the scales of a matrix do not fit a size.
        Error::Quantization { reason, .. } => reason.contains("is no format of MLX"),
        _ => false,
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// The field is gone or null: it may have a default, which may not fit.
    Gone,
    /// A value of another type.
    Mistyped,
    /// An integer that no such field can have.
    Impossible,
    /// A number that the field could have in another model.
    Other,
}

fn values(known: &Known, old: &Json, name: &str) -> Vec<(Kind, Option<Json>)> {
    use Kind::*;
    let mut values = vec![(Gone, None), (Gone, Some(Json::Null))];
    let mut mistyped = vec![json!("?"), json!([]), json!([[]]), json!({}), json!(true), json!(7)];
    mistyped.retain(|value| match (old, value) {
        (Json::String(_), Json::String(_)) | (Json::Bool(_), Json::Bool(_)) => false,
        (Json::Number(_), Json::Number(_)) => false,
        (Json::Array(_), Json::Array(list)) => !list.is_empty(),
        // A sequence fills the fields of a struct, and an empty object its defaults.
        (Json::Object(_), Json::Object(_) | Json::Array(_)) => false,
        // One width for all layers, or one for each.
        (Json::Array(_), Json::Number(_)) => {
            !["intermediate_size", "rope_theta", "image_size", "patch_size"].contains(&name)
        }
        // Configs have had both.
        (Json::Bool(_), Json::Number(_)) => name != "attn_temperature_tuning",
        (Json::String(_), Json::Number(_)) => name != "sliding_window_pattern",
        (Json::Null, _) => false,
        _ => true,
    });
    values.extend(mistyped.into_iter().map(|value| (Mistyped, Some(value))));
    if old.is_i64() || old.is_f64() {
        let negative = if has(&known.may_be_negative, name) { Other } else { Impossible };
        let zero = if has(&known.may_be_zero, name) { Other } else { negative };
        values.push((zero, Some(json!(0))));
        values.push((negative, Some(json!(-1))));
        values.push((Other, Some(json!(1))));
        values.push((Other, Some(json!(3))));
        values.push((Other, Some(json!(1_000_000_000))));
        values.push((Impossible, Some(json!({"__float__": "NaN"}))));
        values.push((Impossible, Some(json!({"__float__": "-Infinity"}))));
    }
    if old.is_i64() {
        let sizes = [1i64 << 24, (1 << 24) + 1, i64::from(i32::MAX), 1 << 31, 1 << 40, i64::MAX];
        values.extend(sizes.map(|size| (Other, Some(json!(size)))));
        let kind = if has(&known.may_be_fractions, name) { Other } else { Mistyped };
        values.push((kind, Some(json!(1.5))));
    }
    if old.is_f64() {
        values.extend([1e-40, 1e30, 1e300].map(|value| (Other, Some(json!(value)))));
    }
    values
}

fn has(names: &[String], name: &str) -> bool {
    names.iter().any(|known| known == name)
}

fn check_fields(known: &Known, family: &str, config: &Json, folder: &Path) -> Vec<String> {
    let unread = known.unread.get(family).map_or(&[][..], |fields| fields);
    let mut failures = Vec::new();
    for path in fields(config, "") {
        let name = path.rsplit('/').next().unwrap();
        for (kind, value) in values(known, config.pointer(&path).unwrap(), name) {
            if !known.tries(name, &value) {
                continue;
            }
            let changed = with(config, &path, value.clone());
            put(folder, CONFIG, changed.to_string());
            let fits = match attempt(folder) {
                Ok(_) => kind == Kind::Gone || kind == Kind::Other || has(unread, name),
                Err(Error::UnknownModelType { .. }) => name == "model_type",
                Err(Error::ContextOverflow { .. }) => {
                    ["max_position_embeddings", "n_positions"].contains(&name)
                }
                Err(error) if kind == Kind::Impossible || kind == Kind::Mistyped => {
                    known.names(&error, &path)
                }
                Err(Error::NotANumber { .. }) => has(&known.may_overflow, name),
                Err(error) => known.names(&error, &path) || is_about_tensors(&error),
            };
            if !fits {
                let outcome = match attempt(folder) {
                    Ok(_) => "succeeds".to_string(),
                    Err(error) => format!("{} {error}", variant(&error)),
                };
                failures.push(format!("{family} {path} = {value:?}: {outcome}"));
            }
        }
        goes_on();
    }
    failures
}

/// The process survives each field of each config with values of every type and size.
#[test]
fn every_field_of_every_family() {
    let known = Known::read();
    let mut failures = Vec::new();
    for (family, case) in families() {
        let folder = write(&case);
        failures.extend(check_fields(&known, &family, &case.config, folder.path()));
    }
    failures.extend(known.unused());
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}
