//! Laguna: Qwen 3's attention with a gate on what each head gathers, layers that differ in heads and
//! rotary embeddings, and experts whose scores do not compete beside one that all share. Follows
//! `laguna` of mlx-lm, and transformers for gates on each element.

use super::{gemma3_text::without, glm4_moe, qwen3};
use crate::{
    parts::{
        activation::softplus,
        gated_attention::{gated_attention, single_softplus},
        rope::share_of_head,
        router,
    },
    prelude::*,
};
use std::collections::HashMap;

pub const FAMILY: Family = Family { model_types: &["laguna"], build };

#[derive(Deserialize)]
struct Config {
    qkv_bias: bool,
    attention_bias: bool,
    gating: Gating,
    #[serde(default, deserialize_with = "config::optional_positive")]
    partial_rotary_factor: Option<f64>,
    rope_parameters: Option<HashMap<String, Option<config::RopeScaling>>>,
    num_attention_heads_per_layer: Option<Vec<config::Size>>,
    mlp_layer_types: Option<Vec<String>>,
    #[serde(deserialize_with = "config::size")]
    moe_intermediate_size: i32,
    #[serde(deserialize_with = "config::size")]
    shared_expert_intermediate_size: i32,
    #[serde(deserialize_with = "config::positive")]
    moe_routed_scaling_factor: f32,
    moe_router_logit_softcapping: f32,
    moe_router_score_func: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Gating {
    Switch(bool),
    Kind(String),
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(config, json!({
        "vocab_size": 100_352, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 40, "num_attention_heads": 48, "num_key_value_heads": 8,
        "head_dim": 128, "max_position_embeddings": 262_144, "rms_norm_eps": 1e-6,
        "attention_bias": false, "qkv_bias": false, "gating": true, "tie_word_embeddings": false,
        "sliding_window": 512, "num_experts": 256, "num_experts_per_tok": 8,
        "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
        "moe_routed_scaling_factor": 1.0, "moe_router_logit_softcapping": 0.0,
        "moe_router_score_func": "sigmoid", "norm_topk_prob": true, "routed_scaling_factor": 1.0,
    }));
    let e: Config = config::read(config)?;
    let c = Text::read(&without(config, &["rope_parameters", "attention_bias"]))?;
    let layers = c.num_hidden_layers;
    let names = [("num_experts", "n_routed_experts")];
    let routing: LossFreeRouting = config::read_renamed(config, &names, config::read)?;
    let heads = e.num_attention_heads_per_layer.as_ref();
    config::check_entries("num_attention_heads_per_layer", heads, layers)?;
    config::check_entries("mlp_layer_types", e.mlp_layer_types.as_ref(), layers)?;
    let decoder = Decoder::stack(w, &c, |i, w| {
        let mut c = c.clone();
        if let Some(heads) = &e.num_attention_heads_per_layer {
            c.num_attention_heads = heads[i as usize].0;
            c.check_heads("num_key_value_heads")?;
        }
        let (a, mlp, window) = (w.at("self_attn"), w.at("mlp"), c.window(i)?);
        for name in e.biased() {
            a.at(name).require("bias")?;
        }
        let rope = e.rope(&c, window)?;
        let attention = qwen3::attention(&a, &c, rope)?.window(window);
        let sparse = match &e.mlp_layer_types {
            Some(kinds) => kinds[i as usize] == "sparse",
            None => i > 0,
        };
        let ffn: Ffn = if sparse {
            Box::new(Sparse::read(&mlp, &c, &e, &routing)?)
        } else {
            Box::new(Mlp::read(&mlp, GATE_UP_DOWN, &c, swiglu)?)
        };
        let gates = match &e.gating {
            Gating::Switch(false) => return pre_norm(w, &c, attention, ffn),
            Gating::Kind(kind) if kind == "per-element" => c.qk_widths()[0],
            Gating::Kind(kind) if kind != "per-head" => {
                return Err(Error::config("gating", format!("`{kind}` is not known")));
            }
            _ => c.num_attention_heads,
        };
        let gate = (a.linear("g_proj", c.hidden_size, gates)?, gates);
        pre_norm(w, &c, gated_attention(attention, gate, single_softplus), ffn)
    })?;
    Ok(Box::new(decoder))
}

impl Config {
    /// The projections that must have biases.
    fn biased(&self) -> impl Iterator<Item = &'static str> {
        let inner = QKVO.into_iter().take(if self.qkv_bias { 3 } else { 0 });
        inner.chain(self.attention_bias.then_some(QKVO[3]))
    }

    /// From logits to scores.
    fn scores(&self) -> Result<impl Fn(&Array) -> Result<Array> + 'static> {
        let cap = self.moe_router_logit_softcapping;
        let score = match &*self.moe_router_score_func {
            "sigmoid" => router::sigmoid,
            "sqrtsoftplus" => |x: &Array| Ok(softplus(x)?.sqrt()?),
            other => {
                let reason = format!("`{other}` is neither sigmoid nor sqrtsoftplus");
                return Err(Error::config("moe_router_score_func", reason));
            }
        };
        Ok(move |logits: &Array| {
            if cap <= 0.0 {
                return score(logits);
            }
            let cap = Array::from_f32(cap);
            score(&ops::tanh(&logits.divide(&cap)?)?.multiply(cap)?)
        })
    }

    fn rope(&self, c: &Text, window: Option<i32>) -> Result<Rope> {
        let kind = if window.is_some() { "sliding_attention" } else { "full_attention" };
        let scaling = self.rope_parameters.as_ref().and_then(|kinds| kinds.get(kind)?.as_ref());
        let base = scaling.and_then(|scaling| scaling.rope_theta).unwrap_or(10_000.0);
        let own = scaling.and_then(|scaling| scaling.partial_rotary_factor);
        let share = own.or(self.partial_rotary_factor).unwrap_or(1.0);
        let dims = share_of_head(c, share, "partial_rotary_factor")?;
        Rope::scaled(dims, base, false, scaling, c.max_position_embeddings)
    }
}

/// Experts, all of them scaled, beside one that all tokens share.
struct Sparse {
    experts: Moe,
    scale: f32,
    shared: Mlp,
}

impl Sparse {
    fn read(w: &Scope, c: &Text, e: &Config, routing: &LossFreeRouting) -> Result<Self> {
        let (count, width) = (routing.n_routed_experts, c.hidden_size);
        let gate = w.at("gate");
        // MLX's files have names of their own.
        let logits = if gate.has("weight") {
            w.linear("gate", width, count)?
        } else {
            gate.linear("proj", width, count)?
        };
        let name = "e_score_correction_bias";
        let experts = w.at("experts");
        let correction = if experts.has(name) { experts } else { gate };
        let correction = correction.tensor(name, &[count])?;
        let router = LossFreeRouter::new(logits, Some(correction), routing)?.normalized();
        let experts = glm4_moe::stacked(w, [count, width, e.moe_intermediate_size])?;
        let inner = e.shared_expert_intermediate_size;
        Ok(Sparse {
            experts: Moe::new(router.scores(e.scores()?), experts),
            scale: e.moe_routed_scaling_factor,
            shared: Mlp::sized(&w.at("shared_expert"), c, inner, swiglu)?,
        })
    }
}

impl Layer for Sparse {
    type State = ();

    fn state(&self, _: &CachePlan) {}

    fn forward(&self, x: &Array, (): &mut (), step: &Step) -> Result<Array> {
        let y = self.experts.forward(x, &mut (), step)?;
        let y = y.multiply(mlx::scalar(self.scale, y.dtype())?)?;
        Ok(y.add(self.shared.forward(x, &mut (), step)?)?)
    }
}
