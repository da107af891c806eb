//! Methods of strings, mappings and lists.

use super::arguments::{Arguments, integer, width};
use super::failure::{Failure, Result};
use super::text::Text;
use super::value::{Kind, List, Value, is_equal};
use super::{format, operators, print};
use std::rc::Rc;

/// Calls a method that [`has_method`](super::members::has_method) lists.
pub fn call(value: &Value, name: &str, arguments: Arguments) -> Result<Value> {
    match value {
        Value::Text(text) => text_method(text, name, arguments),
        Value::Dict(dict) => {
            let entries = dict.entries();
            let view = |name, items| Value::List(List::new(Kind::View(name), items));
            match name {
                "get" => {
                    let [key, default] = arguments.bind(["key", "default"])?;
                    let found = key.and_then(|key| dict.get(&key).cloned());
                    Ok(found.or(default).unwrap_or(Value::None))
                }
                "keys" => {
                    let keys = entries.iter().map(|(key, _)| key.clone());
                    Ok(view("dict_keys", keys.collect()))
                }
                "values" => {
                    let values = entries.iter().map(|(_, value)| value.clone());
                    Ok(view("dict_values", values.collect()))
                }
                "items" => {
                    let pair = |(key, value): &(Value, Value)| {
                        Value::tuple(vec![key.clone(), value.clone()])
                    };
                    Ok(view("dict_items", entries.iter().map(pair).collect()))
                }
                _ => Ok(value.clone()),
            }
        }
        Value::List(list) => match name {
            "copy" => Ok(value.clone()),
            "count" => {
                let [item] = required(arguments, ["value"])?;
                Ok(Value::from(list.iter().filter(|found| is_equal(found, &item)).count()))
            }
            _ => {
                let [item] = required(arguments, ["value"])?;
                let found = list.iter().position(|found| is_equal(found, &item));
                found.map(Value::from).ok_or_else(|| Failure::of("the list has no such item"))
            }
        },
        Value::Loop(state) if name == "cycle" => {
            let values = arguments.positional;
            let index = state.index.get() % values.len().max(1);
            values.get(index).cloned().ok_or_else(|| Failure::of("no items for cycling given"))
        }
        Value::Loop(state) => {
            let now = Value::tuple(arguments.positional);
            now.check()?;
            let before = state.changed.replace(Some(now.clone()));
            Ok(Value::from(!before.is_some_and(|before| is_equal(&before, &now))))
        }
        Value::Counter(_, values, index) => {
            let at = index.get() % values.len().max(1);
            index.set(if name == "reset" { 0 } else { at + 1 });
            Ok(if name == "reset" { Value::None } else { values[at].clone() })
        }
        Value::Float(number) => Ok(Value::from(number.fract() == 0.0)),
        other => Err(Failure::of(format!("a {} has no method `{name}`", other.type_name()))),
    }
}

/// Arguments that must all be given.
fn required<const N: usize>(arguments: Arguments, names: [&str; N]) -> Result<[Value; N]> {
    let bound = arguments.bind(names)?;
    if let Some(index) = bound.iter().position(Option::is_none) {
        return Err(Failure::of(format!("the argument `{}` is missing", names[index])));
    }
    Ok(bound.map(|value| value.unwrap_or(Value::None)))
}

fn string(value: &Value) -> Result<&Text> {
    value
        .as_text()
        .ok_or_else(|| Failure::of(format!("a str is expected, not a {}", value.type_name())))
}

