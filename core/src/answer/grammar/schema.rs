//! Makes a JSON schema ready for llguidance: refuses keywords that a grammar cannot hold to, resolves
//! references, and narrows what decoders of JSON refuse.
//!
//! The keywords are those of [JSON Schema 2020-12](https://json-schema.org/draft/2020-12), with lists in
//! `items` as before it.

use crate::answer::{
    schema,
    string_rules::{DATE, TIME},
};
use serde_json::{Map, Value as Json, json};
use std::collections::HashSet;

/// The longest schema in bytes of JSON, and the deepest nesting.
const LONGEST: usize = 1_000_000;
const DEEPEST: usize = 64;

/// The keywords that a grammar holds to, by what they contain.
const ONE: [&str; 3] = ["items", "additionalItems", "additionalProperties"];
const LISTS: [&str; 4] = ["anyOf", "oneOf", "allOf", "prefixItems"];
const NAMED: [&str; 2] = ["properties", "patternProperties"];
const VALUES: [&str; 16] = [
    "type",
    "enum",
    "const",
    "required",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "minLength",
    "maxLength",
    "pattern",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
];

/// The keywords that restrict values in ways that no grammar holds to.
const REFUSED: [&str; 18] = [
    "not",
    "if",
    "then",
    "else",
    "contains",
    "minContains",
    "maxContains",
    "uniqueItems",
    "propertyNames",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedItems",
    "unevaluatedProperties",
    "contentSchema",
    "$dynamicRef",
    "$recursiveRef",
    "disallow",
];

/// The values of `format` that llguidance knows. Its patterns of days have the 29th of February of every
/// year, so those are this library's.
const FORMATS: [&str; 7] = ["duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];

/// Beyond it, a number does not fit an integer of 64 bits.
const LARGEST: f64 = 9.2e18;

/// Space between the tokens of JSON. Without a bound, a model that likes space would never end.
const SPACE: &str = r"[ \t]{1,40}|\r?\n[ \t]{0,40}";

/// A schema as llguidance compiles it.
#[derive(Debug)]
pub(super) struct Prepared {
    pub schema: Json,
    /// What `$defs/r0`, `$defs/r1`, … were in the original.
    targets: Vec<Target>,
}

/// A part of a schema to which references lead.
#[derive(Clone, Debug, PartialEq)]
struct Target {
    /// Its JSON pointer.
    pointer: String,
    is_combined: bool,
}

impl Prepared {
    /// Prepares a schema.
    ///
    /// # Errors
    /// A reason with the keyword and its JSON pointer.
    pub fn of(original: &Json) -> Result<Self, String> {
        if original.to_string().len() > LONGEST {
            return Err(format!("it is longer than {LONGEST} bytes"));
        }
        let mut preparation = Preparation { root: original, targets: Vec::new() };
        let mut schema = match preparation.part(original, &Place::default())? {
            Json::Object(fields) => fields,
            _ => return Err("it admits no value".into()),
        };
        let (mut definitions, mut next) = (Map::new(), 0);
        definitions.insert("any".into(), any());
        while let Some(Target { pointer, is_combined }) = preparation.targets.get(next).cloned() {
            let target = schema::resolve(&format!("#{pointer}"), original).unwrap_or(&Json::Null);
            let target = preparation.part(target, &Place { pointer, depth: 0, is_combined })?;
            definitions.insert(format!("r{next}"), target);
            next += 1;
        }
        schema.insert("$defs".into(), definitions.into());
        schema.insert("x-guidance".into(), json!({"whitespace_pattern": SPACE}));
        let schema = Json::Object(schema);
        if !Ends::of(&schema).part(&schema) {
            return Err("it requires itself, so no value of it ends".into());
        }
        Ok(Prepared { schema, targets: preparation.targets })
    }

    /// The JSON pointer of the smallest part that `fails`, which gets parts as whole schemas.
    pub fn place(&self, fails: &dyn Fn(Json) -> bool) -> Option<String> {
        let defs = &self.schema["$defs"];
        let mut left = MOST_PARTS;
        let mut fails = |part: &Json| {
            left = left.saturating_sub(1);
            let mut whole = part.clone();
            if let Json::Object(fields) = &mut whole {
                fields.insert("$defs".into(), defs.clone());
            }
            left > 0 && fails(whole)
        };
        let targets = (0..).zip(&self.targets);
        let part = |(n, target): (usize, &Target)| Part {
            pointer: target.pointer.clone(),
            schema: &defs[format!("r{n}")],
        };
        let mut parts: Vec<Part> = targets.map(part).collect();
        parts.push(Part { pointer: String::new(), schema: &self.schema });
        let mut found = parts.into_iter().find(|part| fails(part.schema))?;
        while let Some(smaller) = found.parts().into_iter().find(|part| fails(part.schema)) {
            found = smaller;
        }
        let keywords = found.schema.as_object().into_iter().flat_map(Map::keys);
        let cause = keywords.filter(|key| !["$defs", "type"].contains(&key.as_str())).find(|key| {
            let mut rest = found.schema.clone();
            rest.as_object_mut().and_then(|fields| fields.shift_remove(*key));
            !fails(&rest)
        });
        let cause = cause.map(|key| format!("/{key}")).unwrap_or_default();
        Some(format!("{}{cause}", found.pointer)).filter(|pointer| !pointer.is_empty())
    }
}

/// The most parts that are compiled to find the one that fails.
const MOST_PARTS: usize = 200;

/// A part of a prepared schema, and where it is in the original.
struct Part<'a> {
    pointer: String,
    schema: &'a Json,
}

