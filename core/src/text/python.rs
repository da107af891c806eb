//! Python and Jinja2 behaviour that chat templates rely on and MiniJinja lacks or does differently.
//!
//! The reference is the environment of transformers 5 (`utils/chat_template_utils.py`).

use jiff::civil::DateTime;
use jiff::fmt::strtime::{self, BrokenDownTime, PosixCustom};
use minijinja::formatting::{FormatStyle, format};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Serde, StringInput, Tuple, Value, ValueKind, from_args};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State};
use std::fmt::Write;

/// The largest width of a format: more than a prompt needs, and small enough to allocate.
const MAX_WIDTH: usize = 1_000;

/// The deepest nesting: more than a template needs, and small enough for the stack.
const MAX_DEPTH: usize = 100;

/// The instructions that a template may execute: more than any chat needs, and used up in seconds by an
/// endless loop.
const FUEL: u64 = 20_000_000;

/// A MiniJinja environment in which templates render as in transformers.
pub fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the delimiters are the usual ones"));
    environment.set_fuel(Some(FUEL));
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(method);
    minijinja_contrib::add_to_environment(&mut environment);
    environment.set_formatter(|out, state, value| match exponential(value) {
        Some(number) => Ok(out.write_str(&number)?),
        None => minijinja::escape_formatter(out, state, value),
    });
    environment.add_function("raise_exception", raise_exception);
    environment.add_filter("tojson", to_json);
    environment.add_filter("fromjson", from_json);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("items", items);
    environment.add_filter("replace", replace);
    environment.add_filter("string", string);
    environment.add_filter("batch", batch);
    environment.add_filter("slice", slice);
    environment.add_filter("indent", indent);
    environment.add_filter("int", int);
    environment.add_filter("format", format_filter);
    environment.add_filter("percent", percent);
    environment.add_test("sequence", is_sequence);
    environment.add_test("iterable", is_iterable);
    environment
}

fn invalid(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}

fn raise_exception(message: Value) -> Result<Value, Error> {
    Err(invalid(message.to_string()))
}

/// `length`: an undefined value has the length 0.
fn length(value: &Value) -> Result<usize, Error> {
    let length = if value.is_undefined() { Some(0) } else { value.len() };
    length.ok_or_else(|| invalid(format!("a {} has no length", value.kind())))
}

/// `default(value, boolean)`: with `boolean`, false and empty values are replaced too.
fn default(value: Value, arguments: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let boolean = named.get::<Option<bool>>("boolean")?.unwrap_or(false);
    let boolean = arguments.get(1).map_or(boolean, Value::is_true);
    let absent = value.is_undefined() || boolean && !value.is_true();
    let default = || arguments.first().cloned().unwrap_or_else(|| "".into());
    Ok(if absent { default() } else { value })
}

/// `items`: an undefined value has no items.
fn items(value: &Value) -> Result<Value, Error> {
    if value.is_undefined() { Ok(Value::from(())) } else { minijinja::filters::items(value) }
}

fn string(state: &State, value: &Value) -> Result<Value, Error> {
    exponential(value).map_or_else(|| minijinja::filters::string(state, value), |n| Ok(n.into()))
}

/// The text of a number that Python writes with an exponent; `None` for other values.
fn exponential(value: &Value) -> Option<String> {
    let number = (value.is_number() && !value.is_integer()).then(|| f64::try_from(value.clone()));
    number?.ok().map(float).filter(|text| text.contains('e'))
}

fn replace(text: &Value, from: &Value, to: &Value, count: Option<usize>) -> String {
    let (text, from, to) = (text.to_string(), from.to_string(), to.to_string());
    text.replacen(&from, &to, count.unwrap_or(usize::MAX))
}

/// `sequence`: every value with a length, including strings and mappings.
fn is_sequence(value: &Value) -> bool {
    value.is_undefined() || value.len().is_some()
}

fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// `template % arguments`.
fn percent(template: &str, arguments: &Value) -> Result<String, Error> {
    check_widths(template, '%')?;
    match arguments.downcast_object_ref::<Tuple>() {
        Some(tuple) => format(FormatStyle::Printf, template, tuple),
        None => format(FormatStyle::Printf, template, std::slice::from_ref(arguments)),
    }
}

