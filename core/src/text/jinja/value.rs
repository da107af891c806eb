//! The values of templates: Python's, of which only namespaces change.

use super::failure::{Failure, Result};
use super::text::Text;
use super::tree::Macro;
use std::cell::{Cell, RefCell};
use std::ops::{Deref, Range};
use std::rc::Rc;

/// The deepest nesting of lists and mappings.
const MAX_DEPTH: usize = 100;

/// The largest number of values inside of one value.
pub const MAX_WEIGHT: usize = 1 << 24;

#[derive(Clone, Debug)]
pub enum Value {
    /// What is undefined, for errors.
    Undefined(Rc<str>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(Rc<Text>),
    List(List),
    Dict(Rc<Dict>),
    Namespace(Rc<RefCell<Dict>>),
    Loop(Rc<Loop>),
    Macro(Closure),
    /// A function of the environment.
    Function(&'static str),
    /// `joiner` and `cycler`: its kind, its values, and the number of its calls.
    Counter(&'static str, List, Rc<Cell<usize>>),
    /// A method of a value, before it is called.
    Method(Rc<Value>, Rc<str>),
}

/// A macro and the scope in which it was defined.
#[derive(Clone, Debug)]
pub struct Closure {
    pub code: std::sync::Arc<Macro>,
    pub scope: usize,
    /// Tells the scope from a later one at the same place.
    pub generation: u64,
}

impl Value {
    pub fn undefined(what: &str) -> Self {
        Value::Undefined(what.into())
    }

    /// Text that the template wrote.
    pub fn written(text: &str) -> Self {
        Value::from(Text::written(text))
    }

    pub fn list(items: Vec<Value>) -> Self {
        Value::List(List::new(Kind::List, items))
    }

    pub fn tuple(items: Vec<Value>) -> Self {
        Value::List(List::new(Kind::Tuple, items))
    }

    /// What a generator of Python yields.
    pub fn iterator(items: Vec<Value>) -> Self {
        Value::List(List::new(Kind::Iterator, items))
    }

    pub fn is_undefined(&self) -> bool {
        matches!(self, Value::Undefined(_))
    }

    pub fn as_text(&self) -> Option<&Text> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn is_true(&self) -> bool {
        match self {
            Value::Undefined(_) | Value::None => false,
            Value::Bool(value) => *value,
            Value::Int(number) => *number != 0,
            Value::Float(number) => *number != 0.0,
            Value::Text(text) => !text.as_str().is_empty(),
            Value::List(list) => list.kind == Kind::Iterator || !list.is_empty(),
            Value::Dict(dict) => !dict.entries.is_empty(),
            _ => true,
        }
    }

    /// The number of values inside, at least one.
    pub fn weight(&self) -> usize {
        match self {
            Value::List(list) => list.size.weight,
            Value::Dict(dict) => dict.size.weight,
            Value::Loop(state) => state.items.size.weight,
            Value::Method(value, _) => value.weight(),
            _ => 1,
        }
    }

    fn depth(&self) -> usize {
        match self {
            Value::List(list) | Value::Counter(_, list, _) => list.size.depth,
            Value::Dict(dict) => dict.size.depth,
            Value::Loop(state) => state.items.size.depth + 1,
            Value::Method(value, _) => value.depth(),
            _ => 0,
        }
    }

    /// Refuses values that are too large to keep.
    pub fn check(&self) -> Result<()> {
        match self {
            Value::Text(text) if text.is_cut() => Err(Failure::of("a text is too long")),
            _ if self.depth() > MAX_DEPTH => Err(Failure::of("a value is too deeply nested")),
            _ if self.weight() > MAX_WEIGHT => Err(Failure::of("a list is too long")),
            _ => Ok(()),
        }
    }

    /// The name of its type in Python.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::Undefined(_) => "undefined value",
            Value::None => "NoneType",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Float(_) => "float",
            Value::Text(_) => "str",
            Value::List(list) => match list.kind {
                Kind::List => "list",
                Kind::Tuple => "tuple",
                Kind::Iterator => "generator",
                Kind::View(name) => name,
            },
            Value::Dict(_) => "dict",
            Value::Namespace(_) => "namespace",
            Value::Loop(_) => "loop",
            Value::Macro(_) => "macro",
            Value::Function(_) | Value::Counter(..) => "function",
            Value::Method(..) => "method",
        }
    }
}

impl From<Text> for Value {
    fn from(text: Text) -> Self {
        Value::Text(Rc::new(text))
    }
}

impl From<Dict> for Value {
    fn from(dict: Dict) -> Self {
        Value::Dict(Rc::new(dict))
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Value::Bool(value)
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Value::Int(number as i128)
    }
}

/// How many values are inside of a value, and how deeply.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    weight: usize,
    depth: usize,
}

impl Size {
    fn of<'a>(values: impl Iterator<Item = &'a Value>) -> Self {
        let mut size = Size { weight: 1, depth: 0 };
        for value in values {
            size.add(value);
        }
        size
    }

    fn add(&mut self, value: &Value) {
        self.weight = self.weight.saturating_add(value.weight());
        self.depth = self.depth.max(value.depth() + 1);
    }
}

/// What a sequence is in Python.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    List,
    Tuple,
    /// A generator: it has no length and is always true.
    Iterator,
    /// The keys, values or items of a mapping.
    View(&'static str),
}

