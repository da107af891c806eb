//! ERNIE 4.5 with experts: ERNIE 4.5 (dense), between some of whose layers experts weigh tokens
//! beside shared ones. Follows `ernie4_5_moe` of mlx-lm, and transformers where a bias corrects the
//! choice.

use super::glm4_moe::{beside_shared, stacked};
use crate::prelude::*;

pub const FAMILY: Family = Family { model_types: &["ernie4_5_moe"], build };

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    moe_intermediate_size: Count,
    #[serde(default)]
    moe_num_shared_experts: Count,
    moe_layer_interval: Size,
    moe_layer_start_index: Places,
    moe_layer_end_index: Option<Places>,
    moe_gate_act: String,
}

/// A layer, or one for each kind of expert.
#[derive(Deserialize)]
#[serde(untagged)]
enum Places {
    One(i64),
    Each(Vec<i64>),
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(config, json!({
        "moe_k": 1, "moe_layer_interval": 1, "moe_layer_start_index": 0, "moe_gate_act": "softmax",
        "norm_topk_prob": true, "routed_scaling_factor": 1.0, "rope_traditional": true,
        "tie_word_embeddings": true,
    }));
    let names = [("use_bias", "attention_bias"), ("use_bias", "mlp_bias")];
    let (c, e): (Text, Config) = (Text::read_renamed(config, &names)?, config::read(config)?);
    let names = [("moe_num_experts", "n_routed_experts"), ("moe_k", "num_experts_per_tok")];
    let routing: LossFreeRouting = config::read_renamed(config, &names, config::read)?;
    let sparse = e.sparse()?;
    let rope = Rope::of(&c)?;
    for part in ["mtp_block", "mtp_linear_proj", "mtp_hidden_norm", "mtp_emb_norm"] {
        // They predict further tokens: ready for drafters.
        w.at("model").ignore(part);
    }
    Ok(Box::new(Decoder::stack(w, &c, |i, w| {
        let attention = Attention::read(&w.at("self_attn"), QKVO, &c, rope.clone())?;
        let mlp = w.at("mlp");
        let ffn = if sparse(i) { experts(&mlp, &c, &e, &routing)? } else { dense(&mlp, &c)? };
        pre_norm(w, &c, attention, ffn)
    })?))
}

impl Places {
    /// The first and the last.
    fn ends(&self, field: &str) -> Result<(i64, i64)> {
        let layers = match self {
            Places::One(layer) => std::slice::from_ref(layer),
            Places::Each(layers) => layers,
        };
        match (layers.iter().min(), layers.iter().max()) {
            (Some(first), Some(last)) => Ok((*first, *last)),
            _ => Err(Error::config(field, "is empty")),
        }
    }
}

impl Config {
    /// Which layers have experts.
    fn sparse(&self) -> Result<impl Fn(i32) -> bool> {
        let (first, _) = self.moe_layer_start_index.ends("moe_layer_start_index")?;
        let last = match &self.moe_layer_end_index {
            Some(places) => places.ends("moe_layer_end_index")?.1,
            None => -1,
        };
        let Size(interval) = self.moe_layer_interval;
        Ok(move |layer: i32| {
            let within = i64::from(layer) >= first && (last < 0 || i64::from(layer) <= last);
            (layer + 1) % interval == 0 && within
        })
    }
}

fn experts(w: &Scope, c: &Text, e: &Config, routing: &LossFreeRouting) -> Result<Ffn> {
    let count = routing.n_routed_experts;
    let inner = match *e.moe_intermediate_size {
        0 => c.intermediate_size,
        inner => inner,
    };
    let score = match e.moe_gate_act.as_str() {
        "softmax" => router::softmax,
        "sigmoid" => router::sigmoid,
        other => return Err(Error::config("moe_gate_act", format!("`{other}` is not known"))),
    };
    // MLX files leave it out.
    let statics = w.at("moe_statics");
    let correction = statics.optional("e_score_correction_bias", &[1, count])?;
    let logits = w.linear("gate", c.hidden_size, count)?;
    router::check_choice("moe_k", (count, routing.num_experts_per_tok))?;
    let router = LossFreeRouter::new(logits, correction, routing)?.scores(score).normalized();
    let moe = Moe::new(router, stacked(w, [count, c.hidden_size, inner])?);
    beside_shared(w, c, moe, [inner, *e.moe_num_shared_experts])
}
