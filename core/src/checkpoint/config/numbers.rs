//! Numbers of a config that are checked as they are read: sizes, counts, factors, lists of layers.

use crate::error::{Error, Result};
use serde::{Deserialize, Deserializer, de::Error as _};
use std::{collections::BTreeMap, ops::Deref};

/// A number of things: at least 1.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Size(#[serde(deserialize_with = "size")] pub i32);

/// A number of things of which there may be none: 0 where it is absent or null.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count(pub i32);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        count(deserializer).map(Count)
    }
}

/// What a norm adds to the mean square: finite and not negative.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Epsilon(#[serde(deserialize_with = "epsilon")] pub f32);

/// A finite number above 0, in single precision too.
#[derive(Clone, Copy, Debug)]
pub struct Positive<T = f32>(pub T);

impl<'de, T: Deserialize<'de> + Into<f64> + Copy> Deserialize<'de> for Positive<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let n = T::deserialize(deserializer)?;
        match n.into() as f32 {
            single if single > 0.0 && single.is_finite() => Ok(Positive(n)),
            _ => Err(D::Error::custom(format!("{} is not a positive number", n.into()))),
        }
    }
}

macro_rules! numbers {
    ($($checked:ty: $number:ty,)*) => {$(
        impl Deref for $checked {
            type Target = $number;
            fn deref(&self) -> &$number {
                &self.0
            }
        }

        impl From<$checked> for $number {
            fn from(checked: $checked) -> $number {
                checked.0
            }
        }
    )*};
}

numbers! { Size: i32, Count: i32, Epsilon: f32, Positive: f32, Positive<f64>: f64, }

/// No size of a model is larger, so that sums and small multiples of sizes fit 32 bits.
const LARGEST: i64 = 1 << 24;

/// As [`Size`], for fields of shared structs that are plain numbers.
pub fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
    within(i64::deserialize(deserializer)?, 1)
}

/// As [`Count`].
pub fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
    within(Option::deserialize(deserializer)?.unwrap_or(0), 0)
}

fn within<E: serde::de::Error>(n: i64, least: i64) -> Result<i32, E> {
    if (least..=LARGEST).contains(&n) {
        return Ok(n as i32);
    }
    Err(E::custom(format!("{n} is not a size between {least} and {LARGEST}")))
}

/// A size that is the product of others; `field` is the one to blame when it is out of range.
///
/// # Errors
/// [`Error::Config`] when it is larger than any size can be.
pub fn product(field: &str, factors: [i32; 2]) -> Result<i32> {
    match i64::from(factors[0]) * i64::from(factors[1]) {
        n @ 0..=LARGEST => Ok(n as i32),
        _ => {
            let reason = format!("{} times {} is not a size", factors[0], factors[1]);
            Err(Error::config(field, reason))
        }
    }
}

/// The product of sizes.
///
/// # Errors
/// As [`product`].
pub fn product_of(field: &str, sizes: &[Size]) -> Result<i32> {
    sizes.iter().try_fold(1, |so_far, size| product(field, [so_far, **size]))
}

/// As [`Positive`].
pub fn positive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f32, D::Error> {
    Ok(Positive::deserialize(deserializer)?.0)
}

/// As [`Epsilon`].
pub(super) fn epsilon<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f32, D::Error> {
    match f32::deserialize(deserializer)? {
        n if n >= 0.0 && n.is_finite() => Ok(n),
        n => Err(D::Error::custom(format!("{n} cannot be added to a mean square"))),
    }
}

/// As [`size`], for a field that may be absent or null.
pub fn optional_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i32>, D::Error> {
    Ok(Option::<Size>::deserialize(deserializer)?.map(|Size(n)| n))
}

/// Checks that a list, if there is one, has an entry for each layer.
///
/// # Errors
/// [`Error::Config`] about `field` when it has more or fewer.
pub fn check_entries<T>(field: &str, list: Option<&Vec<T>>, layers: i32) -> Result<()> {
    match list {
        Some(list) if list.len() != layers as usize => {
            Err(Error::config(field, format!("{} entries for {layers} layers", list.len())))
        }
        _ => Ok(()),
    }
}

/// What a list says of one layer; it may go on after the last.
///
/// # Errors
/// [`Error::Config`] about `field` when it ends before.
pub fn entry<'a, T>(field: &str, list: &'a [T], layer: i32) -> Result<&'a T> {
    let missing =
        || Error::config(field, format!("{} entries, no entry for layer {layer}", list.len()));
    list.get(layer as usize).ok_or_else(missing)
}

/// The same for all layers, or one for each; or another field of which there may be one or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum PerLayer<T = Size> {
    /// The same for all.
    All(T),
    /// One for each.
    Each(Vec<T>),
}

impl<T: Copy> PerLayer<T> {
    /// All that there are.
    pub fn entries(&self) -> &[T] {
        match self {
            PerLayer::All(one) => std::slice::from_ref(one),
            PerLayer::Each(entries) => entries,
        }
    }

    /// That of one layer.
    ///
    /// # Errors
    /// As [`entry`].
    pub fn of(&self, field: &str, layer: i32) -> Result<T> {
        match self {
            PerLayer::All(value) => Ok(*value),
            PerLayer::Each(values) => entry(field, values, layer).copied(),
        }
    }
}

/// Values of single layers under their numbers, which transformers pads to one width: `"05"`.
#[derive(Clone, Debug)]
pub struct ByLayer<T>(BTreeMap<i32, T>);

impl<T> ByLayer<T> {
    /// The value of a layer, if it has its own.
    pub fn get(&self, layer: i32) -> Option<&T> {
        self.0.get(&layer)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for ByLayer<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let layer = |(name, value): (String, T)| match name.trim().parse() {
            Ok(layer) => Ok((layer, value)),
            Err(_) => Err(D::Error::custom(format!("`{name}` is not the number of a layer"))),
        };
        let values = BTreeMap::<String, T>::deserialize(deserializer)?;
        values.into_iter().map(layer).collect::<Result<_, _>>().map(ByLayer)
    }
}

/// A number, or one of those that JSON cannot write: `{"__float__": "Infinity"}`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Float(pub f32);

impl<'de> Deserialize<'de> for Float {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(f32),
            Tagged {
                #[serde(rename = "__float__")]
                name: String,
            },
        }
        match Written::deserialize(deserializer)? {
            Written::Number(number) => Ok(Float(number)),
            Written::Tagged { name } => name.parse().map(Float).map_err(D::Error::custom),
        }
    }
}