/// `template|format(…)`.
fn format_filter(template: &str, arguments: Rest<Value>) -> Result<String, Error> {
    check_widths(template, '%')?;
    format(FormatStyle::Printf, template, &arguments)
}

/// Refuses widths and precisions of more than four digits, which could exhaust memory.
fn check_widths(template: &str, begins: char) -> Result<(), Error> {
    let everywhere = begins == '%';
    let (mut open, mut in_format, mut digits) = (everywhere, false, 0);
    for c in template.chars() {
        open = everywhere || c == '{' || open && c != '}';
        in_format = open && (c == begins || in_format && !c.is_alphabetic());
        digits = if in_format && c.is_ascii_digit() { digits + 1 } else { 0 };
        // A star takes the width from the arguments, and so do braces inside a format.
        if digits > 4 || in_format && (c == '*' || !everywhere && c == '{') {
            return Err(invalid("the width or precision of the format is too large"));
        }
    }
    Ok(())
}

/// Refuses a width that a filter would allocate at once.
fn bounded(width: usize) -> Result<(), Error> {
    if width > MAX_WIDTH { Err(invalid(format!("the width {width} is too large"))) } else { Ok(()) }
}

fn indent(
    text: StringInput<'_>,
    width: Option<usize>,
    first: Option<bool>,
    blank: Option<bool>,
    named: Kwargs,
) -> Result<Value, Error> {
    bounded(width.or(named.get("width")?).unwrap_or_default())?;
    minijinja::filters::indent(text, width, first, blank, named)
}

fn batch(state: &State, value: Value, count: usize, fill: Option<Value>) -> Result<Value, Error> {
    bounded(count)?;
    minijinja::filters::batch(state, value, count, fill)
}

fn slice(state: &State, value: Value, count: usize, fill: Option<Value>) -> Result<Value, Error> {
    bounded(count)?;
    minijinja::filters::slice(state, value, count, fill)
}

/// `int`: text that is not a number becomes 0 or the default.
fn int(
    state: &State,
    value: &Value,
    default: Option<Value>,
    base: Option<u32>,
    named: Kwargs,
) -> Result<Value, Error> {
    let absent = default.clone().or(named.get("default")?).unwrap_or_else(|| 0.into());
    match minijinja::filters::int(state, value, default, base, named) {
        Err(_) if value.as_str().is_some() => Ok(absent),
        number => number,
    }
}

/// Methods of Python strings that MiniJinja and its `pycompat` collection lack.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args);
    };
    let position = |found: Option<usize>| match found {
        Some(byte) => Ok(Value::from(text[..byte].chars().count())),
        None => Err(invalid("substring not found")),
    };
    let around_separator = |(head, tail): (&str, &str)| {
        let separator = &text[head.len()..text.len() - tail.len()];
        Value::from(Tuple::new([head, separator, tail].map(Value::from).into()))
    };
    match name {
        "format" => {
            check_widths(text, ':')?;
            minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
        }
        "index" => position(text.find(from_args::<(&str,)>(args)?.0)),
        "rindex" => position(text.rfind(from_args::<(&str,)>(args)?.0)),
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(text.strip_prefix(prefix).unwrap_or(text).into())
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(text.strip_suffix(suffix).unwrap_or(text).into())
        }
        "partition" => {
            let (separator,): (&str,) = from_args(args)?;
            Ok(around_separator(text.split_once(separator).unwrap_or((text, ""))))
        }
        "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            Ok(around_separator(text.rsplit_once(separator).unwrap_or(("", text))))
        }
        "rsplit" => {
            let (separator, limit): (Option<&str>, Option<i64>) = from_args(args)?;
            rsplit(text, separator, usize::try_from(limit.unwrap_or(-1)).unwrap_or(usize::MAX))
        }
        "ljust" | "rjust" | "center" => {
            let (width, fill): (usize, Option<char>) = from_args(args)?;
            bounded(width)?;
            let missing = width.saturating_sub(text.chars().count());
            let left = match name {
                "ljust" => 0,
                "rjust" => missing,
                _ => missing / 2 + (missing & width & 1),
            };
            let fill = |count: usize| fill.unwrap_or(' ').to_string().repeat(count);
            Ok(format!("{}{text}{}", fill(left), fill(missing - left)).into())
        }
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let (sign, digits) = text.split_at(text.starts_with(['+', '-']).into());
            let zeros = width.min(MAX_WIDTH).saturating_sub(text.chars().count());
            Ok(format!("{sign}{}{digits}", "0".repeat(zeros)).into())
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

