//! Phi 3.5 MoE and Phi mini MoE: Mixtral with layer norms and biases everywhere, and a router
//! (SparseMixer) that masks experts far below each choice. Follows `phimoe` of mlx-lm, and
//! transformers for the sliding window.

use crate::families::prelude::*;
use crate::families::text::mixtral;
use mlx_rs::ops::indexing::argmax_axis;

pub const FAMILY: Family =
    Family { model_types: &["phimoe"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    num_local_experts: Size,
    num_experts_per_tok: Size,
    router_jitter_noise: Epsilon,
    lm_head_bias: bool,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 6400,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
            "max_position_embeddings": 131072, "rms_norm_eps": 1e-6,
            "num_local_experts": 16, "num_experts_per_tok": 2, "router_jitter_noise": 0.01,
            "attention_bias": true, "lm_head_bias": true, "tie_word_embeddings": false,
        }),
    );
    config::only(config, json!({"tie_word_embeddings": false}))?;
    let (c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    let rope = Rope::of(&c)?;
    if e.lm_head_bias {
        w.at("lm_head").require("bias")?;
    }
    let norm = |w: &Scope, name| w.layer_norm_with_bias(name, c.hidden_size, c.rms_norm_eps);
    Ok(Box::new(Decoder::stack_under(
        w,
        &c,
        |w| norm(w, "norm"),
        |_, w| {
            let attention = Attention::read(&w.at("self_attn"), QKVO, &c, rope.clone())?;
            let moe = w.at("block_sparse_moe");
            let experts = mixtral::experts(&moe, &c, *e.num_local_experts)?;
            let ffn = Moe::new(sparse_mixer(&moe, &c, &e)?, experts);
            let attention = attention.window(*c.sliding_window);
            pre_norm_under(|name| norm(w, name), TWO_NORMS, attention, ffn)
        },
    )?))
}

/// Selects one expert after the other. The weight of each is its softmax among the experts that are
/// neither selected already nor far below it ([Liu et al. 2023](https://arxiv.org/abs/2310.00811)).
fn sparse_mixer(w: &Scope, c: &Text, e: &Config) -> Result<impl Router + use<>> {
    let (count, Size(k)) = (*e.num_local_experts, e.num_experts_per_tok);
    check_choice("num_experts_per_tok", count, k)?;
    let logits = w.linear("gate", c.hidden_size, count)?;
    // The largest distance of an expert from the selected one, as a share of the larger magnitude.
    let band = 2.0 * *e.router_jitter_noise;
    Ok(move |x: &Array| {
        let logits = logits.forward(x)?;
        let constant = |value| mlx::scalar(value, logits.dtype());
        let (nothing, band) = (constant(f32::NEG_INFINITY)?, constant(band)?);
        let (mut ids, mut weights, mut left) = (Vec::new(), Vec::new(), logits.clone());
        for _ in 0..k {
            let best = left.max_axis(-1, true)?;
            let id = mlx::detach_indices(argmax_axis(&left, -1, true)?)?;
            let distance = best.subtract(&logits)?.divide(ops::maximum(logits.abs()?, &best)?)?;
            let near = ops::select(&distance.gt(&band)?, &nothing, &left)?;
            weights.push(take_along_axis(ops::softmax_axis(near, -1, true)?, &id, -1)?);
            left = left.put_along_axis(&id, &nothing, -1)?;
            ids.push(id);
        }
        Ok((ops::concatenate(&ids, -1)?, ops::concatenate(&weights, -1)?))
    })
}
