//! A JSON value that remembers whether a reader consumed it.

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{
        DeserializeSeed, IntoDeserializer, MapAccess, Visitor,
        value::{MapAccessDeserializer, SeqDeserializer},
    },
    forward_to_deserialize_any,
};
use serde_json::{Error, Value};
use std::{
    collections::{BTreeMap, btree_map},
    fmt::{self, Display},
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// A value of a config. Copies share the record of what was read, under whatever name a family
/// puts them: a renamed field counts as read once the new name is read.
/// A null counts as absent.
#[derive(Clone)]
pub struct Json(Arc<Node>);

struct Node {
    content: Content,
    is_read: AtomicBool,
}

enum Content {
    Null,
    /// A boolean, a number or a string.
    Scalar(Value),
    Array(Vec<Json>),
    Object(BTreeMap<String, Json>),
}

impl Json {
    fn new(content: Content) -> Self {
        Json(Arc::new(Node { content, is_read: AtomicBool::new(false) }))
    }

    /// An object of these fields.
    pub(super) fn object(fields: BTreeMap<String, Json>) -> Self {
        Json::new(Content::Object(fields))
    }

    /// The fields of an object.
    pub(super) fn fields(&self) -> Option<&BTreeMap<String, Json>> {
        match &self.0.content {
            Content::Object(fields) => Some(fields),
            _ => None,
        }
    }

    /// A field, without counting it as read.
    pub(super) fn peek(&self, name: &str) -> Option<&Json> {
        self.fields()?.get(name)
    }

    /// Counts this value as read; the values in it keep their own records.
    pub fn mark(&self) {
        self.0.is_read.store(true, Ordering::Relaxed);
    }

    /// Counts this value and everything in it as read.
    pub fn mark_all(&self) {
        self.mark();
        match &self.0.content {
            Content::Array(items) => items.iter().for_each(Json::mark_all),
            Content::Object(fields) => fields.values().for_each(Json::mark_all),
            Content::Null | Content::Scalar(_) => {}
        }
    }

    /// A copy with a record of its own.
    pub(super) fn detached(&self) -> Json {
        Json::new(match &self.0.content {
            Content::Null => Content::Null,
            Content::Scalar(value) => Content::Scalar(value.clone()),
            Content::Array(items) => Content::Array(items.iter().map(Json::detached).collect()),
            Content::Object(fields) => {
                let field = |(name, value): (&String, &Json)| (name.clone(), value.detached());
                Content::Object(fields.iter().map(field).collect())
            }
        })
    }

    /// Counts as read what was read of a [detached](Json::detached) copy, less the fields of these
    /// names and what is in them.
    pub(super) fn mark_as(&self, copy: &Json, less: &[&str]) {
        let mark = |value: &Json, copy: &Json, name: &str| {
            if copy.is_read() && !less.contains(&name) {
                value.mark();
                value.mark_as(copy, less);
            }
        };
        match (&self.0.content, &copy.0.content) {
            (Content::Object(fields), Content::Object(copies)) => {
                for (name, value) in fields {
                    copies.get(name).into_iter().for_each(|copy| mark(value, copy, name));
                }
            }
            (Content::Array(items), Content::Array(copies)) => {
                items.iter().zip(copies).for_each(|(value, copy)| mark(value, copy, ""));
            }
            _ => {}
        }
    }

    fn is_read(&self) -> bool {
        self.0.is_read.load(Ordering::Relaxed)
    }

    /// Calls `visit` with the path and the value of everything that is not null and was not read.
    /// What was not read as a whole is visited as a whole.
    pub(super) fn visit_unread(&self, path: &str, visit: &mut impl FnMut(&str, &Json)) {
        if !path.is_empty() && !self.is_read() {
            if !self.is_null() {
                visit(path, self);
            }
            return;
        }
        match &self.0.content {
            Content::Object(fields) => {
                for (name, value) in fields {
                    let dot = if path.is_empty() { "" } else { "." };
                    value.visit_unread(&format!("{path}{dot}{name}"), visit);
                }
            }
            Content::Array(items) => {
                for (i, item) in items.iter().enumerate().filter(|(_, item)| item.is_nested()) {
                    item.visit_unread(&format!("{path}[{i}]"), visit);
                }
            }
            Content::Null | Content::Scalar(_) => {}
        }
    }

    fn is_nested(&self) -> bool {
        matches!(self.0.content, Content::Array(_) | Content::Object(_))
    }

    /// A field of an object, or `None` when there is none. The field counts as read.
    pub fn get(&self, name: &str) -> Option<&Json> {
        self.peek(name).inspect(|value| value.mark())
    }

    /// The value below `path`, whose names stand after slashes. All values on the way count as read.
    pub fn pointer(&self, path: &str) -> Option<&Json> {
        path.split('/').skip(1).try_fold(self, |value, name| value.get(name))
    }

    /// This object with a field added or replaced; any other value stays what it is.
    #[must_use]
    pub fn with(&self, name: &str, value: impl Into<Json>) -> Json {
        let Some(fields) = self.fields() else { return self.clone() };
        let mut fields = fields.clone();
        fields.insert(name.into(), value.into());
        Json::object(fields)
    }

    /// The names of the fields of an object.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.fields().into_iter().flat_map(BTreeMap::keys).map(String::as_str)
    }

    /// Whether this is null.
    pub fn is_null(&self) -> bool {
        matches!(self.0.content, Content::Null)
    }

    /// Whether this is an object.
    pub fn is_object(&self) -> bool {
        self.fields().is_some()
    }

    /// The integer that this is.
    pub fn as_i64(&self) -> Option<i64> {
        self.scalar()?.as_i64()
    }

    /// The string that this is.
    pub fn as_str(&self) -> Option<&str> {
        self.scalar()?.as_str()
    }

    /// The boolean that this is.
    pub fn as_bool(&self) -> Option<bool> {
        self.scalar()?.as_bool()
    }

    fn scalar(&self) -> Option<&Value> {
        match &self.0.content {
            Content::Scalar(value) => Some(value),
            _ => None,
        }
    }

    /// The elements of an array.
    pub fn as_array(&self) -> Option<&[Json]> {
        match &self.0.content {
            Content::Array(items) => Some(items),
            _ => None,
        }
    }

    /// The plain value. Nothing counts as read.
    pub fn to_value(&self) -> Value {
        match &self.0.content {
            Content::Null => Value::Null,
            Content::Scalar(value) => value.clone(),
            Content::Array(items) => items.iter().map(Json::to_value).collect(),
            Content::Object(fields) => {
                Value::Object(fields.iter().map(|(name, f)| (name.clone(), f.to_value())).collect())
            }
        }
    }
}

