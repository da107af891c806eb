//! The language model of Llama 4 Scout and Maverick: Llama 4's dense text models with experts in some or all
//! layers; a token goes to one routed expert, whose input is multiplied by its score, and to a
//! shared expert. Follows `llama4` of mlx-lm, and Meta's code, as in transformers, for
//! `no_rope_layers` and `moe_layers`.

use crate::families::prelude::*;
use crate::families::text::llama4_text::{decoder, dense, read};

#[derive(Deserialize)]
struct Config {
    num_local_experts: Size,
    num_experts_per_tok: Size,
    moe_layers: Option<Vec<i32>>,
    interleave_moe_layer_step: Size,
}

pub fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config::text(config)?,
        json!({
            "vocab_size": 202_048, "hidden_size": 5120, "intermediate_size": 8192,
            "intermediate_size_mlp": 16384, "num_hidden_layers": 48, "num_attention_heads": 40,
            "num_key_value_heads": 8, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5,
            "num_local_experts": 16, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1,
        }),
    );
    let (e, (config, c)): (Config, _) = (config::read(config)?, read(config)?);
    check_choice("num_experts_per_tok", 1, *e.num_experts_per_tok)?;
    let has_experts = |i: i32| match &e.moe_layers {
        Some(layers) => layers.contains(&i),
        None => (i + 1) % *e.interleave_moe_layer_step == 0,
    };
    // The norms of queries and keys have an epsilon of their own.
    Ok(Box::new(decoder(&config, w, &c, 1e-6, |i, w| {
        if has_experts(i) { moe(w, &c, *e.num_local_experts) } else { dense(w, &c, &config) }
    })?))
}

/// Routed experts, whose input is the token times the sigmoid of its logit, beside a shared expert
/// with unscaled input.
fn moe(w: &Scope, c: &Text, count: i32) -> Result<Ffn> {
    let router = w.linear("router", c.hidden_size, count)?;
    // Published checkpoints store transposed weights.
    let place = if w.has("experts.gate_up_proj") { &w.transposed() } else { w };
    let sizes = ExpertSizes { count, width: c.hidden_size, inner: c.intermediate_size };
    let experts = GatedExperts::read(place, "experts", sizes, swiglu)?;
    let shared = Mlp::read(&w.at("shared_expert"), GATE_UP_DOWN, c, swiglu)?;
    Ok(Box::new(Map(move |x: &Array| {
        let logits = router.forward(x)?;
        let ids = first_top_k(&logits, 1)?;
        let scores = take_along_axis(&logits, &ids, -1)?.as_dtype(Dtype::Float32)?;
        let scaled = x.multiply(ops::sigmoid(scores)?.as_dtype(x.dtype())?)?;
        let y = experts.forward(&scaled, &ids)?.squeeze_axes(&[-2])?;
        Ok(y.add(shared.apply(x)?)?)
    })))
}
