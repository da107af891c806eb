//! The arguments of a call, bound to names as in Python.

use super::failure::{Failure, Result};
use super::value::{Number, Value};
use std::sync::Arc;

/// The largest width of a format or a column: more than a prompt needs, and small enough to allocate.
const MAX_WIDTH: usize = 1_000;

/// Evaluated arguments.
#[derive(Clone, Debug, Default)]
pub struct Arguments {
    pub positional: Vec<Value>,
    pub named: Vec<(Arc<str>, Value)>,
}

impl Arguments {
    /// The arguments in the order of the parameters.
    ///
    /// # Errors
    /// When there are more arguments than parameters, or one has another name.
    pub fn bind<const N: usize>(self, names: [&str; N]) -> Result<[Option<Value>; N]> {
        let mut bound = [const { None }; N];
        if self.positional.len() > N {
            return Err(Failure::of(format!("at most {N} arguments are expected")));
        }
        for (place, value) in bound.iter_mut().zip(self.positional) {
            *place = Some(value);
        }
        for (name, value) in self.named {
            match names.iter().position(|known| *known == &*name) {
                Some(index) => bound[index] = Some(value),
                None => return Err(Failure::of(format!("unexpected argument `{name}`"))),
            }
        }
        Ok(bound)
    }
}

/// An integer.
pub fn integer(value: &Value) -> Result<i128> {
    match Number::of(value) {
        Some(Number::Int(number)) => Ok(number),
        _ => Err(Failure::of(format!("an integer is expected, not a {}", value.type_name()))),
    }
}

/// A width, negative ones as 0.
///
/// # Errors
/// When it is so large that it could exhaust memory.
pub fn width(value: &Value) -> Result<usize> {
    let width = usize::try_from(integer(value)?.max(0)).unwrap_or(usize::MAX);
    bounded(width)
}

/// A width that is not so large that it could exhaust memory.
pub fn bounded(width: usize) -> Result<usize> {
    if width > MAX_WIDTH {
        return Err(Failure::of(format!("the width {width} is too large")));
    }
    Ok(width)
}
