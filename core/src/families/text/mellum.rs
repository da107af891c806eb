//! Mellum 2: Qwen 3 MoE with sliding-window layers, with a rotary embedding for each kind of layer.
//! Follows `mellum` of mlx-lm, and transformers for dense layers.

use crate::families::prelude::*;
use crate::families::text::{qwen3, qwen3_moe};

pub const FAMILY: Family =
    Family { model_types: &["mellum"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "decoder_sparse_step": 1, "rope_parameters": {
                "full_attention": {"rope_theta": 5e5}, "sliding_attention": {"rope_theta": 1e4},
            },
        }),
    );
    let (c, e) = (qwen3::read(config)?, qwen3_moe::Config::read(config)?);
    let kinds: Option<Vec<String>> = config::field(config, "mlp_layer_types")?;
    config::check_entries("mlp_layer_types", kinds.as_ref(), c.num_hidden_layers)?;
    // The multi-token prediction layers are ignored; they are meant for speculative decoding.
    w.ignore("mtp");
    Ok(Box::new(Decoder::stack(w, &c, |i, w| {
        let (mlp, window) = (w.at("mlp"), c.window(i)?);
        let base = if window.is_some() { 1e4 } else { 5e5 };
        let own = c.rope_of(window)?;
        let (base, context) = (own.rope_theta.unwrap_or(base), c.max_position_embeddings);
        let rope = Rope::scaled(c.head_dim(), base, false, Some(own), context)?;
        let attention = qwen3::attention(&w.at("self_attn"), &c, rope)?.window(window);
        let ffn = match &kinds {
            Some(kinds) if kinds[i as usize] == "dense" => dense(&mlp, &c)?,
            _ => Box::new(qwen3_moe::experts(&mlp, &c, &e, top_k)?),
        };
        pre_norm(w, &c, attention, ffn)
    })?))
}
