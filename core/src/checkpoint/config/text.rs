//! The fields that the configs of text models share. Those that only some families use are
//! [`Lazy`]: they count as read where a family uses them.

use crate::{
    checkpoint::config::{
        fields::{read, read_renamed},
        json::{Json, Lazy},
        numbers::{Positive, check_entries, count, epsilon, optional_size, product, size},
    },
    error::{Error, Result},
};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;

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
    /// How far a sliding layer looks back, itself included; 0 is no window.
    #[serde(default, deserialize_with = "window")]
    pub sliding_window: Lazy<Option<i32>>,
    /// The kind of each layer, such as `sliding_attention`.
    #[serde(default)]
    pub layer_types: Lazy<Option<Vec<String>>>,
    /// Whether the output head is the token embedding; decided by the checkpoint when absent.
    pub tie_word_embeddings: Option<bool>,
    /// Whether attention projections must have biases.
    #[serde(default, deserialize_with = "switch")]
    pub attention_bias: Lazy<bool>,
    /// Whether feed-forward projections must have biases.
    #[serde(default, deserialize_with = "switch")]
    pub mlp_bias: Lazy<bool>,
    /// The activation of feed-forward networks; SiLU when absent.
    #[serde(default)]
    pub hidden_act: Lazy<Option<String>>,
    #[serde(default, deserialize_with = "lazy_positive")]
    pub(crate) partial_rotary_factor: Lazy<Option<f64>>,
    /// The bound of the logits, in families that have one.
    #[serde(default, deserialize_with = "lazy_positive")]
    pub final_logit_softcapping: Lazy<Option<f32>>,
    #[serde(default, deserialize_with = "optional_positive")]
    pub(crate) rope_theta: Option<f32>,
    pub(crate) rope_scaling: Option<RopeScaling>,
    pub(crate) rope_parameters: Option<RopeScaling>,
    #[serde(default, deserialize_with = "optional_positive")]
    pub(crate) original_max_position_embeddings: Option<f64>,
    /// Whether rotary pairs are neighbours instead of halves.
    #[serde(default, deserialize_with = "switch")]
    pub rope_traditional: Lazy<bool>,
}

impl Text {
    /// Reads the fields and checks what ties them together.
    ///
    /// # Errors
    /// [`Error::Config`] with the field at fault.
    pub fn read(config: &Json) -> Result<Self> {
        let copy = config.detached();
        let mut text: Text = read(&copy)?;
        config.mark_as(&copy, LAZY);
        text.tie(config, &copy);
        let layer_types = text.layer_types.peek().as_ref();
        check_entries("layer_types", layer_types, text.num_hidden_layers)?;
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
        if self.head_dim() == 0 {
            let (heads, width) = (self.num_attention_heads, self.hidden_size);
            let reason = format!("0, because {heads} heads share a hidden_size of {width}");
            return Err(Error::config("head_dim", reason));
        }
        product("head_dim", [self.num_attention_heads, self.head_dim()])?;
        Ok(())
    }

