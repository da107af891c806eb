//! Reading `config.json`: typed fields, with errors that name the field at fault.

use crate::error::{Error, Result};
use serde::{Deserialize, Deserializer, de::DeserializeOwned, de::Error as _};
pub use serde_json::Value as Json;
use std::ops::Deref;

/// Reads the fields of `T` from a config.
///
/// # Errors
/// [`Error::Config`] with the path of the field that is missing or has a wrong type or value.
pub fn read<T: DeserializeOwned>(config: &Json) -> Result<T> {
    serde_path_to_error::deserialize(config).map_err(|error| {
        let (path, reason) = (error.path().to_string(), error.inner().to_string());
        let path = if path == "." { String::new() } else { path };
        let missing =
            reason.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`'));
        match missing {
            Some(field) if path.is_empty() => Error::config(field, "missing"),
            Some(field) => Error::config(format!("{path}.{field}"), "missing"),
            None => Error::config(path, reason),
        }
    })
}

/// Reads one field of a config; one that is absent is like null.
///
/// # Errors
/// [`Error::Config`] with the path of what is missing or has a wrong type or value.
pub fn field<T: DeserializeOwned>(config: &Json, name: &str) -> Result<T> {
    let Some(value) = config.get(name) else {
        return T::deserialize(Json::Null).map_err(|_| Error::config(name, "missing"));
    };
    read(value).map_err(|error| {
        error.with_field(|field| {
            let dot = if field.is_empty() || field.starts_with('[') { "" } else { "." };
            format!("{name}{dot}{field}")
        })
    })
}

/// Refuses a config in which one of these fields has another value; they may be absent or null.
///
/// # Errors
/// [`Error::Unsupported`] with the field at fault.
pub fn only(config: &Json, supported: Json) -> Result<()> {
    for (field, only) in supported.as_object().into_iter().flatten() {
        if let Some(value) = config.get(field).filter(|value| !value.is_null() && *value != only) {
            let reason = format!("{value} is not supported, only {only} is");
            return Err(Error::unsupported(field, reason));
        }
    }
    Ok(())
}

/// `config` with the fields it does not have taken from `defaults`; a null there is no default.
pub fn with_defaults(config: &Json, defaults: Json) -> Json {
    match (config, defaults) {
        (Json::Object(config), Json::Object(mut fields)) => {
            fields.retain(|_, value| !value.is_null());
            fields.extend(config.clone());
            Json::Object(fields)
        }
        (config, _) => config.clone(),
    }
}

/// As [`with_defaults`], where a field that is null is like one that is absent.
pub fn with_defaults_for_null(config: &Json, defaults: Json) -> Json {
    let mut given = config.clone();
    if let Json::Object(fields) = &mut given {
        fields.retain(|_, value| !value.is_null());
    }
    with_defaults(&given, defaults)
}

/// `config` less these fields.
pub fn without(config: &Json, fields: &[&str]) -> Json {
    let mut config = config.clone();
    if let Json::Object(map) = &mut config {
        map.retain(|field, _| !fields.contains(&field.as_str()));
    }
    config
}

/// Reads a config that has other names for fields: `(theirs, ours)`.
///
/// # Errors
/// Those of `read`, with their names.
pub fn read_renamed<T>(
    config: &Json,
    names: &[(&str, &str)],
    read: impl FnOnce(&Json) -> Result<T>,
) -> Result<T> {
    let renamed = names.iter().filter(|(_, ours)| config.get(ours).is_none());
    let fields = renamed.clone().filter_map(|(theirs, ours)| {
        let value = config.get(theirs).filter(|value| !value.is_null())?;
        Some((ours.to_string(), value.clone()))
    });
    let complete = with_defaults(config, Json::Object(fields.collect()));
    read(&complete).map_err(|error| {
        error.with_field(|field| {
            let theirs = renamed.clone().find(|(_, ours)| *ours == field);
            theirs.map_or(field, |(theirs, _)| theirs).into()
        })
    })
}

/// The config of the language model, which those of whole models nest.
///
/// # Errors
/// [`Error::Config`] when it is no object.
pub fn text(config: &Json) -> Result<&Json> {
    let text = config.get("text_config").unwrap_or(config);
    if text.is_object() { Ok(text) } else { Err(Error::config("text_config", "not an object")) }
}

/// A number of things: at least 1.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Size(#[serde(deserialize_with = "size")] pub i32);

/// A number of things of which there may be none, for which some write null.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct Count(#[serde(deserialize_with = "count")] pub i32);

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

/// Something that is on or off; null is off.
fn switch<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(false))
}

/// As [`Positive`].
pub fn positive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f32, D::Error> {
    Ok(Positive::deserialize(deserializer)?.0)
}

/// As [`positive`], for a field that may be absent or null.
fn optional_positive<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Into<f64> + Copy,
{
    Ok(Option::<Positive<T>>::deserialize(deserializer)?.map(|Positive(n)| n))
}

/// As [`positive`], for a list that may be absent or null.
fn optional_positives<'de, D>(deserializer: D) -> Result<Option<Vec<f32>>, D::Error>
where
    D: Deserializer<'de>,
{
    let list = Option::<Vec<Positive<f32>>>::deserialize(deserializer)?;
    Ok(list.map(|list| list.into_iter().map(|Positive(n)| n).collect()))
}

/// As [`Epsilon`].
fn epsilon<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f32, D::Error> {
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

/// The fields that nearly every text model spells in the same way.
#[derive(Clone, Debug, Deserialize)]
pub struct Text {
    /// Width of the residual stream.
    #[serde(deserialize_with = "size")]
    pub hidden_size: i32,
    /// Number of blocks.
    #[serde(deserialize_with = "size")]
    pub num_hidden_layers: i32,
    /// Width of the feed-forward network.
    #[serde(deserialize_with = "size")]
    pub intermediate_size: i32,
    /// Number of query heads.
    #[serde(deserialize_with = "size")]
    pub num_attention_heads: i32,
    /// Number of token embeddings.
    #[serde(deserialize_with = "size")]
    pub vocab_size: i32,
    /// Added to the mean square in every norm.
    #[serde(deserialize_with = "epsilon")]
    pub rms_norm_eps: f32,
    /// Number of key and value heads; as many as query heads when absent.
    #[serde(default, deserialize_with = "optional_size")]
    pub num_key_value_heads: Option<i32>,
    /// Width of one head; `hidden_size / num_attention_heads` when absent.
    #[serde(default, deserialize_with = "optional_size")]
    pub head_dim: Option<i32>,
    /// The longest sequence of the training.
    #[serde(default, deserialize_with = "optional_size")]
    pub max_position_embeddings: Option<i32>,
    /// How far a sliding layer looks back, itself included.
    #[serde(default, deserialize_with = "optional_size")]
    pub sliding_window: Option<i32>,
    /// The kind of each layer, such as `sliding_attention`.
    pub layer_types: Option<Vec<String>>,
    /// Whether the output head is the token embedding; decided by the checkpoint when absent.
    pub tie_word_embeddings: Option<bool>,
    /// Whether attention projections must have biases.
    #[serde(default, deserialize_with = "switch")]
    pub attention_bias: bool,
    /// Whether feed-forward projections must have biases.
    #[serde(default, deserialize_with = "switch")]
    pub mlp_bias: bool,
    /// The activation of feed-forward networks; SiLU when absent.
    pub hidden_act: Option<String>,
    /// The share of each head that is rotated, in families that rotate a part.
    #[serde(default, deserialize_with = "optional_positive")]
    pub partial_rotary_factor: Option<f64>,
    /// The bound of the logits, in families that have one.
    #[serde(default, deserialize_with = "optional_positive")]
    pub final_logit_softcapping: Option<f32>,
    #[serde(default, deserialize_with = "optional_positive")]
    pub(crate) rope_theta: Option<f32>,
    pub(crate) rope_scaling: Option<RopeScaling>,
    pub(crate) rope_parameters: Option<RopeScaling>,
    /// Whether rotary pairs are neighbours instead of halves.
    #[serde(default, deserialize_with = "switch")]
    pub rope_traditional: bool,
}

impl Text {
    /// Reads the fields and checks what ties them together.
    ///
    /// # Errors
    /// [`Error::Config`] with the field at fault.
    pub fn read(config: &Json) -> Result<Self> {
        let text: Text = read(config)?;
        check_entries("layer_types", text.layer_types.as_ref(), text.num_hidden_layers)?;
        text.check_heads("num_key_value_heads")?;
        Ok(text)
    }

    /// Checks that query heads share key heads evenly, of which `field` says how many there are.
    ///
    /// # Errors
    /// [`Error::Config`] with the field at fault.
    pub fn check_heads(&self, field: &str) -> Result<()> {
        if self.num_attention_heads % self.kv_heads() != 0 {
            let reason = format!("does not divide the {} query heads", self.num_attention_heads);
            return Err(Error::config(field, reason));
        }
        product("head_dim", [self.num_attention_heads, self.head_dim()])?;
        Ok(())
    }

    /// As [`Text::read`], for configs that have other names for fields: `(theirs, ours)`.
    ///
    /// # Errors
    /// As [`Text::read`], with their names.
    pub fn read_renamed(config: &Json, names: &[(&str, &str)]) -> Result<Self> {
        read_renamed(config, names, Self::read)
    }

    /// Width of one head.
    pub fn head_dim(&self) -> i32 {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    /// Number of key and value heads.
    pub fn kv_heads(&self) -> i32 {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Widths of all query heads together, and of all key heads.
    pub fn qk_widths(&self) -> [i32; 2] {
        [self.num_attention_heads, self.kv_heads()].map(|heads| heads * self.head_dim())
    }

    /// The base of the rotary frequencies; transformers 5 nests it under `rope_parameters`.
    pub fn rope_theta(&self) -> f32 {
        let nested = [&self.rope_scaling, &self.rope_parameters].into_iter().flatten();
        let nested = nested.filter_map(|scaling| scaling.rope_theta).next();
        self.rope_theta.or(nested).unwrap_or(10_000.0)
    }

    /// How rotary positions are stretched, if they are.
    pub fn rope_scaling(&self) -> Option<&RopeScaling> {
        self.rope_scaling.as_ref().or(self.rope_parameters.as_ref())
    }

    /// The rotary parameters of layers with this window or none, which `rope_parameters` nests by
    /// kind of layer.
    ///
    /// # Errors
    /// [`Error::Config`] when it does not have them.
    pub fn rope_of(&self, window: Option<i32>) -> Result<&RopeScaling> {
        let nested = self.rope_parameters.as_ref();
        let (kind, own) = match window {
            None => ("full_attention", nested.and_then(|nested| nested.full_attention.as_deref())),
            Some(_) => {
                ("sliding_attention", nested.and_then(|nested| nested.sliding_attention.as_deref()))
            }
        };
        own.ok_or_else(|| Error::config(format!("rope_parameters.{kind}"), "missing"))
    }

    /// As [`Text::window`]; without `layer_types`, the layers slide for which `slides` is true.
    ///
    /// # Errors
    /// As [`Text::window`].
    pub fn window_where(&self, layer: i32, slides: impl Fn(i32) -> bool) -> Result<Option<i32>> {
        match self.layer_types {
            Some(_) => self.window(layer),
            None => Ok(self.sliding_window.filter(|_| slides(layer))),
        }
    }

    /// The window of one layer, where `layer_types` calls it sliding.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a kind that is neither full nor sliding; [`Error::Config`] for a
    /// sliding layer without `sliding_window`.
    pub fn window(&self, layer: i32) -> Result<Option<i32>> {
        let Some(kinds) = &self.layer_types else { return Ok(None) };
        match kinds[layer as usize].as_str() {
            "full_attention" => Ok(None),
            "sliding_attention" => match self.sliding_window {
                Some(window) => Ok(Some(window)),
                None => Err(Error::config("sliding_window", "missing for the sliding layers")),
            },
            kind => {
                let reason = format!("`{kind}` is neither full_attention nor sliding_attention");
                Err(Error::unsupported(format!("layer_types[{layer}]"), reason))
            }
        }
    }
}

/// `rope_scaling`, or `rope_parameters` as transformers 5 calls it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RopeScaling {
    #[serde(rename = "type")]
    legacy_type: Option<String>,
    rope_type: Option<String>,
    /// The base of the frequencies.
    #[serde(deserialize_with = "optional_positive")]
    pub rope_theta: Option<f32>,
    /// How much longer than in the first training the positions are.
    #[serde(deserialize_with = "optional_positive")]
    pub factor: Option<f64>,
    /// The context of the first training.
    #[serde(deserialize_with = "optional_positive")]
    pub original_max_position_embeddings: Option<f64>,
    /// `llama3`: wavelengths longer than the original context over this are stretched fully.
    #[serde(deserialize_with = "optional_positive")]
    pub low_freq_factor: Option<f64>,
    /// `llama3`: wavelengths shorter than the original context over this stay.
    #[serde(deserialize_with = "optional_positive")]
    pub high_freq_factor: Option<f64>,
    /// `yarn`: rotations over the original context above which a frequency stays.
    #[serde(deserialize_with = "optional_positive")]
    pub beta_fast: Option<f64>,
    /// `yarn`: rotations below which a frequency is stretched fully.
    #[serde(deserialize_with = "optional_positive")]
    pub beta_slow: Option<f64>,
    /// `yarn`: strength of the magnitude correction.
    pub mscale: Option<f64>,
    /// `yarn`: strength of the correction that attention's scale makes up for.
    pub mscale_all_dim: Option<f64>,
    /// `longrope`: one magnitude for each frequency.
    #[serde(deserialize_with = "optional_positives")]
    pub long_factor: Option<Vec<f32>>,
    /// `proportional`: the share of each head that is rotated.
    #[serde(deserialize_with = "optional_positive")]
    pub partial_rotary_factor: Option<f64>,
    /// `longrope`: a factor of what is rotated, in families that do not compute it.
    #[serde(deserialize_with = "optional_positive")]
    pub long_mscale: Option<f32>,
    /// Those of full layers, where transformers 5 nests them by kind of layer.
    pub full_attention: Option<Box<RopeScaling>>,
    /// Those of sliding layers.
    pub sliding_attention: Option<Box<RopeScaling>>,
}

impl RopeScaling {
    /// The kind of scaling.
    pub fn kind(&self) -> &str {
        self.legacy_type.as_deref().or(self.rope_type.as_deref()).unwrap_or("default")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refused<T>(result: Result<T>) -> String {
        result.err().expect("it is refused").to_string()
    }

    #[test]
    fn a_field_is_read_alone_and_named_with_its_path() {
        let config = json!({"heads": 4, "sizes": [1, 0], "nested": {}, "none": null});
        assert_eq!(*field::<Size>(&config, "heads").unwrap(), 4);
        assert!(field::<Option<Size>>(&config, "none").unwrap().is_none());
        assert!(field::<Option<Size>>(&config, "absent").unwrap().is_none());
        assert_eq!(refused(field::<Size>(&config, "absent")), "config.json: `absent`: missing");
        let error = refused(field::<Vec<Size>>(&config, "sizes"));
        assert!(error.starts_with("config.json: `sizes[1]`: 0 is not a size"), "{error}");
        #[derive(Deserialize)]
        struct Nested {
            #[serde(rename = "width")]
            _width: Size,
        }
        let error = refused(field::<Nested>(&config, "nested"));
        assert_eq!(error, "config.json: `nested.width`: missing");
    }

    #[test]
    fn only_one_value_is_supported() {
        let supported = json!({"loops": 2, "shares": false});
        for config in [json!({}), json!({"loops": 2}), json!({"loops": null, "shares": false})] {
            only(&config, supported.clone()).unwrap();
        }
        let error = refused(only(&json!({"loops": 3}), supported));
        assert_eq!(error, "config.json: `loops`: 3 is not supported, only 2 is");
    }

    #[test]
    fn defaults_stand_for_what_is_absent_and_if_asked_for_null() {
        let config = json!({"a": null, "b": 1});
        let defaults = json!({"a": 2, "b": 2, "c": 2, "d": null});
        assert_eq!(with_defaults(&config, defaults.clone()), json!({"a": null, "b": 1, "c": 2}));
        assert_eq!(with_defaults_for_null(&config, defaults), json!({"a": 2, "b": 1, "c": 2}));
    }
}
