//! JSON schemas: whether a schema is one, whether a value fits, and what a text means under one.

mod values;

pub(super) use values::check;

use crate::answer::{language::Language, string_rules};
use serde_json::Value as Json;

/// The deepest nesting of values and references that is followed.
const DEEPEST: usize = 64;

const TYPES: [&str; 7] = ["null", "boolean", "object", "array", "number", "integer", "string"];

/// The keywords whose value is a schema, a list of schemas, or schemas by name.
const ONE: [&str; 9] = [
    "items",
    "additionalItems",
    "additionalProperties",
    "not",
    "if",
    "then",
    "else",
    "contains",
    "propertyNames",
];
const LISTS: [&str; 4] = ["anyOf", "oneOf", "allOf", "prefixItems"];
const NAMED: [&str; 5] =
    ["properties", "$defs", "definitions", "patternProperties", "dependentSchemas"];

/// The keywords that are not checked.
const UNKNOWN: [&str; 6] = [
    "unevaluatedItems",
    "unevaluatedProperties",
    "dependencies",
    "contentSchema",
    "$dynamicRef",
    "$recursiveRef",
];

/// Whether a schema is well formed. The reason names the place.
pub(super) fn check_schema(schema: &Json) -> Result<(), String> {
    check_part(schema, schema, "", 0)
}

fn check_part(schema: &Json, root: &Json, path: &str, depth: usize) -> Result<(), String> {
    let place = path.strip_prefix('.').map_or("the schema".into(), |path| format!("`{path}`"));
    let fail = |what: &str| Err(format!("{place} {what}"));
    if depth > DEEPEST {
        return fail("is nested too deeply");
    }
    let Json::Object(fields) = schema else {
        return if schema.is_boolean() { Ok(()) } else { fail("is no JSON schema") };
    };
    match fields.get("type") {
        Some(Json::String(name)) if !TYPES.contains(&name.as_str()) => {
            return fail(&format!("has the unknown `type` \"{name}\""));
        }
        Some(Json::Array(names))
            if !names.iter().all(|name| name.as_str().is_some_and(|n| TYPES.contains(&n))) =>
        {
            return fail("has an unknown `type`");
        }
        None | Some(Json::String(_) | Json::Array(_)) => {}
        _ => return fail("has a `type` that is no name"),
    }
    if let Some(reference) = fields.get("$ref") {
        let mut target = schema;
        for _ in 0..=DEEPEST {
            let Some(next) = target.get("$ref") else { break };
            let Some(found) = next.as_str().and_then(|name| resolve(name, root)) else {
                return fail(&format!("has a `$ref` to {reference}, which is not in the schema"));
            };
            target = found;
        }
        if target.get("$ref").is_some() {
            return fail("refers to itself through `$ref`");
        }
    }
    for (name, value) in fields {
        let below = |key: &str| format!("{path}.{key}");
        if ONE.contains(&name.as_str()) && !value.is_array() {
            check_part(value, root, &below(name), depth + 1)?;
        } else if LISTS.contains(&name.as_str()) || name == "items" {
            let Json::Array(parts) = value else {
                return fail(&format!("has a `{name}` that is no list"));
            };
            for part in parts {
                check_part(part, root, &below(name), depth + 1)?;
            }
        } else if NAMED.contains(&name.as_str()) {
            let Json::Object(parts) = value else {
                return fail(&format!("has a `{name}` that is no object"));
            };
            for (key, part) in parts {
                if name == "patternProperties" {
                    string_rules::check_pattern(key).or_else(|reason| fail(&reason))?;
                }
                check_part(part, root, &below(key), depth + 1)?;
            }
        } else if name == "pattern" {
            let pattern = value.as_str().ok_or("is no text".to_string());
            pattern.and_then(string_rules::check_pattern).or_else(|reason| fail(&reason))?;
        } else if UNKNOWN.contains(&name.as_str()) {
            return fail(&format!("has `{name}`, which arguments are not checked for"));
        } else if ["required", "enum"].contains(&name.as_str()) && !value.is_array() {
            return fail(&format!("has a `{name}` that is no list"));
        }
    }
    Ok(())
}

/// The part of a schema that a reference within it names.
pub(super) fn resolve<'a>(reference: &str, root: &'a Json) -> Option<&'a Json> {
    let pointer = reference.strip_prefix('#')?;
    root.pointer(&pointer.replace("%25", "%").replace("%24", "$"))
}

