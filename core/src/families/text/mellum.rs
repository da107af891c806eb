//! Mellum 2: Qwen 3 MoE some of whose layers slide, with a rotary embedding for each kind of layer.
//! Follows `mellum` of mlx-lm, and transformers where that has dense layers.

use super::{qwen3, qwen3_moe};
use crate::prelude::*;
use std::collections::HashMap;

pub const FAMILY: Family = Family { model_types: &["mellum"], build };

#[derive(Deserialize)]
struct Config {
    rope_parameters: HashMap<String, config::RopeScaling>,
    mlp_layer_types: Option<Vec<String>>,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = config::with_defaults(config, json!({
        "decoder_sparse_step": 1, "rope_parameters": {
            "full_attention": {"rope_theta": 5e5}, "sliding_attention": {"rope_theta": 1e4},
        },
    }));
    let e: Config = config::read(&config)?;
    let experts: qwen3_moe::Config = config::read(&config)?;
    let mut plain = config.clone();
    if let Json::Object(fields) = &mut plain {
        fields.remove("rope_parameters");
    }
    let c = qwen3::read(&plain)?;
    config::check_entries("mlp_layer_types", e.mlp_layer_types.as_ref(), c.num_hidden_layers)?;
    // It predicts further tokens: ready for drafters.
    w.ignore("mtp");
    Ok(Box::new(Decoder::stack(w, &c, |i, w| {
        let window = c.window(i)?;
        let kind = if window.is_some() { "sliding_attention" } else { "full_attention" };
        let attention = qwen3::attention(&w.at("self_attn"), &c, e.rope(&c, kind)?)?.window(window);
        let mlp = w.at("mlp");
        let is_dense = e.mlp_layer_types.as_ref().is_some_and(|kinds| kinds[i as usize] == "dense");
        let ffn: Ffn = if is_dense {
            dense(&mlp, &c)?
        } else {
            Box::new(qwen3_moe::experts(&mlp, &c, &experts, top_k)?)
        };
        pre_norm(w, &c, attention, ffn)
    })?))
}

impl Config {
    fn rope(&self, c: &Text, kind: &str) -> Result<Rope> {
        let field = format!("rope_parameters.{kind}");
        let scaling = self.rope_parameters.get(kind);
        let scaling = scaling.ok_or_else(|| Error::config(&field, "missing for such layers"))?;
        let base = scaling.rope_theta.ok_or_else(|| Error::config(field, "has no rope_theta"))?;
        Rope::scaled(c.head_dim(), base, false, Some(scaling), c.max_position_embeddings)
    }
}
