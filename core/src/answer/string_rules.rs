//! The keywords of JSON schemas for strings: `pattern` and `format`.

use fancy_regex::Regex;
use serde_json::{Map, Value as Json};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Days that exist, in the years 1 to 9999.
pub(super) const DATE: &str = concat!(
    "(?:(?:[0-9]{3}[1-9]|[0-9]{2}[1-9][0-9]|[0-9][1-9][0-9]{2}|[1-9][0-9]{3})-(?:",
    "(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])",
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)",
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))",
    "|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29)",
);

/// Times without leap seconds, which few decoders take.
pub(super) const TIME: &str = concat!(
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?",
    "(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])",
);

const UUID: &str = "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}";
const EMAIL: &str = r"[^@\s]+@[^@\s]+";

/// Whether a pattern is a regular expression.
pub(super) fn check_pattern(pattern: &str) -> Result<(), String> {
    let read = Regex::new(pattern).map(drop);
    read.map_err(|error| format!("has a pattern that is no regular expression: {error}"))
}

/// Whether a pattern occurs in a text.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(text).unwrap_or(false))
}

/// Checks a text. Formats beyond dates, times, addresses and UUIDs are annotations, as the
/// specification has it.
pub(super) fn check(text: &str, keywords: &Map<String, Json>) -> Result<(), String> {
    let keyword = |name: &str| keywords.get(name).and_then(Json::as_str);
    if let Some(pattern) = keyword("pattern").filter(|pattern| !matches(pattern, text)) {
        return Err(format!("does not match `{pattern}`"));
    }
    let whole = |pattern: &str| matches(&format!("^(?:{pattern})$"), text);
    let Some(format) = keyword("format") else { return Ok(()) };
    let fits = match format {
        "date" => whole(DATE),
        "time" => whole(TIME),
        "date-time" => whole(&format!("{DATE}[Tt]{TIME}")),
        "uuid" => whole(UUID),
        "email" => whole(EMAIL),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        _ => true,
    };
    if fits { Ok(()) } else { Err(format!("is no {format}")) }
}
