//! The fields that most vision towers spell in the same way.

use crate::{
    checkpoint::config::{self, Epsilon, Json, Positive, Size},
    error::{Error, Result},
    layers::{
        attention::bidirectional::Heads,
        feed_forward::activation::{self, Activation},
    },
};
use serde::Deserialize;
use serde_json::{Value, json};

/// The `vision_config` of a checkpoint.
#[derive(Clone, Debug, Deserialize)]
pub struct VisionConfig {
    /// Width of the stream.
    pub hidden_size: Size,
    /// Width of the feed-forward networks.
    pub intermediate_size: Size,
    /// Number of blocks.
    pub num_hidden_layers: Size,
    /// Number of heads.
    pub num_attention_heads: Size,
    /// Height and width of a patch, in pixels.
    pub patch_size: Size,
    /// Height and width of the picture of the training, in pixels.
    pub image_size: Size,
    /// Colour channels.
    pub num_channels: Size,
    /// Added to the variance in every norm.
    pub layer_norm_eps: Epsilon,
    /// The base of the rotary frequencies, where the tower has some.
    #[serde(default)]
    pub rope_theta: Option<Positive>,
    hidden_act: String,
}

impl VisionConfig {
    /// Reads the fields, with the defaults of SigLIP.
    ///
    /// # Errors
    /// [`Error::Config`] with the field at fault.
    pub fn siglip(config: &Json) -> Result<Self> {
        Self::with_defaults(
            config,
            json!({
                "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                "num_attention_heads": 12, "image_size": 224, "patch_size": 16,
                "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
            }),
        )
    }

    /// Reads the fields, with the defaults of CLIP.
    ///
    /// # Errors
    /// [`Error::Config`] with the field at fault.
    pub fn clip(config: &Json) -> Result<Self> {
        Self::with_defaults(
            config,
            json!({
                "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                "num_attention_heads": 12, "image_size": 224, "patch_size": 32,
                "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
            }),
        )
    }

    /// Reads the fields of `vision_config` in a config, with these defaults.
    ///
    /// # Errors
    /// [`Error::Config`] with the field at fault.
    pub fn with_defaults(config: &Json, defaults: Value) -> Result<Self> {
        Self::read(&config::with_defaults(nested(config)?, defaults), &[])
    }

    /// Reads the fields of a `vision_config` that has other names for some: `(theirs, ours)`.
    ///
    /// # Errors
    /// [`Error::Config`] with the field at fault, by their name.
    pub fn read(nested: &Json, names: &[(&str, &str)]) -> Result<Self> {
        let defaults = json!({"num_channels": 3, "image_size": 224});
        let read = |nested: &Json| config::read(&config::with_defaults(nested, defaults));
        let vision: VisionConfig =
            config::read_renamed(nested, names, read).map_err(in_vision_config)?;
        if *vision.hidden_size % *vision.num_attention_heads != 0 {
            let reason = format!("does not divide the `hidden_size` {}", *vision.hidden_size);
            return Err(Error::config("vision_config.num_attention_heads", reason));
        }
        config::product("vision_config.image_size", [vision.side(); 2])?;
        Ok(vision)
    }

    /// Width of one head.
    pub fn head_dim(&self) -> i32 {
        *self.hidden_size / *self.num_attention_heads
    }

    /// The heads of attention, scaled by `head_dim^(-1/2)`.
    pub fn heads(&self) -> Heads {
        Heads::equal(*self.num_attention_heads, self.head_dim())
    }

    /// The activation of the feed-forward networks.
    ///
    /// # Errors
    /// [`Error::Config`] for an unknown one.
    pub fn activation(&self) -> Result<Activation> {
        activation::named("vision_config.hidden_act", &self.hidden_act)
    }

    /// Patches along one side of the picture of the training.
    pub fn side(&self) -> i32 {
        *self.image_size / *self.patch_size
    }
}

/// The `vision_config` of a config.
///
/// # Errors
/// [`Error::Config`] when it is missing or no object.
pub fn nested(config: &Json) -> Result<&Json> {
    let nested = config.get("vision_config").filter(|nested| nested.is_object());
    nested.ok_or_else(|| Error::config("vision_config", "missing, or not an object"))
}

/// An error about a field of the `vision_config`, with its path.
pub fn in_vision_config(error: Error) -> Error {
    error.with_field(|field| format!("vision_config.{field}"))
}

/// Width of a square of `side · side` patches of this width; `field` gives the side.
///
/// # Errors
/// [`Error::Config`] about the field when it is no size.
pub fn square_width(field: &str, side: i32, width: i32) -> Result<i32> {
    config::product(field, [config::product(field, [side; 2])?, width])
}
