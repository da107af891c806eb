//! Mixtral: Llama with a mixture of experts, whose weights are a softmax over the top-k. Follows
//! `mixtral` of mlx-lm, and transformers for `rope_scaling` and the sliding window.

use crate::families::prelude::*;

pub const FAMILY: Family =
    Family { model_types: &["mixtral"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
pub struct Config {
    pub num_local_experts: Size,
    pub num_experts_per_tok: Size,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
            "num_local_experts": 8, "num_experts_per_tok": 2, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 131072, "rope_theta": 1e6,
        }),
    );
    let c = Text::read(config)?;
    let rope = Rope::of(&c)?;
    Ok(Box::new(Decoder::stack(w, &c, |_, w| {
        let attention = Attention::read(&w.at("self_attn"), QKVO, &c, rope.clone())?;
        let ffn = feed_forward(&w.at("block_sparse_moe"), &c, config)?;
        pre_norm(w, &c, attention.window(*c.sliding_window), ffn)
    })?))
}

/// The mixture of experts of a layer.
pub fn feed_forward(w: &Scope, c: &Text, config: &Json) -> Result<impl Layer + use<>> {
    let e: Config = config::read(config)?;
    let count = *e.num_local_experts;
    let logits = w.linear("gate", c.hidden_size, count)?;
    let router = LinearRouter::new(logits, top_k_then_softmax, count, *e.num_experts_per_tok)?
        .choosing(first_top_k);
    Ok(Moe::new(router, experts(w, c, count)?))
}

/// Experts with the `intermediate_size` of the config.
pub fn experts(w: &Scope, c: &Text, count: i32) -> Result<GatedExperts> {
    let sizes = ExpertSizes { count, width: c.hidden_size, inner: c.intermediate_size };
    GatedExperts::read(w, "switch_mlp", sizes, gate_of(c)?)
}
