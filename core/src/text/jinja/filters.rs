//! The filters of single values; those of sequences are in [`sequences`](super::sequences).

use super::arguments::{Arguments, integer, width};
use super::failure::{Failure, Result};
use super::text::Text;
use super::value::{Number, Value};
use super::{format, methods, operators, print};

/// `value | name(arguments)`.
pub fn filter(name: &str, value: &Value, arguments: Arguments) -> Result<Value> {
    let text = || print::text(value);
    match name {
        "string" => Ok(text().into()),
        "safe" => Ok(value.clone()),
        "upper" => Ok(text().convert(|run| run.to_uppercase()).into()),
        "lower" => Ok(methods::lower(&text()).into()),
        "capitalize" => Ok(methods::capitalized(&text()).into()),
        "title" => Ok(title(&text()).into()),
        "trim" => {
            let [chars] = arguments.bind(["chars"])?;
            Ok(methods::stripped(&text(), chars.as_ref(), true, true)?.into())
        }
        "replace" => {
            let [old, new, count] = arguments.bind(["old", "new", "count"])?;
            let (Some(old), Some(new)) = (old, new) else {
                return Err(Failure::of("replace expects two arguments"));
            };
            let (old, new) = (print::text(&old), print::text(&new));
            methods::replaced(&text(), &old, &new, count.as_ref()).map(Value::from)
        }
        "indent" => indent(&text(), arguments).map(Value::from),
        "center" => {
            let [columns] = arguments.bind(["width"])?;
            let columns = columns.unwrap_or(Value::Int(80));
            let arguments = Arguments { positional: vec![columns], ..Arguments::default() };
            methods::call(&text().into(), "center", arguments)
        }
        "truncate" => truncate(&text(), arguments).map(Value::from),
        "wordcount" => {
            let is_word = |c: char| c.is_alphanumeric() || c == '_';
            let text = text();
            let words = text.as_str().split(|c| !is_word(c)).filter(|word| !word.is_empty());
            Ok(Value::from(words.count()))
        }
        "escape" | "e" | "forceescape" => Ok(escape(&text()).into()),
        "striptags" => Ok(without_tags(&text()).into()),
        "urlencode" => Ok(urlencode(value)?.into()),
        "format" => {
            let Arguments { positional, named } = arguments;
            let operand = if named.is_empty() {
                Value::tuple(positional)
            } else {
                let entries = named.into_iter().map(|(name, value)| (Value::written(&name), value));
                super::value::Dict::of_distinct(entries.collect()).into()
            };
            format::percent(&text(), &operand).map(Value::from)
        }
        "tojson" => print::json(value, arguments).map(Value::from),
        "pprint" => Ok(print::repr(value).into()),
        "default" | "d" => {
            let [default, boolean] = arguments.bind(["default_value", "boolean"])?;
            let replaces_false = boolean.is_some_and(|boolean| boolean.is_true());
            let is_absent = value.is_undefined() || replaces_false && !value.is_true();
            let default = default.unwrap_or_else(|| Value::written(""));
            Ok(if is_absent { default } else { value.clone() })
        }
        "length" | "count" => operators::length(value).map(Value::from),
        "attr" => {
            let [name] = arguments.bind(["name"])?;
            let name = print::text(&name.unwrap_or(Value::None));
            operators::attribute(value, &name.as_str().into())
        }
        "abs" => match number(value)? {
            Number::Int(number) => Ok(Value::Int(number.saturating_abs())),
            Number::Float(number) => Ok(Value::Float(number.abs())),
        },
        "round" => round(value, arguments),
        "int" => int(value, arguments),
        "float" => {
            let [default] = arguments.bind(["default"])?;
            operators::refuse_undefined(value)?;
            let parsed = match value {
                Value::Text(text) => parse_float(text.as_str()),
                other => Number::of(other).map(Number::float),
            };
            Ok(parsed.map_or(default.unwrap_or(Value::Float(0.0)), Value::Float))
        }
        other => Err(Failure::of(format!("no filter named '{other}'"))),
    }
}

fn number(value: &Value) -> Result<Number> {
    operators::refuse_undefined(value)?;
    Number::of(value)
        .ok_or_else(|| Failure::of(format!("a number is expected, not a {}", value.type_name())))
}

/// The filter `title`, which begins words after spaces, hyphens and opening brackets only.
fn title(text: &Text) -> Text {
    let mut is_start = true;
    text.map(|c, out| {
        let is_break = methods::is_space(c) || "-({[<".contains(c);
        if is_start {
            out.extend(c.to_uppercase())
        } else {
            out.extend(c.to_lowercase())
        }
        is_start = is_break;
    })
}

fn indent(text: &Text, arguments: Arguments) -> Result<Text> {
    let [columns, first, blank] = arguments.bind(["width", "first", "blank"])?;
    let is_set = |flag: Option<Value>| flag.is_some_and(|flag| flag.is_true());
    let (first, blank) = (is_set(first), is_set(blank));
    let indention = match columns {
        None => Text::written("    "),
        Some(Value::Text(indention)) => (*indention).clone(),
        Some(columns) => Text::written(&" ".repeat(width(&columns)?)),
    };
    // The line that Jinja2 appends before it splits, so that a final line break stays.
    let mut whole = text.clone();
    whole.push_str("\n", false);
    let mut out = Text::default();
    for (index, line) in methods::lines(&whole, false).iter().enumerate() {
        if index > 0 {
            out.push_str("\n", false);
        }
        let is_indented = if index == 0 { first } else { blank || !line.as_str().is_empty() };
        if is_indented {
            out.push(&indention);
        }
        out.push(line);
    }
    Ok(out)
}

