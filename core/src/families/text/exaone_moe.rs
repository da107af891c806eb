//! K-EXAONE: EXAONE 4's attention, with norms before each branch, and DeepSeek V3's mixture of
//! experts. Follows `exaone_moe` of mlx-lm.

use super::{glm4_moe, qwen3};
use crate::prelude::*;

pub const FAMILY: Family = Family { model_types: &["exaone_moe"], build };

#[derive(Deserialize)]
struct Config {
    moe_intermediate_size: Size,
    #[serde(default)]
    num_shared_experts: Count,
    is_moe_layer: Option<Vec<bool>>,
    mlp_layer_types: Option<Vec<String>>,
    first_k_dense_replace: Count,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(config, json!({
        "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.5, "norm_topk_prob": true,
        "first_k_dense_replace": 1, "rope_parameters": {"rope_theta": 1e6},
    }));
    let (c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    let names = [("num_experts", "n_routed_experts")];
    let routing: LossFreeRouting = config::read_renamed(config, &names, config::read)?;
    let sparse = e.sparse(c.num_hidden_layers)?;
    let windows: Vec<_> =
        (0..c.num_hidden_layers).map(|i| c.window(i)).collect::<Result<_>>()?;
    let slides = windows.iter().any(Option::is_some);
    let rope = Rope::of(&c)?;
    // It predicts further tokens: ready for drafters.
    w.ignore("mtp");
    Ok(Box::new(Decoder::stack(w, &c, |i, w| {
        let window = windows[i as usize];
        let rope = if slides && window.is_none() { Rope::None } else { rope.clone() };
        let attention = qwen3::attention(&w.at("self_attn"), &c, rope)?;
        let mlp = w.at("mlp");
        let ffn = if sparse[i as usize] {
            glm4_moe::experts(&mlp, &c, &routing, [*e.moe_intermediate_size, *e.num_shared_experts])?
        } else {
            dense(&mlp, &c)?
        };
        pre_norm(w, &c, attention.window(window), ffn)
    })?))
}

impl Config {
    /// Which layers have experts.
    fn sparse(&self, layers: i32) -> Result<Vec<bool>> {
        let (field, sparse) = match (&self.is_moe_layer, &self.mlp_layer_types) {
            (Some(sparse), _) => ("is_moe_layer", sparse.clone()),
            (None, Some(kinds)) => {
                ("mlp_layer_types", kinds.iter().map(|kind| kind == "sparse").collect())
            }
            (None, None) => {
                return Ok((0..layers).map(|i| i >= *self.first_k_dense_replace).collect());
            }
        };
        config::check_entries(field, Some(&sparse), layers)?;
        Ok(sparse)
    }
}
