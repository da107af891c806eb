//! Operators, attributes, subscripts and iteration.

use super::arguments::integer;
use super::failure::{Failure, Result};
use super::members;
use super::text::Text;
use super::tree::Operator;
use super::value::{Kind, List, Loop, MAX_WEIGHT, Number, Value, is_equal};
use std::cmp::Ordering;
use std::ops::Range;
use std::rc::Rc;

/// The longest text that `*` makes, in bytes.
const MAX_REPEATED: usize = 1 << 24;

/// The error for the use of an undefined value.
pub fn refuse_undefined(value: &Value) -> Result<()> {
    match value {
        Value::Undefined(what) => Err(Failure::of(&**what)),
        _ => Ok(()),
    }
}

/// An operator with two operands, without `%` of texts.
pub fn binary(left: &Value, operator: Operator, right: &Value) -> Result<Value> {
    refuse_undefined(left)?;
    refuse_undefined(right)?;
    match (left, operator, right) {
        (Value::Text(left), Operator::Add, Value::Text(right)) => {
            let mut out = (**left).clone();
            out.push(right);
            return Ok(out.into());
        }
        (Value::List(left), Operator::Add, Value::List(right)) if left.kind == right.kind => {
            let items = left.iter().chain(right.iter()).cloned().collect();
            return Ok(Value::List(List::new(left.kind, items)));
        }
        (value @ (Value::Text(_) | Value::List(_)), Operator::Multiply, Value::Int(count))
        | (Value::Int(count), Operator::Multiply, value @ (Value::Text(_) | Value::List(_))) => {
            return repeat(value, usize::try_from((*count).max(0)).unwrap_or(usize::MAX));
        }
        _ => {}
    }
    let (Some(a), Some(b)) = (Number::of(left), Number::of(right)) else {
        let (left, right) = (left.type_name(), right.type_name());
        return Err(Failure::of(format!("unsupported operands: {left} and {right}")));
    };
    match (a, b) {
        (Number::Int(a), Number::Int(b)) => integers(a, operator, b),
        _ => floats(a.float(), operator, b.float()).map(Value::Float),
    }
}

fn integers(a: i128, operator: Operator, b: i128) -> Result<Value> {
    let zero = || Failure::of("division by zero");
    let result = match operator {
        Operator::Divide => {
            return floats(a as f64, operator, b as f64).map(Value::Float);
        }
        Operator::Power if b < 0 => {
            return floats(a as f64, operator, b as f64).map(Value::Float);
        }
        Operator::Add => a.checked_add(b),
        Operator::Subtract => a.checked_sub(b),
        Operator::Multiply => a.checked_mul(b),
        Operator::FloorDivide if b == 0 => return Err(zero()),
        Operator::Remainder if b == 0 => return Err(zero()),
        Operator::FloorDivide => {
            let exact = a.checked_rem(b).is_some_and(|rest| rest == 0 || (rest < 0) == (b < 0));
            a.checked_div(b).map(|quotient| if exact { quotient } else { quotient - 1 })
        }
        Operator::Remainder => a
            .checked_rem(b)
            .map(|rest| if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }),
        Operator::Power => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
    };
    result.map(Value::Int).ok_or_else(|| Failure::of("the number is too large"))
}

fn floats(a: f64, operator: Operator, b: f64) -> Result<f64> {
    let divides =
        matches!(operator, Operator::Divide | Operator::FloorDivide | Operator::Remainder);
    if divides && b == 0.0 {
        return Err(Failure::of("division by zero"));
    }
    Ok(match operator {
        Operator::Add => a + b,
        Operator::Subtract => a - b,
        Operator::Multiply => a * b,
        Operator::Divide => a / b,
        Operator::FloorDivide => (a / b).floor(),
        Operator::Remainder => a - b * (a / b).floor(),
        Operator::Power => a.powf(b),
    })
}

fn repeat(value: &Value, count: usize) -> Result<Value> {
    let too_long = || Failure::of("the repeated value is too long");
    match value {
        Value::Text(text) => {
            let length = text.as_str().len().saturating_mul(count);
            if length > MAX_REPEATED {
                return Err(too_long());
            }
            let mut out = Text::default();
            (0..if length > 0 { count } else { 0 }).for_each(|_| out.push(text));
            Ok(out.into())
        }
        Value::List(list) => {
            let count = if list.is_empty() { 0 } else { count };
            if value.weight().saturating_mul(count) > MAX_WEIGHT {
                return Err(too_long());
            }
            let items = (0..count).flat_map(|_| list.iter().cloned()).collect();
            Ok(Value::List(List::new(list.kind, items)))
        }
        _ => Err(too_long()),
    }
}

