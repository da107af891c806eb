//! Arcee's Trinity (AFM): Qwen 3's attention with norms before and after each branch and a gate on
//! its output; only sliding-window layers have a rotary embedding; DeepSeek V3's mixture of
//! experts. Follows `afmoe` of mlx-lm.

use crate::families::prelude::*;
use crate::families::text::qwen3;

pub const FAMILY: Family =
    Family { model_types: &["afmoe"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    moe_intermediate_size: Size,
    num_shared_experts: Count,
    num_dense_layers: Count,
    mup_enabled: bool,
}

const NAMES: &[(&str, &str)] = &[
    ("num_experts", "n_routed_experts"),
    ("route_norm", "norm_topk_prob"),
    ("route_scale", "routed_scaling_factor"),
];

const NORMS: FourNorms<&str> = FourNorms {
    before_mixer: "input_layernorm",
    after_mixer: "post_attention_layernorm",
    before_ffn: "pre_mlp_layernorm",
    after_ffn: "post_mlp_layernorm",
};

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "vocab_size": 200192, "hidden_size": 2048, "intermediate_size": 6144,
            "moe_intermediate_size": 1024, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5, "num_experts": 128, "num_experts_per_tok": 8,
            "num_shared_experts": 1, "num_dense_layers": 2, "route_norm": true, "route_scale": 2.826,
            "score_func": "sigmoid", "n_group": 1, "topk_group": 1, "sliding_window": 2048,
            "mup_enabled": true,
        }),
    );
    let (c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    if c.layer_types.is_none() {
        return Err(Error::config("layer_types", "missing"));
    }
    let rope = Rope::of(&c)?;
    let decoder = Decoder::stack(w, &c, |i, w| {
        let norm = |name| w.rms_norm(name, c.hidden_size, c.rms_norm_eps);
        let (a, mlp, window) = (w.at("self_attn"), w.at("mlp"), c.window(i)?);
        let rope = if window.is_some() { rope.clone() } else { Rope::None };
        let [queries, _] = c.qk_widths();
        let gate = (a.linear("gate_proj", c.hidden_size, queries)?, queries);
        let attention = qwen3::attention(&a, &c, rope)?.window(window);
        let attention = gated_attention(attention, gate, router::sigmoid);
        let is_dense = i < *e.num_dense_layers;
        let ffn = if is_dense { dense(&mlp, &c)? } else { experts(&mlp, &c, &e, config)? };
        Ok(Block::new(sandwich(norm, NORMS, attention, ffn)?))
    })?;
    let embedding_scale = e.mup_enabled.then(|| (c.hidden_size as f32).sqrt());
    Ok(Box::new(Decoder { embedding_scale, ..decoder }))
}

fn experts(w: &Scope, c: &Text, e: &Config, config: &Json) -> Result<Ffn> {
    let routing = LossFreeRouting::read(config, NAMES)?;
    let (count, inner) = (routing.n_routed_experts, *e.moe_intermediate_size);
    let logits = w.at("router").linear("gate", c.hidden_size, count)?;
    let bias = w.tensor("expert_bias", &[count])?;
    let router = LossFreeRouter::new(logits, Some(bias), &routing)?;
    let router = router.scores(router::score(config, "score_func")?);
    let moe =
        Moe::new(router, stacked_experts(w, c, ExpertSizes { count, width: c.hidden_size, inner })?);
    with_shared_expert(w, c, moe, inner, *e.num_shared_experts)
}
