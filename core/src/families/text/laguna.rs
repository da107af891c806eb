//! Laguna: Qwen 3's attention with a gate on the output of each head, layers with different head
//! counts and rotary embeddings, and sigmoid-scored routed experts beside a shared expert. Follows
//! `laguna` of mlx-lm, and transformers for gates on each element.

use crate::families::text::qwen3;
use crate::{
    families::prelude::*,
    layers::attention::gated::single_softplus,
};

pub const FAMILY: Family =
    Family { model_types: &["laguna"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    qkv_bias: bool,
    attention_bias: bool,
    gating: Gating,
    num_attention_heads_per_layer: Option<Vec<Size>>,
    mlp_layer_types: Option<Vec<String>>,
    moe_intermediate_size: Size,
    shared_expert_intermediate_size: Size,
    moe_routed_scaling_factor: Positive,
    moe_router_logit_softcapping: f32,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Gating {
    Switch(bool),
    Kind(String),
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "vocab_size": 100_352, "hidden_size": 2048, "intermediate_size": 8192,
            "num_hidden_layers": 40, "num_attention_heads": 48, "num_key_value_heads": 8,
            "head_dim": 128, "max_position_embeddings": 262_144, "rms_norm_eps": 1e-6,
            "attention_bias": false, "qkv_bias": false, "gating": true, "tie_word_embeddings": false,
            "sliding_window": 512, "num_experts": 256, "num_experts_per_tok": 8,
            "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
            "moe_routed_scaling_factor": 1.0, "moe_router_logit_softcapping": 0.0,
            "moe_router_score_func": "sigmoid", "norm_topk_prob": true, "routed_scaling_factor": 1.0,
        }),
    );
    let e: Config = config::read(config)?;
    let c = Text::read(&config::without(config, &["attention_bias"]))?;
    let layers = c.num_hidden_layers;
    let heads = e.num_attention_heads_per_layer.as_ref();
    config::check_entries("num_attention_heads_per_layer", heads, layers)?;
    config::check_entries("mlp_layer_types", e.mlp_layer_types.as_ref(), layers)?;
    Ok(Box::new(Decoder::stack(w, &c, |i, w| {
        let mut c = c.clone();
        if let Some(heads) = &e.num_attention_heads_per_layer {
            c.num_attention_heads = *heads[i as usize];
            c.check_heads("num_key_value_heads")?;
        }
        let (a, mlp) = (w.at("self_attn"), w.at("mlp"));
        let biased = QKVO.iter().take(if e.qkv_bias { 3 } else { 0 });
        for name in biased.chain(e.attention_bias.then_some(&QKVO[3])) {
            a.at(name).require("bias")?;
        }
        let window = c.window(i)?;
        let attention = qwen3::attention(&a, &c, rope(&c, window)?)?.window(window);
        let is_sparse =
            e.mlp_layer_types.as_ref().map_or(i > 0, |kinds| kinds[i as usize] == "sparse");
        let ffn = if is_sparse { e.experts(&mlp, &c, config)? } else { dense(&mlp, &c)? };
        let gates = match &e.gating {
            Gating::Switch(false) => return pre_norm(w, &c, attention, ffn),
            Gating::Kind(kind) if kind == "per-element" => c.qk_widths()[0],
            Gating::Kind(kind) if kind != "per-head" => {
                return Err(Error::unsupported("gating", format!("`{kind}` is not supported")));
            }
            _ => c.num_attention_heads,
        };
        let gate = (a.linear("g_proj", c.hidden_size, gates)?, gates);
        pre_norm(w, &c, gated_attention(attention, gate, single_softplus), ffn)
    })?))
}

fn rope(c: &Text, window: Option<i32>) -> Result<Rope> {
    let own = c.rope_of(window).ok();
    let base = own.and_then(|own| own.rope_theta).unwrap_or(10_000.0);
    let share = own.and_then(|own| *own.partial_rotary_factor).or(c.partial_rotary_factor());
    let dims = c.share_of_head(share.unwrap_or(1.0), "partial_rotary_factor")?;
    Rope::scaled(dims, base, false, own, c.max_position_embeddings)
}

impl Config {
    /// Routed experts with scaled outputs, beside a shared expert.
    fn experts(&self, w: &Scope, c: &Text, config: &Json) -> Result<Ffn> {
        let routing = LossFreeRouting::read(config, &[("num_experts", "n_routed_experts")])?;
        let (count, width, gate) = (routing.n_routed_experts, c.hidden_size, w.at("gate"));
        // MLX checkpoints use other names.
        let logits = if gate.has("weight") {
            w.linear("gate", width, count)?
        } else {
            gate.linear("proj", width, count)?
        };
        let (name, experts) = ("e_score_correction_bias", w.at("experts"));
        let correction = if experts.has(name) { experts } else { gate }.tensor(name, &[count])?;
        let router = LossFreeRouter::new(logits, Some(correction), &routing)?;
        let score = capped(
            router::score(config, "moe_router_score_func")?,
            self.moe_router_logit_softcapping,
        );
        let router = router.normalized().scores(score);
        let experts =
            stacked_experts(w, c, ExpertSizes { count, width, inner: *self.moe_intermediate_size })?;
        let (experts, scale) = (Moe::new(router, experts), *self.moe_routed_scaling_factor);
        let inner = *self.shared_expert_intermediate_size;
        let shared = Mlp::sized(&w.at("shared_expert"), c, inner)?;
        Ok(Box::new(Map(move |x: &Array| {
            let y = experts.apply(x)?;
            let y = y.multiply(mlx::scalar(scale, y.dtype())?)?;
            Ok(y.add(shared.apply(x)?)?)
        })))
    }
}

/// Scores of softcapped logits.
fn capped(score: fn(&Array) -> Result<Array>, cap: f32) -> impl Fn(&Array) -> Result<Array> {
    move |logits| {
        if cap <= 0.0 {
            return score(logits);
        }
        let cap = Array::from_f32(cap);
        score(&ops::tanh(&logits.divide(&cap)?)?.multiply(cap)?)
    }
}
