//! Expressions of a running template.

use super::arguments::{Arguments, integer};
use super::failure::{Failure, Result};
use super::interpreter::Interpreter;
use super::text::Text;
use super::tree::{self, Comparison, Expression, Operator};
use super::value::{Dict, Number, Value, is_equal};
use super::{conditions, format, functions, methods, operators, print, sequences};
use std::cmp::Ordering;
use std::sync::Arc;

/// Filters that do not look at all items of a sequence.
const CONSTANT_TIME: [&str; 8] =
    ["length", "count", "first", "last", "default", "d", "safe", "attr"];

impl Interpreter<'_> {
    /// The value of an expression.
    pub fn evaluate(&mut self, expression: &Expression) -> Result<Value> {
        self.nested(|this| this.value(expression))
    }

    fn value(&mut self, expression: &Expression) -> Result<Value> {
        Ok(match expression {
            Expression::None => Value::None,
            Expression::Bool(value) => Value::Bool(*value),
            Expression::Int(number) => Value::Int(*number),
            Expression::Float(number) => Value::Float(*number),
            Expression::Text(text) => Value::written(text),
            Expression::Name(name) => self.lookup(name),
            Expression::Captured => self.captured.last().cloned().unwrap_or(Value::None),
            Expression::List(items) => Value::list(self.values(items)?),
            Expression::Tuple(items) => Value::tuple(self.values(items)?),
            Expression::Dict(entries) => self.dict(entries)?,
            Expression::Not(value) => Value::Bool(!self.evaluate(value)?.is_true()),
            Expression::Negative(value) => negative(&self.evaluate(value)?)?,
            Expression::Positive(value) => self.evaluate(value)?,
            Expression::And(left, right) => {
                let left = self.evaluate(left)?;
                if left.is_true() { self.evaluate(right)? } else { left }
            }
            Expression::Or(left, right) => {
                let left = self.evaluate(left)?;
                if left.is_true() { left } else { self.evaluate(right)? }
            }
            Expression::Binary(left, operator, right) => self.binary(left, *operator, right)?,
            Expression::Concat(parts) => self.concat(parts)?,
            Expression::Compare(first, rest) => self.compare(first, rest)?,
            Expression::Conditional(condition, value, otherwise) => {
                match (self.evaluate(condition)?.is_true(), otherwise) {
                    (true, _) => self.evaluate(value)?,
                    (false, Some(otherwise)) => self.evaluate(otherwise)?,
                    (false, None) => Value::undefined("the condition has no `else`"),
                }
            }
            Expression::Attribute(value, name) => {
                operators::attribute(&self.evaluate(value)?, &(&**name).into())?
            }
            Expression::Item(value, key) => {
                let (value, key) = (self.evaluate(value)?, self.evaluate(key)?);
                self.charge(value.as_text().map_or(0, |text| text.as_str().len() / 64))?;
                operators::item(&value, &key)?
            }
            Expression::Slice(value, slice) => self.slice(value, slice)?,
            Expression::Call(..) => self.call_with(expression, None)?,
            Expression::Filter(value, name, arguments) => self.filter(value, name, arguments)?,
            Expression::Test(value, name, arguments) => {
                let value = self.evaluate(value)?;
                let arguments = self.arguments(arguments)?;
                conditions::test(name, &value, arguments)?.into()
            }
        })
    }

    fn values(&mut self, expressions: &[Expression]) -> Result<Vec<Value>> {
        expressions.iter().map(|expression| self.evaluate(expression)).collect()
    }

    fn dict(&mut self, entries: &[(Expression, Expression)]) -> Result<Value> {
        let mut dict = Dict::default();
        for (key, value) in entries {
            dict.insert(self.evaluate(key)?, self.evaluate(value)?);
        }
        Ok(dict.into())
    }

    fn binary(
        &mut self,
        left: &Expression,
        operator: Operator,
        right: &Expression,
    ) -> Result<Value> {
        let (left, right) = (self.evaluate(left)?, self.evaluate(right)?);
        let value = match (&left, operator) {
            (Value::Text(template), Operator::Remainder) => {
                operators::refuse_undefined(&right)?;
                format::percent(template, &right)?.into()
            }
            _ => operators::binary(&left, operator, &right)?,
        };
        self.paid(value)
    }

    /// A new value, after its length was charged.
    fn paid(&mut self, value: Value) -> Result<Value> {
        value.check()?;
        let length = value.as_text().map_or(0, |text| text.as_str().len());
        self.charge(length / 16 + value.weight() / 8)?;
        Ok(value)
    }

    fn concat(&mut self, parts: &[Expression]) -> Result<Value> {
        let mut text = Text::default();
        for part in parts {
            print::push(&self.evaluate(part)?, &mut text);
        }
        self.paid(text.into())
    }

    fn compare(&mut self, first: &Expression, rest: &[(Comparison, Expression)]) -> Result<Value> {
        let mut left = self.evaluate(first)?;
        for (comparison, right) in rest {
            let right = self.evaluate(right)?;
            self.charge(left.weight().min(right.weight()))?;
            let order = |is: fn(Ordering) -> bool| {
                Ok::<_, Failure>(operators::compare(&left, &right)?.is_some_and(is))
            };
            let holds = match comparison {
                Comparison::Equal => is_equal(&left, &right),
                Comparison::NotEqual => !is_equal(&left, &right),
                Comparison::Less => order(Ordering::is_lt)?,
                Comparison::LessOrEqual => order(Ordering::is_le)?,
                Comparison::Greater => order(Ordering::is_gt)?,
                Comparison::GreaterOrEqual => order(Ordering::is_ge)?,
                Comparison::In | Comparison::NotIn => {
                    let length = right.as_text().map_or(0, |text| text.as_str().len());
                    self.charge(right.weight() + length / 64)?;
                    let is_in = operators::contains(&right, &left)?;
                    is_in == matches!(comparison, Comparison::In)
                }
            };
            if !holds {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    fn slice(&mut self, value: &Expression, slice: &tree::Slice) -> Result<Value> {
        let value = self.evaluate(value)?;
        let mut bound = |bound: &Option<Expression>| match bound {
            None => Ok(None),
            Some(bound) => match self.evaluate(bound)? {
                Value::None => Ok(None),
                bound => integer(&bound).map(Some),
            },
        };
        let bounds = operators::Bounds {
            start: bound(&slice.start)?,
            stop: bound(&slice.stop)?,
            step: bound(&slice.step)?,
        };
        let value = operators::slice(&value, &bounds)?;
        match &value {
            // A slice shares the items of its list.
            Value::List(_) if bounds.step.unwrap_or(1) == 1 => Ok(value),
            _ => self.paid(value),
        }
    }

    fn filter(
        &mut self,
        value: &Expression,
        name: &Arc<str>,
        arguments: &tree::Arguments,
    ) -> Result<Value> {
        let value = self.evaluate(value)?;
        let arguments = self.arguments(arguments)?;
        if CONSTANT_TIME.contains(&&**name) {
            return sequences::filter(name, &value, arguments);
        }
        self.charge(value.weight())?;
        let value = sequences::filter(name, &value, arguments)?;
        self.paid(value)
    }

    fn arguments(&mut self, arguments: &tree::Arguments) -> Result<Arguments> {
        let mut bound =
            Arguments { positional: self.values(&arguments.positional)?, named: Vec::new() };
        for (name, value) in &arguments.named {
            bound.named.push((name.clone(), self.evaluate(value)?));
        }
        if let Some(list) = &arguments.list {
            let list = self.evaluate(list)?;
            bound.positional.extend(operators::iterate(&list)?.iter().cloned());
        }
        if let Some(mapping) = &arguments.mapping {
            let Value::Dict(mapping) = self.evaluate(mapping)? else {
                return Err(Failure::of("a mapping is expected after `**`"));
            };
            let named = mapping.entries().iter();
            let named = named.map(|(key, value)| (print::text(key).as_str().into(), value.clone()));
            bound.named.extend(named);
        }
        Ok(bound)
    }

    /// A call, to which a `call` block adds its body as `caller`.
    pub fn call_with(&mut self, call: &Expression, caller: Option<Value>) -> Result<Value> {
        let Expression::Call(function, arguments) = call else {
            return Err(Failure::of("a call is expected"));
        };
        let function = self.evaluate(function)?;
        let mut arguments = self.arguments(arguments)?;
        arguments.named.extend(caller.map(|caller| ("caller".into(), caller)));
        let value = match &function {
            Value::Macro(closure) => self.call_macro(closure, arguments)?,
            Value::Function(name) => functions::call(name, arguments, self.now, &mut self.ranges)?,
            Value::Method(value, name) => {
                // The views of a mapping are as long as it, and most methods read their whole text.
                let length = value.as_text().map_or(0, |text| text.as_str().len());
                self.charge(length / 64)?;
                methods::call(value, name, arguments)?
            }
            Value::Counter("joiner", separator, calls) => {
                let is_first = calls.replace(1) == 0;
                if is_first { Value::written("") } else { separator[0].clone() }
            }
            Value::Loop(state) => {
                let [items] = arguments.bind(["iterable"])?;
                self.recurse(state, &items.unwrap_or(Value::None))?
            }
            other => {
                operators::refuse_undefined(other)?;
                let kind = other.type_name();
                return Err(Failure::of(format!("a {kind} cannot be called")));
            }
        };
        // `dict.get` gives a value that exists already, and ranges share their numbers.
        match &function {
            Value::Method(_, name) if &**name == "get" => Ok(value),
            Value::Function("range") => Ok(value),
            _ => self.paid(value),
        }
    }
}

fn negative(value: &Value) -> Result<Value> {
    operators::refuse_undefined(value)?;
    match Number::of(value) {
        Some(Number::Int(number)) => Ok(Value::Int(number.saturating_neg())),
        Some(Number::Float(number)) => Ok(Value::Float(-number)),
        None => Err(Failure::of(format!("a {} has no sign", value.type_name()))),
    }
}
