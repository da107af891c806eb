//! `datetime.strftime` of Python.

use jiff::civil::DateTime;
use jiff::fmt::strtime::{self, BrokenDownTime, PosixCustom};

/// `datetime.strftime` of Python in the C locale. Unknown directives stay as they are written.
pub fn strftime(pattern: &str, time: DateTime) -> String {
    let config = strtime::Config::new().custom(PosixCustom::new()).lenient(true);
    // jiff writes nanoseconds as short as they are, and has no empty time zone.
    let mut formats = String::with_capacity(pattern.len());
    let mut rest = pattern;
    while let Some(at) = rest.find('%') {
        let directive = rest[at + 1..].chars().next();
        formats.push_str(&rest[..at]);
        match directive {
            Some('f') => formats.push_str("000000"),
            Some('z' | 'Z') => {}
            Some(letter) => formats.extend(['%', letter]),
            None => formats.push_str("%%"),
        }
        rest = &rest[at + 1 + directive.map_or(0, char::len_utf8)..];
    }
    let formats = formats + rest;
    let time = BrokenDownTime::from(time);
    time.to_string_with_config(&config, &formats).unwrap_or_else(|_| pattern.into())
}