fn rsplit(text: &str, separator: Option<&str>, limit: usize) -> Result<Value, Error> {
    let mut parts = Vec::new();
    let mut rest = if separator.is_none() { text.trim_end() } else { text };
    while parts.len() < limit {
        let split = match separator {
            Some("") => return Err(invalid("empty separator")),
            Some(separator) => rest.rsplit_once(separator),
            None => rest.rsplit_once(char::is_whitespace),
        };
        let Some((head, tail)) = split else { break };
        parts.push(tail);
        rest = if separator.is_none() { head.trim_end() } else { head };
    }
    if separator.is_some() || !rest.is_empty() {
        parts.push(rest);
    }
    Ok(parts.into_iter().rev().collect())
}

/// `json.loads`, which only the templates of this library call.
fn from_json(text: &str) -> Result<Value, Error> {
    let json: serde_json::Value = serde_json::from_str(text).map_err(|e| invalid(e.to_string()))?;
    Ok(Value::from(Serde(&json)))
}

/// `json.dumps` without escapes for HTML and without `ensure_ascii` by default.
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(invalid("separators are two strings")),
        None => (if indent.is_some() { "," } else { ", " }.into(), ": ".into()),
    };
    let ensure_ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let indent = indent.map(|width| width.min(MAX_WIDTH));
    let mut json = Json { out: String::new(), indent, item, key, ensure_ascii, sort_keys };
    json.value(value, 0)?;
    Ok(json.out)
}

struct Json {
    out: String,
    indent: Option<usize>,
    item: String,
    key: String,
    ensure_ascii: bool,
    sort_keys: bool,
}

impl Json {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(invalid("too deeply nested for JSON"));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => self.out.push_str(&value.to_string()),
            ValueKind::Number => self.out.push_str(&float(f64::try_from(value.clone())?)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                self.out.push('[');
                let mut empty = true;
                for item in value.try_iter()? {
                    self.separate(empty, depth + 1);
                    self.value(&item, depth + 1)?;
                    empty = false;
                }
                self.close(empty, depth, ']');
            }
            ValueKind::Map => {
                self.out.push('{');
                let mut keys: Vec<_> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                for (index, key) in keys.iter().enumerate() {
                    self.separate(index == 0, depth + 1);
                    match key.kind() {
                        ValueKind::String => self.value(key, depth)?,
                        ValueKind::Number | ValueKind::Bool | ValueKind::None => {
                            self.out.push('"');
                            self.value(key, depth)?;
                            self.out.push('"');
                        }
                        kind => return Err(invalid(format!("a {kind} cannot be a key in JSON"))),
                    }
                    self.out.push_str(&self.key);
                    self.value(&value.get_item(key)?, depth + 1)?;
                }
                self.close(keys.is_empty(), depth, '}');
            }
            kind => return Err(invalid(format!("{kind} value cannot be written as JSON"))),
        }
        Ok(())
    }

    fn separate(&mut self, first: bool, depth: usize) {
        if !first {
            self.out.push_str(&self.item);
        }
        self.line(depth);
    }

    fn close(&mut self, empty: bool, depth: usize, bracket: char) {
        if !empty {
            self.line(depth);
        }
        self.out.push(bracket);
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn string(&mut self, text: &str) {
        let quoted = serde_json::Value::from(text).to_string();
        if !self.ensure_ascii {
            return self.out.push_str(&quoted);
        }
        for c in quoted.chars() {
            if c.is_ascii() {
                self.out.push(c);
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(self.out, "\\u{unit:04x}");
                }
            }
        }
    }
}

/// `repr` of a float.
fn float(number: f64) -> String {
    let size = number.abs();
    if !number.is_finite() {
        let sign = if number < 0.0 { "-" } else { "" };
        if number.is_nan() { "NaN".into() } else { format!("{sign}Infinity") }
    } else if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
        format!("{digits}e{sign}{exponent:0>2}")
    } else {
        format!("{number:?}")
    }
}

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