/// A sequence. Slices share the items.
#[derive(Clone, Debug)]
pub struct List {
    pub kind: Kind,
    items: Rc<[Value]>,
    range: Range<usize>,
    size: Size,
}

impl List {
    pub fn new(kind: Kind, items: Vec<Value>) -> Self {
        let (range, size) = (0..items.len(), Size::of(items.iter()));
        List { kind, items: items.into(), range, size }
    }

    /// The items in a range.
    pub fn slice(&self, range: Range<usize>) -> Self {
        let (start, end) = (self.range.start + range.start, self.range.start + range.end);
        List { range: start..end, ..self.clone() }
    }
}

impl Deref for List {
    type Target = [Value];

    fn deref(&self) -> &[Value] {
        &self.items[self.range.clone()]
    }
}

/// A mapping that keeps its order.
#[derive(Clone, Debug, Default)]
pub struct Dict {
    entries: Vec<(Value, Value)>,
    size: Size,
}

impl Dict {
    /// A mapping of keys that differ.
    pub fn of_distinct(entries: Vec<(Value, Value)>) -> Self {
        let size = Size::of(entries.iter().map(|(_, value)| value));
        Dict { entries, size }
    }

    pub fn entries(&self) -> &[(Value, Value)] {
        &self.entries
    }

    pub fn get(&self, key: &Value) -> Option<&Value> {
        self.entries.iter().find(|(found, _)| is_equal(found, key)).map(|(_, value)| value)
    }

    pub fn get_str(&self, key: &str) -> Option<&Value> {
        let is_key = |found: &Value| found.as_text().is_some_and(|text| text.as_str() == key);
        self.entries.iter().find(|(found, _)| is_key(found)).map(|(_, value)| value)
    }

    pub fn insert(&mut self, key: Value, value: Value) {
        self.size.add(&value);
        match self.entries.iter_mut().find(|(found, _)| is_equal(found, &key)) {
            Some((_, found)) => *found = value,
            None => self.entries.push((key, value)),
        }
    }
}

/// The variable `loop`.
#[derive(Debug)]
pub struct Loop {
    pub items: List,
    pub index: Cell<usize>,
    pub depth: usize,
    pub changed: RefCell<Option<Value>>,
    /// Runs the loop again with other items, where it is recursive.
    pub is_recursive: bool,
}

/// `==` of Python.
pub fn is_equal(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Text(left), Value::Text(right)) => left.as_str() == right.as_str(),
        (Value::None, Value::None) | (Value::Undefined(_), Value::Undefined(_)) => true,
        (Value::List(left), Value::List(right)) => {
            left.kind == right.kind
                && left.len() == right.len()
                && left.iter().zip(right.iter()).all(|(left, right)| is_equal(left, right))
        }
        (Value::Dict(left), Value::Dict(right)) => {
            let same = |(key, value): &(Value, Value)| {
                right.get(key).is_some_and(|found| is_equal(value, found))
            };
            left.entries.len() == right.entries.len() && left.entries.iter().all(same)
        }
        (Value::Namespace(left), Value::Namespace(right)) => Rc::ptr_eq(left, right),
        (Value::Loop(left), Value::Loop(right)) => Rc::ptr_eq(left, right),
        (Value::Function(left), Value::Function(right)) => left == right,
        _ => match (Number::of(left), Number::of(right)) {
            (Some(left), Some(right)) => left.compare(right) == Some(std::cmp::Ordering::Equal),
            _ => false,
        },
    }
}

/// A number of Python, where `True` is 1.
#[derive(Clone, Copy, Debug)]
pub enum Number {
    Int(i128),
    Float(f64),
}

impl Number {
    pub fn of(value: &Value) -> Option<Self> {
        match value {
            Value::Bool(value) => Some(Number::Int((*value).into())),
            Value::Int(number) => Some(Number::Int(*number)),
            Value::Float(number) => Some(Number::Float(*number)),
            _ => None,
        }
    }

    pub fn float(self) -> f64 {
        match self {
            Number::Int(number) => number as f64,
            Number::Float(number) => number,
        }
    }

    pub fn compare(self, other: Self) -> Option<std::cmp::Ordering> {
        match (self, other) {
            (Number::Int(left), Number::Int(right)) => Some(left.cmp(&right)),
            _ => self.float().partial_cmp(&other.float()),
        }
    }
}

/// A value of JSON, whose texts the template was given or may trust.
pub fn from_json(json: &serde_json::Value, is_given: bool) -> Value {
    use serde_json::Value as Json;
    let text = |text: &str| match is_given {
        true => Value::from(Text::given(text)),
        false => Value::written(text),
    };
    match json {
        Json::Null => Value::None,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match (number.as_i128(), number.as_f64()) {
            (Some(number), _) => Value::Int(number),
            (None, number) => Value::Float(number.unwrap_or(f64::NAN)),
        },
        Json::String(value) => text(value),
        Json::Array(items) => {
            Value::list(items.iter().map(|item| from_json(item, is_given)).collect())
        }
        Json::Object(fields) => {
            let field = |(key, value): (&String, &Json)| (text(key), from_json(value, is_given));
            Dict::of_distinct(fields.iter().map(field).collect()).into()
        }
    }
}
