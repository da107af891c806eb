//! Values to text: `str`, `repr` and `json.dumps` of Python.

use super::arguments::Arguments;
use super::failure::{Failure, Result};
use super::text::Text;
use super::value::{Kind, Value};
use std::fmt::Write;

/// The deepest nesting that is printed.
const MAX_DEPTH: usize = 200;

/// `str(value)`.
pub fn text(value: &Value) -> Text {
    let mut out = Text::default();
    push(value, &mut out);
    out
}

/// Appends `str(value)`.
pub fn push(value: &Value, out: &mut Text) {
    match value {
        Value::Text(text) => out.push(text),
        Value::Undefined(_) => {}
        other => push_repr(other, 0, out),
    }
}

/// `repr(value)`.
pub fn repr(value: &Value) -> Text {
    let mut out = Text::default();
    push_repr(value, 0, &mut out);
    out
}

fn push_repr(value: &Value, depth: usize, out: &mut Text) {
    if depth > MAX_DEPTH || out.is_cut() {
        return;
    }
    let mut write = |text: &str| out.push_str(text, false);
    match value {
        Value::Undefined(_) => write("Undefined"),
        Value::None => write("None"),
        Value::Bool(value) => write(if *value { "True" } else { "False" }),
        Value::Int(number) => write(&number.to_string()),
        Value::Float(number) => write(&float(*number)),
        Value::Text(text) => quote(text, out),
        Value::List(list) => {
            let (open, close) = match list.kind {
                Kind::Tuple if list.len() == 1 => ("(", ",)"),
                Kind::Tuple => ("(", ")"),
                Kind::List | Kind::Iterator => ("[", "]"),
                Kind::View(name) => {
                    write(name);
                    ("([", "])")
                }
            };
            out.push_str(open, false);
            for (index, item) in list.iter().enumerate() {
                if index > 0 {
                    out.push_str(", ", false);
                }
                push_repr(item, depth + 1, out);
                if out.is_cut() {
                    return;
                }
            }
            out.push_str(close, false);
        }
        Value::Dict(dict) => push_entries(dict.entries(), depth, out),
        Value::Namespace(namespace) => {
            write("<Namespace ");
            push_entries(namespace.borrow().entries(), depth, out);
            out.push_str(">", false);
        }
        other => write(&format!("<{}>", other.type_name())),
    }
}

fn push_entries(entries: &[(Value, Value)], depth: usize, out: &mut Text) {
    out.push_str("{", false);
    for (index, (key, value)) in entries.iter().enumerate() {
        if index > 0 {
            out.push_str(", ", false);
        }
        push_repr(key, depth + 1, out);
        out.push_str(": ", false);
        push_repr(value, depth + 1, out);
        if out.is_cut() {
            return;
        }
    }
    out.push_str("}", false);
}

/// A string in quotes, of which Python prefers the single ones.
fn quote(text: &Text, out: &mut Text) {
    let is_double = text.as_str().contains('\'') && !text.as_str().contains('"');
    let mark = if is_double { '"' } else { '\'' };
    let mut quoted = mark.to_string();
    out.push_str(&quoted, false);
    out.push(&text.map(|c, out| match c {
        '\\' => out.push_str("\\\\"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        c if c == mark => out.extend(['\\', c]),
        c if is_printable(c) => out.push(c),
        c => {
            let code = u32::from(c);
            let _ = match code {
                0..=0xff => write!(out, "\\x{code:02x}"),
                0x100..=0xffff => write!(out, "\\u{code:04x}"),
                _ => write!(out, "\\U{code:08x}"),
            };
        }
    }));
    quoted.clear();
    quoted.push(mark);
    out.push_str(&quoted, false);
}

fn is_printable(c: char) -> bool {
    // The escape of a text, unlike that of a character, leaves combining marks after its first one.
    let after_letter: [char; 2] = ['a', c];
    let text: String = after_letter.iter().collect();
    "'\"\\".contains(c) || text.escape_debug().count() == 2
}

/// `repr` of a float.
pub fn float(number: f64) -> String {
    let size = number.abs();
    if number.is_nan() {
        "nan".into()
    } else if number.is_infinite() {
        if number < 0.0 { "-inf".into() } else { "inf".into() }
    } else if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
        format!("{digits}e{sign}{exponent:0>2}")
    } else {
        format!("{number:?}")
    }
}