/// Rewrites syntax that MiniJinja does not parse, keeping line numbers: `{% generation %}` blocks, which
/// only scope their content, and `%` after a string, which formats it.
pub fn translate(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(start) = rest.find('{') {
        let (text, tag) = rest.split_at(start);
        out.push_str(text);
        let length = match tag.as_bytes().get(1) {
            Some(b'#') => tag[2..].find("#}").map_or(tag.len(), |end| end + 4),
            Some(b'%') => expression_end(tag, 2, "%}"),
            Some(b'{') => expression_end(tag, 2, "}}"),
            _ => 1,
        };
        let (tag, after) = tag.split_at(length);
        rest = after;
        match keyword(tag) {
            Some("generation") => out += &tag.replacen("generation", "with", 1),
            Some("endgeneration") => out += &tag.replacen("endgeneration", "endwith", 1),
            Some("raw") => {
                let mut tags = rest.match_indices("{%").map(|(at, _)| at);
                let end = tags.find(|at| keyword(&rest[*at..]) == Some("endraw"));
                let (raw, after) = rest.split_at(end.unwrap_or(rest.len()));
                out.push_str(tag);
                out.push_str(raw);
                rest = after;
            }
            _ if tag.starts_with("{#") => out.push_str(tag),
            _ => expression(tag, 0, &mut out),
        }
    }
    out + rest
}

/// The first word in a `{%` tag.
fn keyword(tag: &str) -> Option<&str> {
    let inside = tag.strip_prefix("{%")?.trim_start_matches(['-', '+']).trim_start();
    inside.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next()
}

/// Copies an expression, with `'…' % operand` turned into `'…'|percent(operand)`.
fn expression(source: &str, depth: usize, out: &mut String) {
    let mut at = 0;
    while let Some(start) = source[at..].find(['\'', '"']).map(|found| at + found) {
        let end = string_end(source, start);
        out.push_str(&source[at..end]);
        at = end;
        let after = source[end..].trim_start();
        let Some(operand) = after.strip_prefix('%').filter(|rest| !rest.starts_with('}')) else {
            continue;
        };
        if depth < MAX_DEPTH {
            let operand = &operand[..operand_end(operand)];
            out.push_str("|percent(");
            expression(operand, depth + 1, out);
            out.push(')');
            at = source.len() - after.len() + 1 + operand.len();
        }
    }
    out.push_str(&source[at..]);
}

/// The length of an operand: a sign, a literal, name or bracket, and the calls, subscripts, attributes
/// and filters after it.
fn operand_end(text: &str) -> usize {
    let byte = |at: usize| text.as_bytes().get(at).copied();
    let space = |at: usize| text.len() - text[at..].trim_start().len();
    let name = |at: usize| {
        let end = text[at..].find(|c: char| !c.is_alphanumeric() && c != '_');
        end.map_or(text.len(), |length| at + length)
    };
    let mut at = space(0);
    if byte(at) == Some(b'-') {
        at = space(at + 1);
    }
    at = match byte(at) {
        Some(b'(') => expression_end(text, at + 1, ")"),
        Some(b'[') => expression_end(text, at + 1, "]"),
        Some(b'{') => expression_end(text, at + 1, "}"),
        Some(b'\'' | b'"') => string_end(text, at),
        _ => name(at),
    };
    loop {
        let next = space(at);
        at = match byte(next) {
            Some(b'(') => expression_end(text, next + 1, ")"),
            Some(b'[') => expression_end(text, next + 1, "]"),
            Some(b'.' | b'|') => name(space(next + 1)),
            _ => return at,
        };
    }
}

/// The end of the first `end` at or after `at` that is outside strings and inner brackets.
fn expression_end(text: &str, mut at: usize, end: &str) -> usize {
    let mut depth = 0_usize;
    while let Some(byte) = text.as_bytes().get(at) {
        if depth == 0 && text.as_bytes()[at..].starts_with(end.as_bytes()) {
            return at + end.len();
        }
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            b'\'' | b'"' => at = string_end(text, at) - 1,
            _ => {}
        }
        at += 1;
    }
    text.len()
}

/// The end of the string literal whose quote is at `start`.
fn string_end(text: &str, start: usize) -> usize {
    let bytes = text.as_bytes();
    let mut at = start + 1;
    while at < bytes.len() && bytes[at] != bytes[start] {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}