/// The order of two values, for `<` and sorting.
pub fn compare(left: &Value, right: &Value) -> Result<Option<Ordering>> {
    refuse_undefined(left)?;
    refuse_undefined(right)?;
    match (left, right) {
        (Value::Text(left), Value::Text(right)) => Ok(Some(left.as_str().cmp(right.as_str()))),
        (Value::List(left), Value::List(right)) => {
            for (left, right) in left.iter().zip(right.iter()) {
                if !is_equal(left, right) {
                    return compare(left, right);
                }
            }
            Ok(Some(left.len().cmp(&right.len())))
        }
        _ => match (Number::of(left), Number::of(right)) {
            (Some(left), Some(right)) => Ok(left.compare(right)),
            _ => {
                let (left, right) = (left.type_name(), right.type_name());
                Err(Failure::of(format!("a {left} and a {right} have no order")))
            }
        },
    }
}

/// `item in container`.
pub fn contains(container: &Value, item: &Value) -> Result<bool> {
    match container {
        Value::Undefined(_) => Ok(false),
        Value::Text(text) => match item {
            Value::Text(part) => Ok(text.as_str().contains(part.as_str())),
            other => {
                let kind = other.type_name();
                Err(Failure::of(format!("`in` a text requires a text, not a {kind}")))
            }
        },
        Value::List(list) => Ok(list.iter().any(|found| is_equal(found, item))),
        Value::Dict(dict) => Ok(dict.get(item).is_some()),
        other => Err(Failure::of(format!("a {} contains nothing", other.type_name()))),
    }
}

/// The items of a value in a loop.
pub fn iterate(value: &Value) -> Result<List> {
    Ok(match value {
        Value::Undefined(_) => List::new(Kind::List, Vec::new()),
        Value::List(list) => list.clone(),
        Value::Text(text) => {
            let mut ends = text.as_str().char_indices().map(|(at, c)| at..at + c.len_utf8());
            let chars = ends.by_ref().map(|range| text.slice(range).into());
            List::new(Kind::List, chars.collect())
        }
        Value::Dict(dict) => {
            List::new(Kind::List, dict.entries().iter().map(|(key, _)| key.clone()).collect())
        }
        other => return Err(Failure::of(format!("a {} cannot be iterated", other.type_name()))),
    })
}

/// The number of items, or of characters.
pub fn length(value: &Value) -> Result<usize> {
    match value {
        Value::Undefined(_) => Ok(0),
        Value::Text(text) => Ok(text.as_str().chars().count()),
        Value::List(list) => Ok(list.len()),
        Value::Dict(dict) => Ok(dict.entries().len()),
        other => Err(Failure::of(format!("a {} has no length", other.type_name()))),
    }
}

/// `value.name`: a method or else an item.
pub fn attribute(value: &Value, name: &Rc<str>) -> Result<Value> {
    refuse_undefined(value)?;
    if members::has_method(value, name) {
        return Ok(Value::Method(Rc::new(value.clone()), name.clone()));
    }
    let found = match value {
        Value::Dict(dict) => dict.get_str(name).cloned(),
        Value::Namespace(namespace) => namespace.borrow().get_str(name).cloned(),
        Value::Loop(state) => loop_attribute(state, name),
        // What `groupby` yields.
        Value::List(pair) if pair.kind == Kind::Tuple && &**name == "grouper" => {
            pair.first().cloned()
        }
        Value::List(pair) if pair.kind == Kind::Tuple && &**name == "list" => pair.get(1).cloned(),
        Value::Macro(closure) if &**name == "name" => Some(Value::written(&closure.code.name)),
        Value::Counter("cycler", values, index) if &**name == "current" => {
            values.get(index.get() % values.len().max(1)).cloned()
        }
        _ => None,
    };
    Ok(found.unwrap_or_else(|| missing(value, name)))
}

fn missing(value: &Value, name: &str) -> Value {
    Value::undefined(&format!("'{} object' has no attribute '{name}'", value.type_name()))
}

fn loop_attribute(state: &Loop, name: &str) -> Option<Value> {
    let (index, length) = (state.index.get(), state.items.len());
    let neighbour = |item: Option<&Value>, what: &str| {
        item.cloned().unwrap_or_else(|| Value::undefined(&format!("there is no {what} item")))
    };
    Some(match name {
        "index" => Value::from(index + 1),
        "index0" => Value::from(index),
        "revindex" => Value::from(length - index),
        "revindex0" => Value::from(length - index - 1),
        "first" => Value::from(index == 0),
        "last" => Value::from(index + 1 == length),
        "length" => Value::from(length),
        "depth" => Value::from(state.depth),
        "depth0" => Value::from(state.depth - 1),
        "previtem" => {
            neighbour(index.checked_sub(1).and_then(|at| state.items.get(at)), "previous")
        }
        "nextitem" => neighbour(state.items.get(index + 1), "next"),
        _ => return None,
    })
}