/// The filter `tojson` of transformers: `json.dumps` without escapes for HTML and by default without
/// `ensure_ascii`.
pub fn json(value: &Value, arguments: Arguments) -> Result<Text> {
    let [ensure_ascii, indent, separators, sort_keys] =
        arguments.bind(["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let indent = match indent {
        None | Some(Value::None) => None,
        Some(Value::Text(indent)) => Some((*indent).clone()),
        Some(width) => {
            let width = super::arguments::width(&width)?;
            Some(Text::written(&" ".repeat(width)))
        }
    };
    let (item, key) = match separators {
        Some(Value::List(list)) => match &*list {
            [item, key] => (text(item), text(key)),
            _ => return Err(Failure::of("separators are two strings")),
        },
        _ => {
            let item = if indent.is_some() { "," } else { ", " };
            (Text::written(item), Text::written(": "))
        }
    };
    let is_set = |flag: Option<Value>| flag.is_some_and(|flag| flag.is_true());
    let (ensure_ascii, sort_keys) = (is_set(ensure_ascii), is_set(sort_keys));
    let mut json = Json { out: Text::default(), indent, item, key, ensure_ascii, sort_keys };
    json.value(value, 0)?;
    Ok(json.out)
}

struct Json {
    out: Text,
    indent: Option<Text>,
    item: Text,
    key: Text,
    ensure_ascii: bool,
    sort_keys: bool,
}

impl Json {
    fn value(&mut self, value: &Value, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH || self.out.is_cut() {
            return Err(Failure::of("the value is too large for JSON"));
        }
        match value {
            Value::None => self.write("null"),
            Value::Bool(value) => self.write(if *value { "true" } else { "false" }),
            Value::Int(number) => self.write(&number.to_string()),
            Value::Float(number) => self.write(&json_float(*number)),
            Value::Text(text) => self.string(text),
            Value::List(list) if matches!(list.kind, Kind::List | Kind::Tuple) => {
                self.write("[");
                for (index, item) in list.iter().enumerate() {
                    self.separate(index == 0, depth + 1);
                    self.value(item, depth + 1)?;
                }
                self.close(list.is_empty(), depth, "]");
            }
            Value::Dict(dict) => {
                self.write("{");
                let mut entries: Vec<_> = dict.entries().iter().collect();
                if self.sort_keys {
                    entries.sort_by_key(|(key, _)| text(key).as_str().to_string());
                }
                for (index, (key, value)) in entries.into_iter().enumerate() {
                    self.separate(index == 0, depth + 1);
                    match key {
                        Value::Text(key) => self.string(key),
                        Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
                            self.write("\"");
                            self.value(key, depth)?;
                            self.write("\"");
                        }
                        other => {
                            let kind = other.type_name();
                            return Err(Failure::of(format!("a {kind} is no key in JSON")));
                        }
                    }
                    self.out.push(&self.key);
                    self.value(value, depth + 1)?;
                }
                self.close(dict.entries().is_empty(), depth, "}");
            }
            other => {
                let kind = other.type_name();
                return Err(Failure::of(format!("a {kind} cannot be written as JSON")));
            }
        }
        Ok(())
    }

    fn write(&mut self, text: &str) {
        self.out.push_str(text, false);
    }

    fn separate(&mut self, is_first: bool, depth: usize) {
        if !is_first {
            self.out.push(&self.item);
        }
        self.line(depth);
    }

    fn close(&mut self, is_empty: bool, depth: usize, bracket: &str) {
        if !is_empty {
            self.line(depth);
        }
        self.write(bracket);
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push_str("\n", false);
            (0..depth).for_each(|_| self.out.push(indent));
        }
    }

    fn string(&mut self, text: &Text) {
        let ensure_ascii = self.ensure_ascii;
        let escaped = text.map(|c, out| {
            let _ = match c {
                '"' => out.write_str("\\\""),
                '\\' => out.write_str("\\\\"),
                '\n' => out.write_str("\\n"),
                '\r' => out.write_str("\\r"),
                '\t' => out.write_str("\\t"),
                '\x08' => out.write_str("\\b"),
                '\x0c' => out.write_str("\\f"),
                c if c < ' ' => write!(out, "\\u{:04x}", u32::from(c)),
                c if ensure_ascii && (!c.is_ascii() || c == '\x7f') => {
                    let mut units = [0; 2];
                    let units = c.encode_utf16(&mut units);
                    units.iter().try_for_each(|unit| write!(out, "\\u{unit:04x}"))
                }
                c => out.write_char(c),
            };
        });
        self.write("\"");
        self.out.push(&escaped);
        self.write("\"");
    }
}

fn json_float(number: f64) -> String {
    if number.is_nan() {
        return "NaN".into();
    }
    float(number).replace("inf", "Infinity")
}
