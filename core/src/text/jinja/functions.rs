//! The functions that templates call without a value before them.

use super::arguments::{Arguments, integer};
use super::failure::{Failure, Result};
use super::strftime::strftime;
use super::value::{Dict, Kind, List, Value};
use super::{operators, print};
use jiff::civil::DateTime;
use std::cell::RefCell;
use std::rc::Rc;

const NAMES: [&str; 7] =
    ["range", "dict", "namespace", "joiner", "cycler", "raise_exception", "strftime_now"];

/// The longest range, as in Jinja2's sandbox.
const MAX_RANGE: i128 = 100_000;

/// The function of a name.
pub fn find(name: &str) -> Option<Value> {
    NAMES.iter().find(|known| **known == name).map(|name| Value::Function(name))
}

/// Numbers that ranges share, so that the loops of a template over parts of a conversation stay linear.
pub struct Ranges {
    /// From 0 on.
    rising: List,
    /// Down to 0.
    falling: List,
}

impl Default for Ranges {
    fn default() -> Self {
        let empty = || List::new(Kind::List, Vec::new());
        Ranges { rising: empty(), falling: empty() }
    }
}

impl Ranges {
    /// The numbers from `start` to before `stop`, by 1 or −1.
    fn between(&mut self, start: i128, stop: i128, is_rising: bool) -> Option<List> {
        let low = usize::try_from(if is_rising { start } else { stop + 1 }).ok()?;
        let end = usize::try_from(if is_rising { stop } else { start + 1 }).ok()?;
        let count = end.checked_sub(low)?;
        if end > self.rising.len() {
            let numbers = 0..end.next_power_of_two();
            let falling = numbers.clone().rev().map(Value::from).collect();
            self.rising = List::new(Kind::List, numbers.map(Value::from).collect());
            self.falling = List::new(Kind::List, falling);
        }
        let first = self.falling.len() - end;
        Some(match is_rising {
            true => self.rising.slice(low..end),
            false => self.falling.slice(first..first + count),
        })
    }
}

/// Calls a function; `now` is the local time.
pub fn call(name: &str, arguments: Arguments, now: DateTime, ranges: &mut Ranges) -> Result<Value> {
    match name {
        "range" => range(arguments, ranges),
        "dict" => Ok(mapping(arguments)?.into()),
        "namespace" => Ok(Value::Namespace(Rc::new(RefCell::new(mapping(arguments)?)))),
        "joiner" | "cycler" => {
            let kind = if name == "joiner" { "joiner" } else { "cycler" };
            let default = || Value::written(", ");
            let mut values = arguments.positional;
            values.extend(arguments.named.into_iter().map(|(_, value)| value));
            if kind == "joiner" && values.is_empty() {
                values.push(default());
            }
            let Value::List(values) = Value::list(values) else { return Ok(Value::None) };
            if values.is_empty() {
                return Err(Failure::of("at least one item has to be provided"));
            }
            Ok(Value::Counter(kind, values, Rc::default()))
        }
        "raise_exception" => {
            let [message] = arguments.bind(["message"])?;
            Err(Failure::of(print::text(&message.unwrap_or(Value::None)).as_str()))
        }
        "strftime_now" => {
            let [format] = arguments.bind(["format"])?;
            let format = print::text(&format.unwrap_or(Value::None));
            Ok(Value::written(&strftime(format.as_str(), now)))
        }
        other => Err(Failure::of(format!("no function named '{other}'"))),
    }
}

fn range(arguments: Arguments, ranges: &mut Ranges) -> Result<Value> {
    let bounds = arguments.bind(["start", "stop", "step"])?;
    let given = bounds.iter().flatten().map(integer).collect::<Result<Vec<_>>>()?;
    let (start, stop, step) = match given[..] {
        [stop] => (0, stop, 1),
        [start, stop] => (start, stop, 1),
        [start, stop, step] if step != 0 => (start, stop, step),
        _ => return Err(Failure::of("range expects one to three numbers, and no step of 0")),
    };
    let distance = if step > 0 { stop.saturating_sub(start) } else { start.saturating_sub(stop) };
    if distance.max(0) / step.saturating_abs() > MAX_RANGE {
        return Err(Failure::of(format!("a range has at most {MAX_RANGE} numbers")));
    }
    if step.abs() == 1
        && let Some(list) = ranges.between(start, stop, step == 1)
    {
        return Ok(Value::List(list));
    }
    let mut at = start;
    let numbers = std::iter::from_fn(|| {
        let is_inside = if step > 0 { at < stop } else { at > stop };
        let number = is_inside.then_some(Value::Int(at));
        at = at.saturating_add(step);
        number
    });
    Ok(Value::list(numbers.collect()))
}

/// A mapping of another one, of pairs, and of named arguments.
fn mapping(arguments: Arguments) -> Result<Dict> {
    let mut dict = Dict::default();
    if let Some(first) = arguments.positional.first() {
        match first {
            Value::Dict(entries) => dict = (**entries).clone(),
            pairs => {
                for pair in operators::iterate(pairs)?.iter() {
                    match &*operators::iterate(pair)? {
                        [key, value] => dict.insert(key.clone(), value.clone()),
                        _ => return Err(Failure::of("a mapping is made of pairs")),
                    }
                }
            }
        }
    }
    for (name, value) in arguments.named {
        dict.insert(Value::written(&name), value);
    }
    Ok(dict)
}