fn truncate(text: &Text, arguments: Arguments) -> Result<Text> {
    let [length, killwords, end, leeway] =
        arguments.bind(["length", "killwords", "end", "leeway"])?;
    let size = |value: Option<Value>, default: usize| match value {
        None | Some(Value::None) => Ok(default),
        Some(value) => usize::try_from(integer(&value)?)
            .map_err(|_| Failure::of("a length must not be negative")),
    };
    let (length, leeway) = (size(length, 255)?, size(leeway, 5)?);
    let end = end.map_or_else(|| Text::written("..."), |end| print::text(&end));
    let count = text.as_str().chars().count();
    let Some(kept) = length.checked_sub(end.as_str().chars().count()) else {
        return Err(Failure::of("the length is shorter than the end"));
    };
    if count <= length.saturating_add(leeway) {
        return Ok(text.clone());
    }
    let mut out = text.slice(operators::bytes(text, 0..kept));
    if !killwords.is_some_and(|killwords| killwords.is_true()) {
        let word = out.as_str().rfind(' ').unwrap_or(out.as_str().len());
        out.truncate(word);
    }
    out.push(&end);
    Ok(out)
}

fn escape(text: &Text) -> Text {
    text.map(|c, out| match c {
        '&' => out.push_str("&amp;"),
        '<' => out.push_str("&lt;"),
        '>' => out.push_str("&gt;"),
        '\'' => out.push_str("&#39;"),
        '"' => out.push_str("&#34;"),
        c => out.push(c),
    })
}

/// A text without its tags, and with single spaces.
fn without_tags(text: &Text) -> Text {
    let (whole, mut at, mut kept) = (text.as_str(), 0, Text::default());
    while let Some(found) = whole[at..].find('<') {
        let start = at + found;
        let close = if whole[start..].starts_with("<!--") { "-->" } else { ">" };
        let Some(end) = whole[start..].find(close) else { break };
        kept.push_slice(text, at..start);
        at = start + end + close.len();
    }
    kept.push_slice(text, at..whole.len());
    let mut out = Text::default();
    for word in kept.as_str().split(methods::is_space).filter(|word| !word.is_empty()) {
        if !out.as_str().is_empty() {
            out.push_str(" ", false);
        }
        out.push(&kept.part(word));
    }
    out
}

fn urlencode(value: &Value) -> Result<Text> {
    let quote = |value: &Value, safe: &str| {
        print::text(value).map(|c, out| {
            if c.is_ascii_alphanumeric() || "_.-~".contains(c) || safe.contains(c) {
                return out.push(c);
            }
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                out.push_str(&format!("%{byte:02X}"));
            }
        })
    };
    let Value::Dict(dict) = value else { return Ok(quote(value, "/")) };
    let mut out = Text::default();
    for (index, (key, value)) in dict.entries().iter().enumerate() {
        if index > 0 {
            out.push_str("&", false);
        }
        out.push(&quote(key, ""));
        out.push_str("=", false);
        out.push(&quote(value, ""));
    }
    Ok(out)
}

fn round(value: &Value, arguments: Arguments) -> Result<Value> {
    let [precision, method] = arguments.bind(["precision", "method"])?;
    let precision = precision.as_ref().map(integer).transpose()?.unwrap_or(0);
    let method = method.map_or_else(|| Text::written("common"), |method| print::text(&method));
    let number = number(value)?;
    let power = 10_f64.powi(precision.clamp(-300, 300) as i32);
    Ok(match (method.as_str(), number) {
        ("common", Number::Int(number)) if precision >= 0 => Value::Int(number),
        ("common", number) if precision < 0 || !number.float().is_finite() => {
            Value::Float((number.float() * power).round_ties_even() / power)
        }
        ("common", number) => {
            let digits = precision.min(300) as usize;
            let rounded = format!("{:.digits$}", number.float()).parse();
            Value::Float(rounded.unwrap_or(number.float()))
        }
        ("ceil", number) => Value::Float((number.float() * power).ceil() / power),
        ("floor", number) => Value::Float((number.float() * power).floor() / power),
        (other, _) => return Err(Failure::of(format!("unknown method of rounding '{other}'"))),
    })
}

/// The filter `int`: text that is no number becomes 0 or the default.
fn int(value: &Value, arguments: Arguments) -> Result<Value> {
    let [default, base] = arguments.bind(["default", "base"])?;
    operators::refuse_undefined(value)?;
    let base = base.as_ref().map(integer).transpose()?.unwrap_or(10);
    let base = u32::try_from(base).ok().filter(|base| (2..=36).contains(base));
    let base = base.ok_or_else(|| Failure::of("a base is between 2 and 36"))?;
    let of_float = |number: f64| number.is_finite().then(|| Value::Int(number.trunc() as i128));
    let parsed = match value {
        Value::Text(text) => {
            let written = text.as_str().trim().replace('_', "");
            let prefix = match base {
                16 => "0x",
                8 => "0o",
                2 => "0b",
                _ => "",
            };
            let digits = written.strip_prefix(prefix).unwrap_or(&written);
            let exact = i128::from_str_radix(digits, base).ok().map(Value::Int);
            exact.or_else(|| of_float(parse_float(&written)?))
        }
        other => match Number::of(other) {
            Some(Number::Int(number)) => Some(Value::Int(number)),
            Some(Number::Float(number)) => of_float(number),
            None => None,
        },
    };
    Ok(parsed.unwrap_or(default.unwrap_or(Value::Int(0))))
}

fn parse_float(text: &str) -> Option<f64> {
    text.trim().replace('_', "").parse().ok()
}