fn text_method(text: &Rc<Text>, name: &str, arguments: Arguments) -> Result<Value> {
    let all = |is: fn(char) -> bool| {
        Ok(Value::from(!text.as_str().is_empty() && text.as_str().chars().all(is)))
    };
    match name {
        "capitalize" => Ok(capitalized(text).into()),
        "lower" => Ok(lower(text).into()),
        "casefold" => Ok(lower(text).convert(|run| run.replace('ß', "ss")).into()),
        "upper" => Ok(text.convert(|run| run.to_uppercase()).into()),
        "title" => Ok(title(text).into()),
        "swapcase" => {
            let swapped = text.map(|c, out| {
                if c.is_uppercase() {
                    out.extend(c.to_lowercase())
                } else {
                    out.extend(c.to_uppercase())
                }
            });
            Ok(swapped.into())
        }
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = arguments.bind(["chars"])?;
            Ok(stripped(text, chars.as_ref(), name != "rstrip", name != "lstrip")?.into())
        }
        "removeprefix" | "removesuffix" => {
            let [affix] = required(arguments, ["affix"])?;
            let (whole, affix) = (text.as_str(), string(&affix)?.as_str());
            let is_prefix = name == "removeprefix";
            let rest =
                if is_prefix { whole.strip_prefix(affix) } else { whole.strip_suffix(affix) };
            Ok(text.part(rest.unwrap_or(whole)).into())
        }
        "replace" => {
            let [old, new, count] = arguments.bind(["old", "new", "count"])?;
            let (Some(old), Some(new)) = (old, new) else {
                return Err(Failure::of("replace expects two arguments"));
            };
            replaced(text, string(&old)?, string(&new)?, count.as_ref()).map(Value::from)
        }
        "join" => {
            let [items] = required(arguments, ["iterable"])?;
            let mut out = Text::default();
            for (index, item) in operators::iterate(&items)?.iter().enumerate() {
                if index > 0 {
                    out.push(text);
                }
                out.push(string(item)?);
            }
            Ok(out.into())
        }
        "format" => format::format(text, &arguments).map(Value::from),
        "zfill" => {
            let [zeros] = required(arguments, ["width"])?;
            format::zero_filled(text, &zeros).map(Value::from)
        }
        "ljust" | "rjust" | "center" => justified(text, name, arguments),
        "expandtabs" => {
            let [size] = arguments.bind(["tabsize"])?;
            let size = size.as_ref().map(width).transpose()?.unwrap_or(8);
            Ok(expanded(text, size).into())
        }
        "split" | "rsplit" => split(text, name == "rsplit", arguments),
        "splitlines" => {
            let [keepends] = arguments.bind(["keepends"])?;
            let keeps = keepends.is_some_and(|keeps| keeps.is_true());
            Ok(Value::list(lines(text, keeps).into_iter().map(Value::from).collect()))
        }
        "partition" | "rpartition" => {
            let [separator] = required(arguments, ["sep"])?;
            let separator = string(&separator)?.as_str();
            let whole = text.as_str();
            if separator.is_empty() {
                return Err(Failure::of("empty separator"));
            }
            let is_first = name == "partition";
            let found = if is_first { whole.find(separator) } else { whole.rfind(separator) };
            let none = if is_first { whole.len() } else { 0 };
            let (start, end) = found.map_or((none, none), |at| (at, at + separator.len()));
            let parts = [0..start, start..end, end..whole.len()];
            Ok(Value::tuple(parts.map(|range| text.slice(range).into()).into()))
        }
        "startswith" | "endswith" | "find" | "rfind" | "index" | "rindex" | "count" => {
            search(text, name, arguments)
        }
        "isalnum" => all(char::is_alphanumeric),
        "isalpha" => all(char::is_alphabetic),
        "isascii" => Ok(Value::from(text.as_str().is_ascii())),
        "isdigit" | "isdecimal" | "isnumeric" => all(char::is_numeric),
        "isspace" => all(is_space),
        "islower" | "isupper" => {
            let is_lower = name == "islower";
            let cased = |c: &char| c.is_lowercase() || c.is_uppercase();
            let mut chars = text.as_str().chars().filter(cased).peekable();
            let any = chars.peek().is_some();
            Ok(Value::from(any && chars.all(|c| c.is_lowercase() == is_lower)))
        }
        "istitle" => {
            let is_cased = text.as_str().chars().any(char::is_alphabetic);
            Ok(Value::from(is_cased && title(text).as_str() == text.as_str()))
        }
        other => Err(Failure::of(format!("a str has no method `{other}`"))),
    }
}

