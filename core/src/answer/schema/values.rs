//! Whether a value fits a schema.

use super::{DEEPEST, target, type_of};
use crate::answer::string_rules;
use serde_json::{Map, Value as Json};

/// Checks a value. The reason names the place.
pub(in crate::answer) fn check(value: &Json, schema: &Json) -> Result<(), String> {
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
