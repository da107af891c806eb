//! The filters of sequences, and the choice among all filters.

use super::arguments::{Arguments, width};
use super::conditions::test;
use super::failure::{Failure, Result};
use super::text::Text;
use super::value::{Kind, List, Value, is_equal};
use super::{filters, methods, operators, print};
use std::cmp::Ordering;
use std::collections::HashSet;

/// `value | name(arguments)`.
pub fn filter(name: &str, value: &Value, arguments: Arguments) -> Result<Value> {
    let items = || operators::iterate(value);
    match name {
        "list" => Ok(Value::list(items()?.to_vec())),
        "items" => match value {
            Value::Undefined(_) => Ok(Value::iterator(Vec::new())),
            Value::Dict(_) => {
                let pairs = methods::call(value, "items", Arguments::default())?;
                Ok(Value::iterator(operators::iterate(&pairs)?.to_vec()))
            }
            other => Err(Failure::of(format!("a {} has no items", other.type_name()))),
        },
        "join" => {
            let [separator, attribute] = arguments.bind(["d", "attribute"])?;
            let separator = separator.map(|separator| print::text(&separator)).unwrap_or_default();
            let mut out = Text::default();
            for (index, item) in items()?.iter().enumerate() {
                if index > 0 {
                    out.push(&separator);
                }
                match &attribute {
                    Some(attribute) => print::push(&operators::path(item, attribute)?, &mut out),
                    None => print::push(item, &mut out),
                }
            }
            Ok(out.into())
        }
        "first" | "last" => {
            let items = items()?;
            let item = if name == "first" { items.first() } else { items.last() };
            let none = || Value::undefined(&format!("no {name} item, the sequence was empty"));
            Ok(item.cloned().unwrap_or_else(none))
        }
        "reverse" => {
            let backwards = operators::Bounds { start: None, stop: None, step: Some(-1) };
            match value {
                Value::Text(_) => operators::slice(value, &backwards),
                _ => Ok(Value::iterator(items()?.iter().rev().cloned().collect())),
            }
        }
        "sort" => {
            let [reverse, case_sensitive, attribute] =
                arguments.bind(["reverse", "case_sensitive", "attribute"])?;
            let order = Order::new(attribute, case_sensitive);
            let sorted = order.sort(items()?.to_vec(), is_set(&reverse))?;
            Ok(Value::list(sorted))
        }
        "dictsort" => {
            let [case_sensitive, by, reverse] =
                arguments.bind(["case_sensitive", "by", "reverse"])?;
            let by_value = by.is_some_and(|by| is_equal(&by, &Value::written("value")));
            let order = Order::new(Some(Value::from(usize::from(by_value))), case_sensitive);
            let pairs = methods::call(value, "items", Arguments::default())?;
            let sorted = order.sort(operators::iterate(&pairs)?.to_vec(), is_set(&reverse))?;
            Ok(Value::list(sorted))
        }
        "unique" => {
            let [case_sensitive, attribute] = arguments.bind(["case_sensitive", "attribute"])?;
            let order = Order::new(attribute, case_sensitive);
            let (mut seen, mut kept) = (HashSet::new(), Vec::new());
            for item in items()?.iter() {
                if seen.insert(print::repr(&order.key(item)?).as_str().to_string()) {
                    kept.push(item.clone());
                }
            }
            Ok(Value::iterator(kept))
        }
        "min" | "max" => {
            let [case_sensitive, attribute] = arguments.bind(["case_sensitive", "attribute"])?;
            let order = Order::new(attribute, case_sensitive);
            let wanted = if name == "min" { Ordering::Less } else { Ordering::Greater };
            let mut best: Option<(Value, Value)> = None;
            for item in items()?.iter() {
                let key = order.key(item)?;
                let is_better = match &best {
                    Some((_, found)) => operators::compare(&key, found)? == Some(wanted),
                    None => true,
                };
                if is_better {
                    best = Some((item.clone(), key));
                }
            }
            let none = || Value::undefined("no aggregated item, the sequence was empty");
            Ok(best.map_or_else(none, |(item, _)| item))
        }
        "sum" => {
            let [attribute, start] = arguments.bind(["attribute", "start"])?;
            let mut sum = start.unwrap_or(Value::Int(0));
            for item in items()?.iter() {
                let item = match &attribute {
                    None | Some(Value::None) => item.clone(),
                    Some(attribute) => operators::path(item, attribute)?,
                };
                sum = operators::binary(&sum, super::tree::Operator::Add, &item)?;
            }
            Ok(sum)
        }
        "batch" => batch(&items()?, arguments),
        "slice" => slices(&items()?, arguments),
        "groupby" => groups(&items()?, arguments),
        "map" => map(&items()?, arguments),
        "select" | "reject" => choose(&items()?, name == "select", None, arguments),
        "selectattr" | "rejectattr" => {
            let mut arguments = arguments;
            if arguments.positional.is_empty() {
                return Err(Failure::of(format!("{name} expects the name of an attribute")));
            }
            let attribute = arguments.positional.remove(0);
            choose(&items()?, name == "selectattr", Some(attribute), arguments)
        }
        _ => filters::filter(name, value, arguments),
    }
}

