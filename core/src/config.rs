//! Reading `config.json`: typed fields, with errors that name the field at fault.

use crate::error::{Error, Result};
use serde::{Deserialize, Deserializer, de::DeserializeOwned, de::Error as _};
pub use serde_json::Value as Json;

/// Reads the fields of `T` from a config.
///
/// # Errors
/// [`Error::Config`] with the path of the field that is missing or has a wrong type or value.
pub fn read<T: DeserializeOwned>(config: &Json) -> Result<T> {
    serde_path_to_error::deserialize(config).map_err(|error| {
        let path = error.path().to_string();
        Error::config(if path == "." { "" } else { &path }, error.inner().to_string())
    })
}

/// `config` with the fields it does not have taken from `defaults`.
pub fn with_defaults(config: &Json, defaults: Json) -> Json {
    match (config, defaults) {
        (Json::Object(config), Json::Object(mut fields)) => {
            fields.extend(config.clone());
            Json::Object(fields)
        }
        (config, _) => config.clone(),
    }
}

/// A number of things: at least 1. For `#[serde(deserialize_with = "size")]`.
pub fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
    const LARGEST: i64 = 1 << 24;
    match i64::deserialize(deserializer)? {
        n @ 1..=LARGEST => Ok(n as i32),
        n => Err(D::Error::custom(format!("{n} is not a size between 1 and {LARGEST}"))),
    }
}

/// As [`size`], for a field that may be absent or null.
pub fn optional_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i32>, D::Error> {
    #[derive(Deserialize)]
    struct Size(#[serde(deserialize_with = "size")] i32);
    Ok(Option::<Size>::deserialize(deserializer)?.map(|Size(n)| n))
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
    #[serde(default)]
    pub attention_bias: bool,
    /// Whether feed-forward projections must have biases.
    #[serde(default)]
    pub mlp_bias: bool,
    rope_theta: Option<f32>,
    rope_scaling: Option<RopeScaling>,
    rope_parameters: Option<RopeScaling>,
    /// Whether rotary pairs are neighbours instead of halves.
    #[serde(default)]
    pub rope_traditional: bool,
}

impl Text {
    /// Reads the fields and checks what ties them together.
    ///
    /// # Errors
    /// [`Error::Config`] with the field at fault.
    pub fn read(config: &Json) -> Result<Self> {
        let text: Text = read(config)?;
        if let Some(kinds) = &text.layer_types
            && kinds.len() != text.num_hidden_layers as usize
        {
            let reason = format!("{} entries for {} layers", kinds.len(), text.num_hidden_layers);
            return Err(Error::config("layer_types", reason));
        }
        if text.num_attention_heads % text.kv_heads() != 0 {
            let reason = format!("does not divide the {} query heads", text.num_attention_heads);
            return Err(Error::config("num_key_value_heads", reason));
        }
        Ok(text)
    }

    /// Width of one head.
    pub fn head_dim(&self) -> i32 {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    /// Number of key and value heads.
    pub fn kv_heads(&self) -> i32 {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// The base of the rotary frequencies; transformers 5 nests it under `rope_parameters`.
    pub fn rope_theta(&self) -> f32 {
        let nested = self.rope_scaling().and_then(|scaling| scaling.rope_theta);
        self.rope_theta.or(nested).unwrap_or(10_000.0)
    }

    /// How rotary positions are stretched, if they are.
    pub fn rope_scaling(&self) -> Option<&RopeScaling> {
        self.rope_scaling.as_ref().or(self.rope_parameters.as_ref())
    }

    /// The window of one layer, where `layer_types` calls it sliding.
    ///
    /// # Errors
    /// [`Error::Config`] for a kind that is neither full nor sliding, and for a sliding layer
    /// without `sliding_window`.
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
                Err(Error::config(format!("layer_types[{layer}]"), reason))
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
    pub rope_theta: Option<f32>,
    /// How much longer than in the first training the positions are.
    pub factor: Option<f64>,
    /// The context of the first training.
    pub original_max_position_embeddings: Option<f64>,
    /// `llama3`: wavelengths longer than the original context over this are stretched fully.
    pub low_freq_factor: Option<f64>,
    /// `llama3`: wavelengths shorter than the original context over this stay.
    pub high_freq_factor: Option<f64>,
    /// `yarn`: rotations over the original context above which a frequency stays.
    pub beta_fast: Option<f64>,
    /// `yarn`: rotations below which a frequency is stretched fully.
    pub beta_slow: Option<f64>,
    /// `yarn`: strength of the magnitude correction.
    pub mscale: Option<f64>,
    /// `yarn`: strength of the correction that attention's scale makes up for.
    pub mscale_all_dim: Option<f64>,
    /// `longrope`: one stretch for each frequency.
    pub long_factor: Option<Vec<f32>>,
    /// `proportional`: the share of each head that is rotated.
    pub partial_rotary_factor: Option<f64>,
}

impl RopeScaling {
    /// The kind of scaling.
    pub fn kind(&self) -> &str {
        self.legacy_type.as_deref().or(self.rope_type.as_deref()).unwrap_or("default")
    }
}
