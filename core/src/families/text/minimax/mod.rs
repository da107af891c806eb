//! MiniMax M2: Llama with queries and keys normalised over all heads together, a partial rotary
//! embedding, and DeepSeek V3's router in float32. Follows `minimax` of mlx-lm. MiniMax Text 01 is in
//! `text_01`.

mod text_01;

use crate::families::prelude::*;
use crate::families::text::{mixtral, olmo2};

pub const FAMILY: Family =
    Family { model_types: &["minimax", "minimax_m2"], build, recommended: RECOMMENDED };

const RECOMMENDED: Recommended = Recommended {
    sampling: Sampling { top_k: 40, ..Sampling::nucleus(1.0, 0.95) },
    ..Recommended::NOTHING
};

#[derive(Deserialize)]
struct Config {
    rotary_dim: Option<Size>,
    use_qk_norm: bool,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    if text_01::is_described_by(config) {
        return text_01::build(config, w);
    }
    let config = &config::with_defaults(
        config,
        json!({
            "use_qk_norm": true, "rope_theta": 5e6,
            "norm_topk_prob": true, "routed_scaling_factor": 1.0,
        }),
    );
    let (c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    let routing = LossFreeRouting::read(config, &[("num_local_experts", "n_routed_experts")])?;
    config::only(config, json!({"scoring_func": "sigmoid", "shared_intermediate_size": 0}))?;
    let rope = Rope::rotary_dim(&c, e.rotary_dim)?;
    Ok(Box::new(Decoder::stack(w, &c, |_, w| {
        let a = w.at("self_attn");
        let attention = if e.use_qk_norm {
            olmo2::attention(&a, &c, rope.clone())?
        } else {
            Attention::read(&a, QKVO, &c, rope.clone())?
        };
        let moe = w.at("block_sparse_moe");
        let router = loss_free_router_at(&moe, &moe, &c, &routing)?;
        let router = router.normalized().wide().rounded();
        let ffn = Moe::new(router, mixtral::experts(&moe, &c, routing.n_routed_experts)?);
        pre_norm(w, &c, attention, ffn)
    })?))
}