fn is_set(flag: &Option<Value>) -> bool {
    flag.as_ref().is_some_and(Value::is_true)
}

/// By what items are compared.
struct Order {
    attributes: Vec<Value>,
    is_case_sensitive: bool,
}

impl Order {
    fn new(attribute: Option<Value>, case_sensitive: Option<Value>) -> Self {
        let attributes = match attribute {
            None | Some(Value::None) => Vec::new(),
            Some(Value::Text(names)) => names.as_str().split(',').map(Value::written).collect(),
            Some(index) => vec![index],
        };
        Order { attributes, is_case_sensitive: is_set(&case_sensitive) }
    }

    fn key(&self, item: &Value) -> Result<Value> {
        let fold = |value: Value| match &value {
            Value::Text(text) if !self.is_case_sensitive => methods::lower(text).into(),
            _ => value,
        };
        match &self.attributes[..] {
            [] => Ok(fold(item.clone())),
            [attribute] => operators::path(item, attribute).map(fold),
            several => {
                let keys = several.iter().map(|path| operators::path(item, path).map(fold));
                Ok(Value::tuple(keys.collect::<Result<_>>()?))
            }
        }
    }

    fn sort(&self, items: Vec<Value>, is_reversed: bool) -> Result<Vec<Value>> {
        let keyed = items.into_iter().map(|item| Ok((self.key(&item)?, item)));
        let mut keyed = keyed.collect::<Result<Vec<_>>>()?;
        let mut failure = None;
        keyed.sort_by(|(left, _), (right, _)| {
            let (left, right) = if is_reversed { (right, left) } else { (left, right) };
            operators::compare(left, right)
                .unwrap_or_else(|error| {
                    failure = Some(error);
                    None
                })
                .unwrap_or(Ordering::Equal)
        });
        match failure {
            Some(failure) => Err(failure),
            None => Ok(keyed.into_iter().map(|(_, item)| item).collect()),
        }
    }
}

fn batch(items: &List, arguments: Arguments) -> Result<Value> {
    let [count, fill] = arguments.bind(["linecount", "fill_with"])?;
    let count = width(&count.unwrap_or(Value::None))?;
    if count == 0 {
        return Err(Failure::of("a batch has at least one item"));
    }
    let batches = items.chunks(count).map(|chunk| {
        let mut batch = chunk.to_vec();
        if let Some(fill) = fill.as_ref().filter(|fill| !matches!(fill, Value::None)) {
            batch.resize(count, fill.clone());
        }
        Value::list(batch)
    });
    Ok(Value::iterator(batches.collect()))
}

