//! What stands after `is`: Jinja2 calls these tests.

use super::arguments::{Arguments, integer};
use super::failure::{Failure, Result};
use super::operators;
use super::value::{Kind, Number, Value, is_equal};
use std::cmp::Ordering;

/// `value is name(arguments)`.
pub fn test(name: &str, value: &Value, arguments: Arguments) -> Result<bool> {
    let operand = || {
        let first = arguments.positional.first();
        first.ok_or_else(|| Failure::of(format!("the test `{name}` needs an operand")))
    };
    let order =
        |is: fn(Ordering) -> bool| Ok(operators::compare(value, operand()?)?.is_some_and(is));
    let case = |is_upper: bool| {
        let text = value.as_text().map(|text| text.as_str()).unwrap_or_default();
        let mut cased = text.chars().filter(|c| c.is_uppercase() || c.is_lowercase());
        let any = cased.clone().next().is_some();
        any && cased.all(|c| c.is_uppercase() == is_upper)
    };
    Ok(match name {
        "defined" => !value.is_undefined(),
        "undefined" => value.is_undefined(),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => Number::of(value).is_some(),
        "string" => value.as_text().is_some(),
        "mapping" => matches!(value, Value::Dict(_)),
        "sequence" => match value {
            Value::Undefined(_) | Value::Text(_) | Value::Dict(_) => true,
            Value::List(list) => matches!(list.kind, Kind::List | Kind::Tuple),
            _ => false,
        },
        "iterable" => {
            matches!(value, Value::Undefined(_) | Value::Text(_) | Value::List(_) | Value::Dict(_))
        }
        "callable" => matches!(
            value,
            Value::Macro(_) | Value::Function(_) | Value::Method(..) | Value::Counter("joiner", ..)
        ),
        "escaped" => false,
        "lower" => case(false),
        "upper" => case(true),
        "odd" => integer(value)?.rem_euclid(2) == 1,
        "even" => integer(value)?.rem_euclid(2) == 0,
        "divisibleby" => {
            let divisor = integer(operand()?)?;
            let rest = integer(value)?.checked_rem(divisor);
            rest.ok_or_else(|| Failure::of("division by zero"))? == 0
        }
        "eq" | "==" | "equalto" => is_equal(value, operand()?),
        "ne" | "!=" => !is_equal(value, operand()?),
        "sameas" => {
            let operand = operand()?;
            value.type_name() == operand.type_name() && is_equal(value, operand)
        }
        "lt" | "<" | "lessthan" => order(Ordering::is_lt)?,
        "le" | "<=" => order(Ordering::is_le)?,
        "gt" | ">" | "greaterthan" => order(Ordering::is_gt)?,
        "ge" | ">=" => order(Ordering::is_ge)?,
        "in" => operators::contains(operand()?, value)?,
        other => return Err(Failure::of(format!("no test named '{other}'"))),
    })
}