/// `value[key]`: an item or else an attribute.
pub fn item(value: &Value, key: &Value) -> Result<Value> {
    refuse_undefined(value)?;
    let found = match (value, key) {
        (Value::Dict(dict), key) => dict.get(key).cloned(),
        (Value::List(list), Value::Int(_) | Value::Bool(_)) => {
            position(integer(key)?, list.len()).and_then(|at| list.get(at).cloned())
        }
        (Value::Text(text), Value::Int(_) | Value::Bool(_)) => {
            let length = text.as_str().chars().count();
            position(integer(key)?, length).map(|at| text.slice(bytes(text, at..at + 1)).into())
        }
        _ => None,
    };
    match (found, key) {
        (Some(found), _) => Ok(found),
        (None, Value::Text(name)) => attribute(value, &name.as_str().into()),
        (None, key) => Ok(missing(value, super::print::text(key).as_str())),
    }
}

/// The item at the end of a path such as `function.name`.
pub fn path(value: &Value, path: &Value) -> Result<Value> {
    let Value::Text(path) = path else { return item(value, path) };
    let mut value = value.clone();
    for name in path.as_str().split('.') {
        let key = name.parse().map_or_else(|_| Value::written(name), Value::Int);
        value = item(&value, &key)?;
    }
    Ok(value)
}

fn position(index: i128, length: usize) -> Option<usize> {
    let index = if index < 0 { index + length as i128 } else { index };
    usize::try_from(index).ok().filter(|index| *index < length)
}

/// The bytes of a range of characters.
pub fn bytes(text: &Text, range: Range<usize>) -> Range<usize> {
    let text = text.as_str();
    if text.is_ascii() {
        return range.start.min(text.len())..range.end.min(text.len());
    }
    let mut starts = text.char_indices().map(|(at, _)| at).chain([text.len()]);
    let start = starts.clone().nth(range.start).unwrap_or(text.len());
    starts.nth(range.end).map_or(start..text.len(), |end| start..end)
}

/// The bounds of a slice, as Python normalizes them.
pub struct Bounds {
    pub start: Option<i128>,
    pub stop: Option<i128>,
    pub step: Option<i128>,
}

impl Bounds {
    /// The range and the step in a sequence of this length; `start` comes after `end` for a negative step.
    fn within(&self, length: usize) -> Result<(i128, i128, i128)> {
        let (step, length) = (self.step.unwrap_or(1), length as i128);
        if step == 0 {
            return Err(Failure::of("the step of a slice is 0"));
        }
        let (low, high) = if step > 0 { (0, length) } else { (-1, length - 1) };
        let bound = |index: Option<i128>, default: i128| match index {
            None => default,
            Some(index) if index < 0 => index.saturating_add(length).max(low),
            Some(index) => index.min(high),
        };
        let (first, last) = if step > 0 { (low, high) } else { (high, low) };
        Ok((bound(self.start, first), bound(self.stop, last), step))
    }
}

/// `value[start:stop:step]`.
pub fn slice(value: &Value, bounds: &Bounds) -> Result<Value> {
    refuse_undefined(value)?;
    let length = length(value)?;
    let (start, stop, step) = bounds.within(length)?;
    let forward = || {
        let (start, stop) = (start as usize, stop.max(start) as usize);
        start..stop
    };
    let places = || {
        let mut at = start;
        std::iter::from_fn(move || {
            let is_inside = if step > 0 { at < stop } else { at > stop };
            let place = is_inside.then_some(at as usize);
            at = at.saturating_add(step);
            place
        })
    };
    match value {
        Value::List(list) if step == 1 => Ok(Value::List(list.slice(forward()))),
        Value::List(list) => {
            let items = places().filter_map(|at| list.get(at).cloned()).collect();
            Ok(Value::List(List::new(list.kind, items)))
        }
        Value::Text(text) if step == 1 => Ok(text.slice(bytes(text, forward())).into()),
        Value::Text(text) => {
            let chars: Vec<_> = text.as_str().char_indices().collect();
            let mut out = Text::default();
            for (at, c) in places().filter_map(|at| chars.get(at)) {
                out.push_slice(text, *at..at + c.len_utf8());
            }
            Ok(out.into())
        }
        other => Err(Failure::of(format!("a {} has no slices", other.type_name()))),
    }
}