fn slices(items: &List, arguments: Arguments) -> Result<Value> {
    let [count, fill] = arguments.bind(["slices", "fill_with"])?;
    let count = width(&count.unwrap_or(Value::None))?;
    if count == 0 {
        return Err(Failure::of("there is at least one slice"));
    }
    let (size, longer) = (items.len() / count, items.len() % count);
    let (mut at, mut slices) = (0, Vec::new());
    for index in 0..count {
        let end = at + size + usize::from(index < longer);
        let mut slice = items[at..end].to_vec();
        if let Some(fill) = fill.as_ref().filter(|fill| !matches!(fill, Value::None))
            && index >= longer
        {
            slice.push(fill.clone());
        }
        slices.push(Value::list(slice));
        at = end;
    }
    Ok(Value::iterator(slices))
}

fn groups(items: &List, arguments: Arguments) -> Result<Value> {
    let [attribute, default, case_sensitive] =
        arguments.bind(["attribute", "default", "case_sensitive"])?;
    let attribute = attribute.ok_or_else(|| Failure::of("groupby expects an attribute"))?;
    let or_default = |value: Value| match (&default, value.is_undefined()) {
        (Some(default), true) => default.clone(),
        _ => value,
    };
    let order = Order::new(Some(Value::Int(0)), case_sensitive);
    let keyed = items.iter().map(|item| {
        let key = or_default(operators::path(item, &attribute)?);
        Ok(Value::tuple(vec![key, item.clone()]))
    });
    let keyed = order.sort(keyed.collect::<Result<_>>()?, false)?;
    let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
    for pair in keyed {
        let (key, item) =
            (operators::item(&pair, &Value::Int(0))?, operators::item(&pair, &Value::Int(1))?);
        let folded = order.key(&pair)?;
        match groups.last_mut() {
            Some((found, group))
                if is_equal(&order.key(&Value::tuple(vec![found.clone()]))?, &folded) =>
            {
                group.push(item);
            }
            _ => groups.push((key, vec![item])),
        }
    }
    let group = |(key, items)| Value::tuple(vec![key, Value::list(items)]);
    Ok(Value::list(groups.into_iter().map(group).collect()))
}

fn map(items: &List, mut arguments: Arguments) -> Result<Value> {
    let attribute = arguments.named.iter().find(|(name, _)| &**name == "attribute").cloned();
    let mut mapped = Vec::with_capacity(items.len());
    if let Some((_, attribute)) = attribute {
        let default = arguments.named.iter().find(|(name, _)| &**name == "default").cloned();
        for item in items.iter() {
            let value = operators::path(item, &attribute)?;
            mapped.push(match &default {
                Some((_, default)) if value.is_undefined() => default.clone(),
                _ => value,
            });
        }
        return Ok(Value::iterator(mapped));
    }
    if arguments.positional.is_empty() {
        return Err(Failure::of("map expects a filter or an attribute"));
    }
    let name = print::text(&arguments.positional.remove(0));
    for item in items.iter() {
        mapped.push(filter(name.as_str(), item, arguments.clone())?);
    }
    Ok(Value::iterator(mapped))
}

/// The items for which a test, or else their truth, has a result.
fn choose(
    items: &List,
    wanted: bool,
    attribute: Option<Value>,
    mut arguments: Arguments,
) -> Result<Value> {
    let name = match arguments.positional.is_empty() {
        true => None,
        false => Some(print::text(&arguments.positional.remove(0))),
    };
    let mut chosen = Vec::new();
    for item in items.iter() {
        let value = match &attribute {
            Some(attribute) => operators::path(item, attribute)?,
            None => item.clone(),
        };
        let holds = match &name {
            Some(name) => test(name.as_str(), &value, arguments.clone())?,
            None => value.is_true(),
        };
        if holds == wanted {
            chosen.push(item.clone());
        }
    }
    Ok(Value::List(List::new(Kind::Iterator, chosen)))
}