impl From<&Json> for Json {
    fn from(json: &Json) -> Self {
        json.clone()
    }
}

impl From<&Value> for Json {
    fn from(value: &Value) -> Self {
        match value {
            Value::Null => Json::new(Content::Null),
            Value::Array(items) => {
                Json::new(Content::Array(items.iter().map(Json::from).collect()))
            }
            Value::Object(fields) => {
                let field = |(name, value): (&String, _)| (name.clone(), Json::from(value));
                Json::object(fields.iter().map(field).collect())
            }
            scalar => Json::new(Content::Scalar(scalar.clone())),
        }
    }
}

macro_rules! from {
    ($($plain:ty),*) => {$(
        impl From<$plain> for Json {
            fn from(plain: $plain) -> Self {
                Json::from(&Value::from(plain))
            }
        }
    )*};
}

from! { Value, &str, bool, i32, f32, f64 }

impl Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.to_value().fmt(f)
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        Display::fmt(self, f)
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_value().serialize(serializer)
    }
}

impl<'de> IntoDeserializer<'de, Error> for &'de Json {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// Every method but `deserialize_ignored_any` counts the value as read.
impl<'de> Deserializer<'de> for &'de Json {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.mark();
        match &self.0.content {
            Content::Null => visitor.visit_unit(),
            Content::Scalar(value) => value.deserialize_any(visitor),
            Content::Array(items) => {
                let mut items = SeqDeserializer::new(items.iter());
                let value = visitor.visit_seq(&mut items)?;
                items.end()?;
                Ok(value)
            }
            Content::Object(fields) => {
                visitor.visit_map(Fields { rest: fields.iter(), value: None })
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.mark();
        if self.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.mark_all();
        match &self.0.content {
            Content::Scalar(value) => value.deserialize_enum(name, variants, visitor),
            Content::Object(fields) => {
                let fields = Fields { rest: fields.iter(), value: None };
                visitor.visit_enum(MapAccessDeserializer::new(fields))
            }
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct identifier
    }
}

/// The fields of an object, less those that are absent.
struct Fields<'de> {
    rest: btree_map::Iter<'de, String, Json>,
    value: Option<&'de Json>,
}

impl<'de> MapAccess<'de> for Fields<'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        let Some((name, value)) = self.rest.find(|(_, value)| !value.is_null()) else {
            return Ok(None);
        };
        self.value = Some(value);
        seed.deserialize(name.as_str().into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let value = self.value.take();
        seed.deserialize(value.ok_or_else(|| serde::de::Error::custom("a value without a name"))?)
    }
}

/// A field of a struct that many families read and few use: it counts as read when it is used.
#[derive(Clone, Debug, Default)]
pub struct Lazy<T> {
    value: T,
    origin: Option<Json>,
}

impl<T> Lazy<T> {
    /// Ties the value to the place of the config that it comes from, which is not read yet.
    pub(super) fn tie(&mut self, config: &Json, name: &str) {
        self.origin = config.peek(name).cloned();
    }

    /// The value, without counting it as read.
    pub(super) fn peek(&self) -> &T {
        &self.value
    }
}

impl<T> Deref for Lazy<T> {
    type Target = T;

    fn deref(&self) -> &T {
        if let Some(origin) = &self.origin {
            origin.mark();
        }
        &self.value
    }
}

impl<T> From<T> for Lazy<T> {
    fn from(value: T) -> Self {
        Lazy { value, origin: None }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Lazy<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Lazy::from)
    }
}
