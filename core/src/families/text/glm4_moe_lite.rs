//! GLM 4.7 Flash: DeepSeek V3 with other defaults. Follows `glm4_moe_lite` of mlx-lm, and Z.ai's
//! own code, as in transformers, for the epsilon of the norms of low-rank projections.

use crate::families::prelude::*;
use crate::families::text::deepseek_v3::{Config, router};

pub const FAMILY: Family =
    Family { model_types: &["glm4_moe_lite"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "vocab_size": 154_880, "hidden_size": 2048, "intermediate_size": 10_240,
            "moe_intermediate_size": 1536, "num_hidden_layers": 47, "num_attention_heads": 20,
            "n_shared_experts": 1, "n_routed_experts": 64,
            "routed_scaling_factor": 1.8, "kv_lora_rank": 512, "q_lora_rank": 768,
            "qk_rope_head_dim": 64, "qk_nope_head_dim": 192, "v_head_dim": 256, "norm_topk_prob": true,
            "num_experts_per_tok": 4, "first_k_dense_replace": 1, "max_position_embeddings": 202_752,
            "rms_norm_eps": 1e-5, "rope_theta": 1_000_000.0, "tie_word_embeddings": false,
        }),
    );
    let c = Config::read(config)?;
    let rope = c.latent.rope(&c.text)?;
    let attention = |_, w: &Scope| Mla::read(w, &c.text, &c.latent, 1e-6, rope.clone());
    Ok(Box::new(c.decoder(w, attention, |w| router(w, &c.text, config))?))
}