/// A schema without its reference.
pub(super) fn target<'a>(schema: &'a Json, root: &'a Json) -> &'a Json {
    let mut schema = schema;
    for _ in 0..DEEPEST {
        let Some(name) = schema.get("$ref").and_then(Json::as_str) else { break };
        let Some(found) = resolve(name, root) else { break };
        schema = found;
    }
    schema
}

/// The types that a schema admits; all of them if it does not say.
pub(super) fn types(schema: &Json, root: &Json, depth: usize) -> Vec<&'static str> {
    let schema = target(schema, root);
    let known = |name: &Json| TYPES.iter().copied().find(|known| name == *known);
    match schema.get("type") {
        Some(Json::Array(names)) => return names.iter().filter_map(known).collect(),
        Some(name) => return known(name).into_iter().collect(),
        None => {}
    }
    let values = schema.get("enum").and_then(Json::as_array);
    if let Some(values) = values.cloned().or(schema.get("const").map(|value| vec![value.clone()])) {
        return values.iter().map(type_of).collect();
    }
    for name in ["anyOf", "oneOf"] {
        if let Some(Json::Array(parts)) = schema.get(name).filter(|_| depth < DEEPEST) {
            return parts.iter().flat_map(|part| types(part, root, depth + 1)).collect();
        }
    }
    let parts = schema.get("allOf").and_then(Json::as_array).filter(|_| depth < DEEPEST);
    let mut all = TYPES.to_vec();
    for part in parts.into_iter().flatten() {
        let admitted = types(part, root, depth + 1);
        all.retain(|name| admitted.contains(name));
    }
    all
}

fn type_of(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "boolean",
        Json::Object(_) => "object",
        Json::Array(_) => "array",
        Json::Number(number) if number.is_f64() => "number",
        Json::Number(_) => "integer",
        Json::String(_) => "string",
    }
}

/// Whether values of this type may fit a schema.
pub(super) fn admits(schema: &Json, name: &str) -> bool {
    types(schema, schema, 0).contains(&name)
}

/// The schema of a property of an object.
pub(super) fn property<'a>(schema: &'a Json, name: &str, root: &'a Json) -> Option<&'a Json> {
    let schema = target(schema, root);
    let own = schema.get("properties").and_then(|properties| properties.get(name));
    let parts = ["allOf", "anyOf", "oneOf"].iter().filter_map(|key| schema.get(key)?.as_array());
    own.or_else(|| parts.flatten().find_map(|part| target(part, root).get("properties")?.get(name)))
        .or_else(|| schema.get("additionalProperties").filter(|more| more.is_object()))
}

/// Whether a text under a schema can only be a string.
pub(super) fn is_string(schema: &Json, root: &Json) -> bool {
    types(schema, root, 0).iter().all(|name| *name == "string")
}

/// A schema inside of another, to which its references point.
pub(super) struct Subschema<'a> {
    pub schema: &'a Json,
    pub root: &'a Json,
}

/// The value of a text from a format that knows only text. Without a schema it is JSON where it reads
/// as a value other than a string.
pub(super) fn coerce(text: &str, schema: Option<Subschema>) -> Json {
    let string = || Json::String(text.to_string());
    let Some(Subschema { schema, root }) = schema else {
        return literal(text).unwrap_or_else(string);
    };
    let types = types(schema, root, 0);
    let fits = |value: &Json| {
        let name = type_of(value);
        types.contains(&name) || (name == "integer" && types.contains(&"number"))
    };
    let value = literal(text).map(|value| match value.as_f64() {
        // `3.0` where only integers fit.
        Some(number) if !types.contains(&"number") && number.fract() == 0.0 => {
            if number.abs() < 9e15 { Json::from(number as i64) } else { value }
        }
        _ => value,
    });
    match value {
        Some(value) if fits(&value) => value,
        _ if types.contains(&"string") => string(),
        Some(value) => value,
        None => string(),
    }
}

/// A text as a JSON value other than a string, or as a constant of Python.
fn literal(text: &str) -> Option<Json> {
    match text.trim() {
        "True" => Some(Json::Bool(true)),
        "False" => Some(Json::Bool(false)),
        "None" => Some(Json::Null),
        text => {
            let value = serde_json::from_str(text).ok();
            let python = || text.starts_with(['[', '{']).then(|| Language::Python.value(text))?;
            value.or_else(python).filter(|value: &Json| !value.is_string())
        }
    }
}
