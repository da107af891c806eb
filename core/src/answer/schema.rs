//! JSON schemas: whether a schema is one, whether a value fits, and what a text means under one.

use crate::answer::{language::Language, string_rules};
use serde_json::{Map, Value as Json};

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

/// Checks a value. The reason names the place.
pub(super) fn check(value: &Json, schema: &Json) -> Result<(), String> {
    check_value(value, schema, schema, &Place::default())
}

/// A place in a value.
#[derive(Default)]
struct Place {
    path: String,
    depth: usize,
}

impl Place {
    fn below(&self, key: &str) -> Self {
        let dot = if self.path.is_empty() || key.starts_with('[') { "" } else { "." };
        Place { path: format!("{}{dot}{key}", self.path), depth: self.depth + 1 }
    }

    fn same(&self) -> Self {
        Place { path: self.path.clone(), depth: self.depth + 1 }
    }

    fn name(&self) -> String {
        if self.path.is_empty() { "the value".into() } else { format!("`{}`", self.path) }
    }
}

fn check_value(value: &Json, schema: &Json, root: &Json, place: &Place) -> Result<(), String> {
    if place.depth > DEEPEST {
        return Err(format!("{} is nested too deeply", place.name()));
    }
    let schema = target(schema, root);
    let Json::Object(keywords) = schema else {
        let is_refused = *schema == Json::Bool(false);
        return if is_refused { Err(format!("{} is not allowed", place.name())) } else { Ok(()) };
    };
    let fail = |what: String| Err(format!("{} {what}", place.name()));
    let named = |name: &Json| name.as_str().is_some_and(|name| is_of_type(value, name));
    match keywords.get("type") {
        Some(Json::Array(names)) if !names.iter().any(named) => {
            let names: Vec<_> = names.iter().filter_map(Json::as_str).collect();
            return fail(format!("is not of a type among {}", names.join(", ")));
        }
        Some(name @ Json::String(text)) if !named(name) => {
            return fail(format!("is {} instead of {text}", type_of(value)));
        }
        _ => {}
    }
    if let Some(Json::Array(values)) = keywords.get("enum")
        && !values.iter().any(|listed| equal(listed, value))
    {
        return fail(format!("is none of {}", Json::Array(values.clone())));
    }
    if let Some(only) = keywords.get("const").filter(|only| !equal(only, value)) {
        return fail(format!("is not {only}"));
    }
    check_parts(value, keywords, root, place)?;
    match value {
        Json::Object(fields) => check_object(fields, keywords, root, place),
        Json::Array(items) => check_array(items, keywords, root, place),
        Json::String(text) => {
            check_bounds(text.chars().count() as f64, keywords, LENGTH, place)?;
            let rules = string_rules::check(text, keywords);
            rules.map_err(|reason| format!("{} {reason}", place.name()))
        }
        Json::Number(number) => check_number(number.as_f64().unwrap_or(0.0), keywords, place),
        Json::Null | Json::Bool(_) => Ok(()),
    }
}

/// Checks `allOf`, `anyOf`, `oneOf` and `not`.
fn check_parts(
    value: &Json,
    keywords: &Map<String, Json>,
    root: &Json,
    place: &Place,
) -> Result<(), String> {
    let parts = |name: &str| keywords.get(name).and_then(Json::as_array);
    let check = |part: &Json| check_value(value, part, root, &place.same());
    for part in parts("allOf").into_iter().flatten() {
        check(part)?;
    }
    if let Some(parts) = parts("anyOf").filter(|parts| !parts.is_empty()) {
        let first = parts.iter().map(check).reduce(|first, next| first.or(next));
        first.unwrap_or(Ok(()))?;
    }
    if let Some(parts) = parts("oneOf") {
        let fitting = parts.iter().filter(|part| check(part).is_ok()).count();
        if fitting != 1 {
            let what = if fitting == 0 { "none" } else { "more than one" };
            return Err(format!("{} fits {what} of the schemas of `oneOf`", place.name()));
        }
    }
    if let Some(condition) = keywords.get("if") {
        let branch = if check(condition).is_ok() { "then" } else { "else" };
        keywords.get(branch).map_or(Ok(()), check)?;
    }
    match keywords.get("not") {
        Some(part) if check(part).is_ok() => Err(format!("{} is not allowed", place.name())),
        _ => Ok(()),
    }
}

