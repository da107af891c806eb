//! Youtu-LLM: Llama with latent attention whose KV cache holds expanded keys and values. Follows
//! `youtu_llm` of mlx-lm, and Tencent's own code, as in transformers, for YaRN's correction of the
//! scores.

use crate::families::prelude::*;

pub const FAMILY: Family =
    Family { model_types: &["youtu_llm"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let interleave = config.get("rope_traditional").cloned();
    let config = &config::with_defaults(
        config,
        json!({
            "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "v_head_dim": 128,
            "qk_nope_head_dim": 128, "rms_norm_eps": 1e-6, "rope_theta": 1_600_000.0,
            "max_position_embeddings": 131_072, "rope_interleave": interleave,
            "tie_word_embeddings": true,
        }),
    );
    let c = Text::read(config)?;
    let sizes = LatentSizes::read(config, c.num_attention_heads)?;
    let rope = sizes.rope(&c)?;
    let decoder = Decoder::stack(w, &c, |_, w| {
        let a = w.at("self_attn");
        let attention = ExpandedMla::read(&a, &c, &sizes, c.rms_norm_eps, rope.clone())?;
        pre_norm(w, &c, attention, Mlp::of(&w.at("mlp"), GATE_UP_DOWN, &c)?)
    })?;
    Ok(Box::new(decoder))
}