/// Whether `str.isspace` is true for a character.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// `str.lower`.
pub fn lower(text: &Text) -> Text {
    text.convert(|run| run.to_lowercase())
}

/// `str.capitalize`.
pub fn capitalized(text: &Text) -> Text {
    let mut is_first = true;
    text.map(|c, out| {
        if std::mem::take(&mut is_first) {
            out.extend(c.to_uppercase());
        } else {
            out.extend(c.to_lowercase());
        }
    })
}

/// `str.title`.
fn title(text: &Text) -> Text {
    let mut is_start = true;
    text.map(|c, out| {
        if is_start {
            out.extend(c.to_uppercase())
        } else {
            out.extend(c.to_lowercase())
        }
        is_start = !c.is_alphabetic();
    })
}

/// `str.strip`, of spaces or of the given characters.
pub fn stripped(text: &Text, chars: Option<&Value>, at_start: bool, at_end: bool) -> Result<Text> {
    let chars = match chars {
        None | Some(Value::None) => None,
        Some(chars) => Some(string(chars)?.as_str()),
    };
    let goes = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let mut kept = text.as_str();
    if at_start {
        kept = kept.trim_start_matches(goes);
    }
    if at_end {
        kept = kept.trim_end_matches(goes);
    }
    Ok(text.part(kept))
}

/// `str.replace`.
pub fn replaced(text: &Text, old: &Text, new: &Text, count: Option<&Value>) -> Result<Text> {
    let count = match count {
        None | Some(Value::None) => usize::MAX,
        Some(count) => usize::try_from(integer(count)?).unwrap_or(usize::MAX),
    };
    let (mut out, mut at) = (Text::default(), 0);
    for (start, found) in text.as_str().match_indices(old.as_str()).take(count) {
        out.push_slice(text, at..start);
        out.push(new);
        at = start + found.len();
    }
    out.push_slice(text, at..text.as_str().len());
    Ok(out)
}

fn justified(text: &Text, name: &str, arguments: Arguments) -> Result<Value> {
    let [columns, fill] = arguments.bind(["width", "fillchar"])?;
    let columns = width(&columns.unwrap_or(Value::None))?;
    let fill = fill.map_or_else(|| Text::written(" "), |fill| print::text(&fill));
    let missing = columns.saturating_sub(text.as_str().chars().count());
    let left = match name {
        "ljust" => 0,
        "rjust" => missing,
        _ => missing / 2 + (missing & columns & 1),
    };
    let mut out = Text::default();
    (0..left).for_each(|_| out.push(&fill));
    out.push(text);
    (left..missing).for_each(|_| out.push(&fill));
    Ok(out.into())
}

fn expanded(text: &Text, size: usize) -> Text {
    let mut column = 0;
    text.map(|c, out| match c {
        '\t' => {
            let spaces = if size == 0 { 0 } else { size - column % size };
            out.push_str(&" ".repeat(spaces));
            column += spaces;
        }
        c => {
            out.push(c);
            column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
        }
    })
}

fn split(text: &Text, from_end: bool, arguments: Arguments) -> Result<Value> {
    let [separator, limit] = arguments.bind(["sep", "maxsplit"])?;
    let limit = limit.as_ref().map(integer).transpose()?.unwrap_or(-1);
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let separator = match &separator {
        None | Some(Value::None) => None,
        Some(separator) => Some(string(separator)?.as_str()),
    };
    let whole = text.as_str();
    let parts: Vec<&str> = match separator {
        Some("") => return Err(Failure::of("empty separator")),
        Some(separator) if from_end => {
            let parts: Vec<_> = whole.rsplitn(limit.saturating_add(1), separator).collect();
            parts.into_iter().rev().collect()
        }
        Some(separator) => whole.splitn(limit.saturating_add(1), separator).collect(),
        None => words(whole, limit, from_end),
    };
    Ok(Value::list(parts.into_iter().map(|part| text.part(part).into()).collect()))
}

