//! Mamba and Falcon Mamba: no attention and no MLP, one selective scan a block. Falcon Mamba
//! normalises what the token selects. Follows `mamba` and `falcon_mamba` of transformers; mlx-lm's norms
//! have the epsilon 1e-5 whatever the config says.

use crate::families::prelude::*;
use crate::families::text::mamba2;

pub const FAMILY: Family =
    Family { model_types: &["mamba", "falcon_mamba"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    intermediate_size: Option<Size>,
    expand: Option<Size>,
    state_size: Size,
    conv_kernel: Size,
    time_step_rank: Option<TimeStepRank>,
    use_bias: bool,
    use_conv_bias: bool,
    use_bcdt_rms: Option<bool>,
    mixer_rms_eps: Option<Epsilon>,
}

/// The width that time steps are projected from.
#[derive(Clone, Copy, Deserialize)]
#[serde(untagged)]
pub enum TimeStepRank {
    Given(Size),
    Auto(Auto),
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Auto {
    Auto,
}

impl TimeStepRank {
    /// A sixteenth of the width of the stream, unless it is given.
    pub fn of(rank: Option<Self>, width: i32) -> i32 {
        match rank {
            Some(TimeStepRank::Given(Size(rank))) => rank,
            Some(TimeStepRank::Auto(Auto::Auto)) | None => (width + 15) / 16,
        }
    }
}

const NAMES: &[(&str, &str)] = &[
    ("d_model", "hidden_size"),
    ("d_inner", "intermediate_size"),
    ("d_state", "state_size"),
    ("n_layer", "num_hidden_layers"),
    ("n_layers", "num_hidden_layers"),
    ("d_conv", "conv_kernel"),
    ("bias", "use_bias"),
    ("conv_bias", "use_conv_bias"),
];

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    config::only(config, json!({"hidden_act": "silu"}))?;
    let defaults = json!({
        "layer_norm_epsilon": 1e-5, "tie_word_embeddings": true, "use_bias": false,
        "use_conv_bias": true, "conv_kernel": 4, "state_size": 16,
    });
    config::read_renamed(config, NAMES, |config| {
        let config = &config::with_defaults(config, defaults);
        let (c, e): (Text, Config) = (mamba2::recurrent(config)?, config::read(config)?);
        let inner = match e.intermediate_size {
            Some(inner) => *inner,
            None => config::product("expand", [e.expand.map_or(2, i32::from), c.hidden_size])?,
        };
        let sizes = SelectiveScanSizes {
            hidden: c.hidden_size,
            inner,
            state: *e.state_size,
            time_step_rank: TimeStepRank::of(e.time_step_rank, c.hidden_size),
            taps: *e.conv_kernel,
        };
        let biases = SelectiveScanBiases { projections: e.use_bias, conv: e.use_conv_bias };
        let is_falcon =
            config.get("model_type").and_then(Json::as_str) == Some("falcon_mamba");
        let norms = match e.use_bcdt_rms {
            Some(false) if !is_falcon => SelectionNorms::None,
            None if !is_falcon => SelectionNorms::None,
            _ => SelectionNorms::Weightless(e.mixer_rms_eps.map_or(1e-6, f32::from)),
        };
        mamba2::decoder(w, &c, |w| SelectiveScan::read(w, sizes, biases, norms))
    })
}