fn check_object(
    fields: &Map<String, Json>,
    keywords: &Map<String, Json>,
    root: &Json,
    place: &Place,
) -> Result<(), String> {
    let required = keywords.get("required").and_then(Json::as_array).into_iter().flatten();
    for name in required.filter_map(Json::as_str) {
        if !fields.contains_key(name) {
            return Err(format!("{} is missing", place.below(name).name()));
        }
    }
    check_bounds(fields.len() as f64, keywords, PROPERTIES, place)?;
    let known = |name: &str| keywords.get(name).and_then(Json::as_object);
    for (name, value) in fields {
        let below = place.below(name);
        let own = known("properties").and_then(|known| known.get(name));
        let patterns = known("patternProperties").into_iter().flatten();
        let matching = patterns.filter(|(pattern, _)| string_rules::matches(pattern, name));
        let mut schemas: Vec<&Json> = own.into_iter().chain(matching.map(|(_, s)| s)).collect();
        if schemas.is_empty() {
            schemas.extend(keywords.get("additionalProperties"));
        }
        for schema in schemas {
            check_value(value, schema, root, &below)?;
        }
        if let Some(names) = keywords.get("propertyNames") {
            check_value(&name.as_str().into(), names, root, &below)?;
        }
        let dependents = known("dependentRequired").and_then(|known| known.get(name)?.as_array());
        for dependent in dependents.into_iter().flatten().filter_map(Json::as_str) {
            if !fields.contains_key(dependent) {
                return Err(format!("{} is missing beside it", place.below(dependent).name()));
            }
        }
        if let Some(schema) = known("dependentSchemas").and_then(|known| known.get(name)) {
            check_value(&Json::Object(fields.clone()), schema, root, &place.same())?;
        }
    }
    Ok(())
}

fn check_array(
    items: &[Json],
    keywords: &Map<String, Json>,
    root: &Json,
    place: &Place,
) -> Result<(), String> {
    check_bounds(items.len() as f64, keywords, ITEMS, place)?;
    let listed = ["prefixItems", "items"].iter().find_map(|name| keywords.get(*name)?.as_array());
    let rest = keywords.get("items").filter(|items| !items.is_array());
    let rest = rest.or_else(|| keywords.get("additionalItems").filter(|_| listed.is_some()));
    for (index, item) in items.iter().enumerate() {
        let own = listed.and_then(|listed| listed.get(index)).or(rest);
        if let Some(schema) = own {
            check_value(item, schema, root, &place.below(&format!("[{index}]")))?;
        }
    }
    if let Some(schema) = keywords.get("contains") {
        let fits = |item: &&Json| check_value(item, schema, root, &place.same()).is_ok();
        let count = items.iter().filter(fits).count() as u64;
        let bound = |name: &str| keywords.get(name).and_then(Json::as_u64);
        if count < bound("minContains").unwrap_or(1) {
            return Err(format!("{} contains too few items that fit", place.name()));
        }
        if bound("maxContains").is_some_and(|most| count > most) {
            return Err(format!("{} contains too many items that fit", place.name()));
        }
    }
    let is_twice = |(index, item): (usize, &Json)| items[..index].iter().any(|i| equal(i, item));
    if keywords.get("uniqueItems") == Some(&Json::Bool(true))
        && items.iter().enumerate().any(is_twice)
    {
        return Err(format!("{} has an item twice", place.name()));
    }
    Ok(())
}

/// The two keywords that bound a count, and what is counted.
type Bounds = [&'static str; 3];

const LENGTH: Bounds = ["minLength", "maxLength", "characters"];
const ITEMS: Bounds = ["minItems", "maxItems", "items"];
const PROPERTIES: Bounds = ["minProperties", "maxProperties", "fields"];

fn check_bounds(
    count: f64,
    keywords: &Map<String, Json>,
    [min, max, things]: Bounds,
    place: &Place,
) -> Result<(), String> {
    let bound = |name: &str| keywords.get(name).and_then(Json::as_f64);
    match (bound(min), bound(max)) {
        (Some(least), _) if count < least => {
            Err(format!("{} has fewer than {least} {things}", place.name()))
        }
        (_, Some(most)) if count > most => {
            Err(format!("{} has more than {most} {things}", place.name()))
        }
        _ => Ok(()),
    }
}

fn check_number(number: f64, keywords: &Map<String, Json>, place: &Place) -> Result<(), String> {
    type Holds = fn(f64, f64) -> bool;
    let rules: [(&str, Holds, &str); 5] = [
        ("minimum", |n, bound| n >= bound, "less than"),
        ("maximum", |n, bound| n <= bound, "more than"),
        ("exclusiveMinimum", |n, bound| n > bound, "not more than"),
        ("exclusiveMaximum", |n, bound| n < bound, "not less than"),
        ("multipleOf", |n, step| (n / step - (n / step).round()).abs() < 1e-9, "no multiple of"),
    ];
    for (name, holds, what) in rules {
        if let Some(bound) = keywords.get(name).and_then(Json::as_f64)
            && !holds(number, bound)
        {
            return Err(format!("{} is {what} {bound}", place.name()));
        }
    }
    Ok(())
}

fn is_of_type(value: &Json, name: &str) -> bool {
    let is_whole = |value: &Json| value.as_f64().is_some_and(|number| number.fract() == 0.0);
    match name {
        "number" => value.is_number(),
        "integer" => is_whole(value),
        _ => type_of(value) == name,
    }
}

/// Whether two values are equal, numbers by their value.
fn equal(a: &Json, b: &Json) -> bool {
    match (a, b) {
        (Json::Number(a), Json::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        _ => a == b,
    }
}