/// The words of a text: at most `limit`, and the rest.
fn words(text: &str, limit: usize, from_end: bool) -> Vec<&str> {
    let mut words = Vec::new();
    let trim = |text| {
        let text: &str = text;
        if from_end { text.trim_end_matches(is_space) } else { text.trim_start_matches(is_space) }
    };
    let mut rest = trim(text);
    while !rest.is_empty() && words.len() < limit {
        let end = if from_end {
            rest.rfind(is_space).map(|at| at + rest[at..].chars().next().map_or(0, char::len_utf8))
        } else {
            rest.find(is_space)
        };
        let (head, tail) = rest.split_at(end.unwrap_or(if from_end { 0 } else { rest.len() }));
        let (word, more) = if from_end { (tail, head) } else { (head, tail) };
        words.push(word);
        rest = trim(more);
    }
    if !rest.is_empty() {
        words.push(rest);
    }
    if from_end {
        words.reverse();
    }
    words
}

/// `str.splitlines`.
pub fn lines(text: &Text, keeps_ends: bool) -> Vec<Text> {
    let is_end = |c| {
        matches!(
            c,
            '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let (whole, mut at, mut lines) = (text.as_str(), 0, Vec::new());
    while at < whole.len() {
        let Some(found) = whole[at..].find(is_end) else {
            lines.push(text.slice(at..whole.len()));
            break;
        };
        let end = at + found;
        let next = end + whole[end..].chars().next().map_or(0, char::len_utf8);
        let next = next + usize::from(whole[end..].starts_with("\r\n"));
        lines.push(text.slice(at..if keeps_ends { next } else { end }));
        at = next;
    }
    lines
}

/// `find` and its relatives, in the part of the text that further arguments name.
fn search(text: &Text, name: &str, arguments: Arguments) -> Result<Value> {
    let [wanted, start, stop] = arguments.bind(["sub", "start", "end"])?;
    let wanted = wanted.ok_or_else(|| Failure::of(format!("{name} expects an argument")))?;
    let bound = |value: &Option<Value>| match value {
        None | Some(Value::None) => Ok(None),
        Some(value) => integer(value).map(Some),
    };
    let bounds = operators::Bounds { start: bound(&start)?, stop: bound(&stop)?, step: None };
    let whole = Value::from(text.clone());
    let window = operators::slice(&whole, &bounds)?;
    let window = string(&window)?.as_str();
    if let "startswith" | "endswith" = name {
        let is_found = |wanted: &Value| {
            let wanted = string(wanted)?.as_str();
            let is_start = name == "startswith";
            Ok(if is_start { window.starts_with(wanted) } else { window.ends_with(wanted) })
        };
        let Value::List(choices) = &wanted else { return is_found(&wanted).map(Value::from) };
        for choice in choices.iter() {
            if is_found(choice)? {
                return Ok(Value::from(true));
            }
        }
        return Ok(Value::from(false));
    }
    let wanted = string(&wanted)?.as_str();
    if name == "count" {
        return Ok(Value::from(window.matches(wanted).count()));
    }
    let is_last = name.starts_with('r');
    let found = if is_last { window.rfind(wanted) } else { window.find(wanted) };
    let length = operators::length(&whole)? as i128;
    let offset = match bounds.start.unwrap_or(0) {
        start if start < 0 => (start + length).max(0),
        start => start,
    };
    match found {
        Some(at) => Ok(Value::Int(offset + window[..at].chars().count() as i128)),
        None if name.ends_with("find") => Ok(Value::Int(-1)),
        None => Err(Failure::of("substring not found")),
    }
}