impl<'a> Part<'a> {
    /// The schemas inside of it.
    fn parts(&self) -> Vec<Part<'a>> {
        let fields = self.schema.as_object().into_iter().flatten();
        let inner = fields.flat_map(|(key, value)| {
            let pointer = format!("{}/{key}", self.pointer);
            let part = |key: String, schema| Part { pointer: format!("{pointer}/{key}"), schema };
            match value {
                Json::Array(parts) if LISTS.contains(&key.as_str()) || key == "items" => (0..)
                    .zip(parts)
                    .map(|(at, schema)| part(usize::to_string(&at), schema))
                    .collect(),
                Json::Object(parts) if NAMED.contains(&key.as_str()) => {
                    parts.iter().map(|(key, schema)| part(escaped(key), schema)).collect()
                }
                schema if ONE.contains(&key.as_str()) => vec![Part { pointer, schema }],
                _ => Vec::new(),
            }
        });
        inner.collect()
    }
}

/// A key in a JSON pointer.
fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// A place in a schema.
#[derive(Default)]
struct Place {
    /// The JSON pointer.
    pointer: String,
    depth: usize,
    /// Whether the values of this part may have to be valid under another part too.
    is_combined: bool,
}

impl Place {
    fn below(&self, key: &str) -> Self {
        let pointer = format!("{}/{}", self.pointer, escaped(key));
        Place { pointer, depth: self.depth + 1, is_combined: self.is_combined }
    }

    fn refused<T>(&self, what: &str) -> Result<T, String> {
        let pointer = if self.pointer.is_empty() { "/" } else { &self.pointer };
        Err(format!("`{pointer}` {what}"))
    }
}

struct Preparation<'a> {
    root: &'a Json,
    targets: Vec<Target>,
}