    /// Ties what families use only later to its places in the config.
    fn tie(&mut self, config: &Json, copy: &Json) {
        self.sliding_window.tie(config, "sliding_window");
        self.layer_types.tie(config, "layer_types");
        self.attention_bias.tie(config, "attention_bias");
        self.mlp_bias.tie(config, "mlp_bias");
        self.hidden_act.tie(config, "hidden_act");
        self.partial_rotary_factor.tie(config, "partial_rotary_factor");
        self.final_logit_softcapping.tie(config, "final_logit_softcapping");
        self.rope_traditional.tie(config, "rope_traditional");
        for (name, scaling) in [
            ("rope_scaling", &mut self.rope_scaling),
            ("rope_parameters", &mut self.rope_parameters),
        ] {
            let Some(config) = config.get(name) else { continue };
            if config.fields().is_some_and(BTreeMap::is_empty) {
                *scaling = None;
            }
            if let Some(scaling) = scaling {
                config.get("rope_theta");
                scaling.tie(config, copy.peek(name));
                scaling
                    .complete(self.original_max_position_embeddings, self.max_position_embeddings);
            }
        }
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

    /// How many elements this share of a head is; `field` says it.
    ///
    /// # Errors
    /// [`Error::Config`] about the field when it is more than the whole.
    pub fn share_of_head(&self, share: f64, field: &str) -> Result<i32> {
        if (0.0..=1.0).contains(&share) {
            return Ok((f64::from(self.head_dim()) * share) as i32);
        }
        Err(Error::config(field, format!("{share} is no share of a head")))
    }

    /// Number of key and value heads.
    pub fn kv_heads(&self) -> i32 {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Widths of all query heads together, and of all key heads.
    pub fn qk_widths(&self) -> [i32; 2] {
        [self.num_attention_heads, self.kv_heads()].map(|heads| heads * self.head_dim())
    }

    /// `rope_scaling`, or `rope_parameters` as transformers 5 calls it.
    fn nested_rope(&self) -> Option<&RopeScaling> {
        self.rope_scaling.as_ref().or(self.rope_parameters.as_ref())
    }

    /// The base of the rotary frequencies: the one beside the scaling before the one around it.
    pub fn rope_theta(&self) -> f32 {
        let nested = self.nested_rope().and_then(|scaling| scaling.rope_theta);
        nested.or(self.rope_theta).unwrap_or(10_000.0)
    }

    /// The share of each head that is rotated, in families that rotate a part: the one beside the
    /// scaling before the one around it.
    pub fn partial_rotary_factor(&self) -> Option<f64> {
        let outer = *self.partial_rotary_factor;
        self.nested_rope().and_then(|scaling| *scaling.partial_rotary_factor).or(outer)
    }

    /// How rotary positions are stretched, if they are.
    pub fn rope_scaling(&self) -> Option<&RopeScaling> {
        let used = self.nested_rope()?;
        for same in self.rope_parameters.iter().filter(|same| used.is_like(same)).chain([used]) {
            same.count_as_read();
        }
        Some(used)
    }

    /// The context of the first training, where LongRoPE rotates longer sequences otherwise.
    pub fn original_context(&self) -> Option<i32> {
        let nested = self.nested_rope().filter(|scaling| scaling.is_longrope());
        nested?.original_max_position_embeddings.map(|context| context as i32)
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
        let own = own.ok_or_else(|| Error::config(format!("rope_parameters.{kind}"), "missing"))?;
        // Those of a kind that no layer has change nothing.
        for own in nested.into_iter().flat_map(|n| [&n.full_attention, &n.sliding_attention]) {
            own.iter().for_each(|own| own.count_as_read());
        }
        Ok(own)
    }

    /// As [`Text::window`]; without `layer_types`, the layers slide for which `slides` is true.
    ///
    /// # Errors
    /// As [`Text::window`].
    pub fn window_where(&self, layer: i32, slides: impl Fn(i32) -> bool) -> Result<Option<i32>> {
        match *self.layer_types {
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
        let Some(kinds) = &*self.layer_types else { return Ok(None) };
        let window = *self.sliding_window;
        match kinds[layer as usize].as_str() {
            "full_attention" => Ok(None),
            "sliding_attention" => match window {
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
    /// `yarn`: whether the range of corrected pairs is rounded to whole pairs; it is when absent.
    pub truncate: Option<bool>,
    /// `yarn`, `longrope`: a factor of what is rotated, in place of the computed one.
    #[serde(deserialize_with = "optional_positive")]
    pub attention_factor: Option<f64>,
    /// `longrope`: a factor for each wavelength of sequences up to the original context.
    #[serde(deserialize_with = "optional_positives")]
    pub short_factor: Option<Vec<f32>>,
    /// `longrope`: the same for longer sequences.
    #[serde(deserialize_with = "optional_positives")]
    pub long_factor: Option<Vec<f32>>,
    /// `proportional`: the share of each head that is rotated.
    #[serde(deserialize_with = "lazy_positive")]
    pub partial_rotary_factor: Lazy<Option<f64>>,
    /// `longrope`: a factor of what is rotated in sequences up to the original context, in families
    /// that do not compute it.
    #[serde(deserialize_with = "optional_positive")]
    pub short_mscale: Option<f64>,
    /// `longrope`: the same for longer sequences.
    #[serde(deserialize_with = "optional_positive")]
    pub long_mscale: Option<f64>,
    /// M-RoPE: how many pairs of a head take their position from each axis.
    pub mrope_section: Option<Vec<i32>>,
    /// M-RoPE: whether the axes take turns instead of having a block of pairs each.
    pub mrope_interleaved: Option<bool>,
    /// Those of full layers, where transformers 5 nests them by kind of layer.
    pub full_attention: Option<Box<RopeScaling>>,
    /// Those of sliding layers.
    pub sliding_attention: Option<Box<RopeScaling>>,
    /// Where the fields come from, and a copy that tells which of them this struct has.
    #[serde(skip)]
    origin: Option<(Json, Json)>,
}

impl RopeScaling {
    /// Ties the fields to their places in the config; `copy` tells which of them this struct has.
    fn tie(&mut self, config: &Json, copy: Option<&Json>) {
        self.partial_rotary_factor.tie(config, "partial_rotary_factor");
        self.origin = copy.map(|copy| (config.clone(), copy.clone()));
        for (name, nested) in [
            ("full_attention", &mut self.full_attention),
            ("sliding_attention", &mut self.sliding_attention),
        ] {
            if let (Some(nested), Some(config)) = (nested, config.peek(name)) {
                nested.tie(config, copy.and_then(|copy| copy.peek(name)));
            }
        }
    }

    /// The original context, which configs also have beside the scaling, or else do not have: then
    /// nothing is longer than the training.
    fn complete(&mut self, original: Option<f64>, context: Option<i32>) {
        let inner = self.original_max_position_embeddings;
        self.original_max_position_embeddings = original.or(inner).or(context.map(f64::from));
        for nested in [&mut self.full_attention, &mut self.sliding_attention].into_iter().flatten()
        {
            nested.complete(None, context);
        }
    }

    fn count_as_read(&self) {
        if let Some((config, copy)) = &self.origin {
            config.mark();
            config.mark_as(copy, LAZY);
        }
    }

    fn is_like(&self, other: &RopeScaling) -> bool {
        self.kind() == other.kind() && self.factor == other.factor
    }

    /// The kind of scaling.
    pub fn kind(&self) -> &str {
        self.rope_type.as_deref().or(self.legacy_type.as_deref()).unwrap_or("default")
    }

    fn is_longrope(&self) -> bool {
        matches!(self.kind(), "longrope" | "su") && self.short_factor != self.long_factor
    }
}

/// The fields that [`Text::read`] does not count as read.
const LAZY: &[&str] = &[
    "sliding_window",
    "layer_types",
    "attention_bias",
    "mlp_bias",
    "hidden_act",
    "partial_rotary_factor",
    "final_logit_softcapping",
    "rope_traditional",
    "rope_scaling",
    "rope_parameters",
    "full_attention",
    "sliding_attention",
];

/// On or off; off where it is absent or null.
fn switch<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Lazy<bool>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(false).into())
}

/// A window; none where it is 0, absent or null.
fn window<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Lazy<Option<i32>>, D::Error> {
    Ok(Some(count(deserializer)?).filter(|window| *window > 0).into())
}

fn lazy_positive<'de, D, T>(deserializer: D) -> Result<Lazy<Option<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Into<f64> + Copy,
{
    optional_positive(deserializer).map(Lazy::from)
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
