//! OLMoE: OLMo 2's attention with norms before each branch, and routed experts. Follows `olmoe` of
//! mlx-lm, and transformers for `clip_qkv`.

use crate::families::prelude::*;
use crate::families::text::{olmo2, qwen3_moe};

pub const FAMILY: Family =
    Family { model_types: &["olmoe"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "tie_word_embeddings": true, "norm_topk_prob": false, "decoder_sparse_step": 1,
        }),
    );
    let c = Text::read(config)?;
    let bound: Option<Positive> = config::field(config, "clip_qkv")?;
    let names = [("intermediate_size", "moe_intermediate_size")];
    let experts = qwen3_moe::Config::read_renamed(config, &names)?;
    let rope = Rope::of(&c)?;
    Ok(Box::new(Decoder::stack(w, &c, |_, w| {
        let attention = olmo2::attention(&w.at("self_attn"), &c, rope.clone())?;
        let ffn = qwen3_moe::experts(&w.at("mlp"), &c, &experts, first_top_k)?;
        pre_norm(w, &c, attention.clip_qkv(bound.map(f32::from)), ffn)
    })?))
}