impl Preparation<'_> {
    fn part(&mut self, schema: &Json, place: &Place) -> Result<Json, String> {
        if place.depth > DEEPEST {
            return place.refused("is nested too deeply");
        }
        let fields = match schema {
            Json::Bool(true) if !place.is_combined => return Ok(any_value()),
            Json::Bool(_) => return Ok(schema.clone()),
            Json::Object(fields) => fields,
            _ => return place.refused("is no JSON schema"),
        };
        let combines = |key: &str| fields.contains_key(key);
        let is_combined = ["allOf", "anyOf", "oneOf"].into_iter().any(combines)
            || combines("$ref") && fields.len() > 1;
        let place = &Place {
            pointer: place.pointer.clone(),
            is_combined: place.is_combined || is_combined,
            ..*place
        };
        let (mut prepared, mut patterns) = (Map::new(), Vec::new());
        for (key, value) in fields {
            let (name, below) = (key.as_str(), place.below(key));
            let value = match value {
                Json::Array(parts) if LISTS.contains(&name) || name == "items" => {
                    let parts = parts.iter().enumerate();
                    let part = |(at, part)| self.part(part, &below.below(&usize::to_string(&at)));
                    parts.map(part).collect::<Result<Json, _>>()?
                }
                Json::Object(parts) if NAMED.contains(&name) => {
                    let part = |(key, part): (&String, &Json)| {
                        Ok((key.clone(), self.part(part, &below.below(key))?))
                    };
                    Json::Object(parts.iter().map(part).collect::<Result<_, String>>()?)
                }
                _ if LISTS.contains(&name) => return below.refused("is no list of schemas"),
                _ if NAMED.contains(&name) => return below.refused("is no object of schemas"),
                _ if ONE.contains(&name) => self.part(value, &below)?,
                _ if VALUES.contains(&name) => value.clone(),
                Json::String(reference) if name == "$ref" => self.reference(reference, &below)?,
                Json::String(format) if name == "format" => match pattern(format) {
                    Some(pattern) => {
                        patterns.push(json!({"pattern": pattern}));
                        continue;
                    }
                    None if FORMATS.contains(&format.as_str()) => value.clone(),
                    None => return below.refused(&format!("is the format `{format}`, {REFUSAL}")),
                },
                _ if ["$ref", "format"].contains(&name) => return below.refused("is no text"),
                Json::Bool(false) if name == "uniqueItems" => continue,
                _ if REFUSED.contains(&name) => return below.refused(REFUSAL),
                // Annotations, and definitions, which references lead to.
                _ => continue,
            };
            prepared.insert(key.clone(), value);
        }
        if let Some(Json::Array(parts)) = prepared.get_mut("allOf") {
            parts.append(&mut patterns);
        } else if !patterns.is_empty() {
            prepared.insert("allOf".into(), patterns.into());
        }
        check_names(&prepared, place)?;
        bound_numbers(&mut prepared);
        if !place.is_combined {
            bound_others(&mut prepared);
        }
        Ok(Json::Object(prepared))
    }

    /// A reference to the definition that this schema has for its target.
    fn reference(&mut self, reference: &str, place: &Place) -> Result<Json, String> {
        let Some(pointer) = reference.strip_prefix('#') else {
            return place.refused("refers to another document; put the schema into `$defs`");
        };
        if schema::resolve(reference, self.root).is_none() {
            return place.refused(&format!("refers to `{reference}`, which is not in the schema"));
        }
        let target = Target { pointer: pointer.into(), is_combined: place.is_combined };
        let known = self.targets.iter().position(|known| *known == target);
        let index = known.unwrap_or_else(|| {
            self.targets.push(target);
            self.targets.len() - 1
        });
        Ok(format!("#/$defs/r{index}").into())
    }
}

const REFUSAL: &str =
    "which cannot be enforced while a model writes; leave it out, and check the answer";

/// The pattern in place of a format of days and times.
fn pattern(format: &str) -> Option<String> {
    match format {
        "date" => Some(format!("^{DATE}$")),
        "time" => Some(format!("^{TIME}$")),
        "date-time" => Some(format!("^{DATE}T{TIME}$")),
        _ => None,
    }
}

/// Refuses a number of properties that a grammar would reach by the same name twice.
fn check_names(fields: &Map<String, Json>, place: &Place) -> Result<(), String> {
    let required = fields.get("required").and_then(Json::as_array).map_or(0, Vec::len) as u64;
    let least = fields.get("minProperties").and_then(Json::as_u64).unwrap_or(0);
    let is_closed = fields.get("additionalProperties") == Some(&Json::Bool(false));
    if least > required + 1 && (!is_closed || fields.contains_key("patternProperties")) {
        return place.below("minProperties").refused(
            "asks for properties without names, which may repeat; list them in `required`",
        );
    }
    Ok(())
}

