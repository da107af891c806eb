//! DeepSeek MoE (first generation): Llama with many narrow experts beside some that all tokens
//! share, after a few dense layers. Follows `deepseek` of mlx-lm, and DeepSeek's own code where that
//! scales positions or lets weights sum to one.

use crate::{
    parts::router::{first_top_k, softmax_then_top_k, softmax_then_top_k_normalized},
    prelude::*,
};

pub const FAMILY: Family = Family { model_types: &["deepseek"], build };

#[derive(Deserialize)]
struct Config {
    #[serde(deserialize_with = "config::size")]
    moe_intermediate_size: i32,
    #[serde(default, deserialize_with = "config::optional_size")]
    n_shared_experts: Option<i32>,
    #[serde(default, deserialize_with = "config::optional_size")]
    n_routed_experts: Option<i32>,
    #[serde(default, deserialize_with = "config::optional_size")]
    num_experts_per_tok: Option<i32>,
    #[serde(deserialize_with = "config::size")]
    moe_layer_freq: i32,
    #[serde(deserialize_with = "config::count")]
    first_k_dense_replace: i32,
    norm_topk_prob: bool,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(config, json!({
        "vocab_size": 102400, "hidden_size": 4096, "intermediate_size": 11008,
        "moe_intermediate_size": 1407, "num_hidden_layers": 30, "num_attention_heads": 32,
        "num_key_value_heads": 32, "moe_layer_freq": 1, "first_k_dense_replace": 0,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "norm_topk_prob": false,
    }));
    let (c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    let rope = Rope::of(&c)?;
    Ok(Box::new(Decoder::stack(w, &c, |i, w| {
        let attention = Attention::read(&w.at("self_attn"), QKVO, &c, rope.clone())?;
        let sparse = i >= e.first_k_dense_replace && i % e.moe_layer_freq == 0;
        let mlp = w.at("mlp");
        let ffn = match e.n_routed_experts {
            Some(count) if sparse => experts(&mlp, &c, &e, count)?,
            _ => Box::new(Mlp::read(&mlp, GATE_UP_DOWN, &c, swiglu)?),
        };
        pre_norm(w, &c, attention, ffn)
    })?))
}

fn experts(w: &Scope, c: &Text, e: &Config, count: i32) -> Result<Ffn> {
    let Some(k) = e.num_experts_per_tok else {
        return Err(Error::config("num_experts_per_tok", "missing, but there are experts"));
    };
    let route =
        if e.norm_topk_prob { softmax_then_top_k_normalized } else { softmax_then_top_k };
    let logits = w.linear("gate", c.hidden_size, count)?;
    let router = LinearRouter::new(logits, route, (count, k))?.choosing(first_top_k);
    let sizes = [count, c.hidden_size, e.moe_intermediate_size];
    let moe = Moe::new(router, GatedExperts::read(w, "switch_mlp", sizes, swiglu)?);
    let Some(shared) = e.n_shared_experts else { return Ok(Box::new(moe)) };
    let inner = config::product("n_shared_experts", [shared, e.moe_intermediate_size])?;
    Ok(sum(moe, Mlp::sized(&w.at("shared_experts"), c, inner, swiglu)?))
}