/// Bounds numbers, so that they are written without an exponent and fit 64 bits.
fn bound_numbers(fields: &mut Map<String, Json>) {
    let is_number = |name: &Json| ["number", "integer"].iter().any(|number| name == number);
    let has_numbers = match fields.get("type") {
        Some(Json::Array(names)) => names.iter().any(is_number),
        Some(name) => is_number(name),
        None => false,
    };
    let bound = |name: &str| fields.get(name).and_then(Json::as_f64);
    let least = bound("minimum").or(bound("exclusiveMinimum"));
    let most = bound("maximum").or(bound("exclusiveMaximum"));
    if has_numbers && least.is_none() && most.is_none_or(|most| most > -LARGEST) {
        fields.insert("minimum".into(), (-LARGEST).into());
    }
    if has_numbers && most.is_none() && least.is_none_or(|least| least < LARGEST) {
        fields.insert("maximum".into(), LARGEST.into());
    }
}

/// The schema of any value, with bounded numbers.
fn any() -> Json {
    let number = json!({"type": "number", "minimum": -LARGEST, "maximum": LARGEST});
    json!({"anyOf": [
        {"type": "null"}, {"type": "boolean"}, {"type": "string"}, number,
        {"type": "array", "items": any_value()},
        {"type": "object", "additionalProperties": any_value()},
    ]})
}

fn any_value() -> Json {
    json!({"$ref": "#/$defs/any"})
}

/// Bounds the numbers in what a schema leaves open.
fn bound_others(fields: &mut Map<String, Json>) {
    let is = |name: &str| fields.get("type").is_some_and(|known| known == name);
    let (is_object, is_array) = (is("object"), is("array"));
    if fields.is_empty() {
        fields.insert("$ref".into(), "#/$defs/any".into());
    } else if is_object {
        fields.entry("additionalProperties").or_insert_with(any_value);
    } else if is_array {
        fields.entry("items").or_insert_with(any_value);
    }
}

/// Finds schemas that admit only values without an end.
struct Ends<'a> {
    root: &'a Json,
    /// The references that are being followed, and those that lead to values that end.
    open: HashSet<&'a str>,
    known: HashSet<&'a str>,
}

impl<'a> Ends<'a> {
    fn of(root: &'a Json) -> Self {
        Ends { root, open: HashSet::new(), known: HashSet::new() }
    }

    /// Whether a value of a part may end.
    fn part(&mut self, schema: &'a Json) -> bool {
        let Json::Object(fields) = schema else { return *schema == Json::Bool(true) };
        if let Some(Json::String(reference)) = fields.get("$ref")
            && !self.reference(reference)
        {
            return false;
        }
        let list = |name: &str| fields.get(name).and_then(Json::as_array);
        let all_end = list("allOf").is_none_or(|parts| parts.iter().all(|part| self.part(part)));
        let some_ends = ["anyOf", "oneOf"]
            .iter()
            .all(|name| list(name).is_none_or(|parts| parts.iter().any(|part| self.part(part))));
        all_end && some_ends && self.contents(fields)
    }

    /// Whether what an object or a list must contain ends.
    fn contents(&mut self, fields: &'a Map<String, Json>) -> bool {
        let count = |name: &str| fields.get(name).and_then(Json::as_u64).unwrap_or(0) as usize;
        match fields.get("type").and_then(Json::as_str) {
            Some("object") => {
                let required = fields.get("required").and_then(Json::as_array);
                let known = fields.get("properties");
                let mut names = required.into_iter().flatten().filter_map(Json::as_str);
                names.all(|name| {
                    known.and_then(|known| known.get(name)).is_none_or(|part| self.part(part))
                })
            }
            Some("array") => {
                let listed = fields.get("prefixItems").and_then(Json::as_array);
                let listed: Vec<_> = listed.into_iter().flatten().collect();
                let least = count("minItems");
                let rest = fields.get("items").filter(|_| least > listed.len());
                listed
                    .into_iter()
                    .take(least)
                    .chain(rest.filter(|rest| rest.is_object()))
                    .all(|part| self.part(part))
            }
            _ => true,
        }
    }

    fn reference(&mut self, reference: &'a str) -> bool {
        if self.known.contains(reference) {
            return true;
        }
        if !self.open.insert(reference) {
            return false;
        }
        let target = schema::resolve(reference, self.root);
        let ends = target.is_none_or(|target| self.part(target));
        self.open.remove(reference);
        if ends {
            self.known.insert(reference);
        }
        ends
    }
}
