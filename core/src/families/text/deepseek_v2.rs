//! DeepSeek V2 and Coder V2: DeepSeek V3, but the KV cache holds expanded keys and values, and the
//! router takes experts from the groups with the best single expert. Follows `deepseek_v2` of
//! mlx-lm, which requires `rope_scaling`.

use crate::families::prelude::*;
use crate::families::text::deepseek_v3::Config;

pub const FAMILY: Family =
    Family { model_types: &["deepseek_v2"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Routing {
    n_routed_experts: Size,
    num_experts_per_tok: Size,
    routed_scaling_factor: Positive,
    topk_method: String,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "v_head_dim": 128,
            "qk_nope_head_dim": 128, "rms_norm_eps": 1e-6, "max_position_embeddings": 2048,
            "tie_word_embeddings": false,
            "routed_scaling_factor": 1.0, "topk_method": "greedy",
        }),
    );
    let c = Config::read(config)?;
    // A model without experts scales nothing.
    config.get("routed_scaling_factor");
    let rope = c.latent.rope(&c.text)?;
    // The norms of the low-rank projections have an epsilon of their own.
    let attention = |_, w: &Scope| ExpandedMla::read(w, &c.text, &c.latent, 1e-6, rope.clone());
    Ok(Box::new(c.decoder(w, attention, |w| router(w, &c.text, config))?))
}

/// Softmax over all experts, then top-k among the experts of the best groups.
fn router(w: &Scope, text: &Text, config: &Json) -> Result<impl Router + use<>> {
    let c: Routing = config::read(config)?;
    let (Size(count), Size(k), Positive(factor)) =
        (c.n_routed_experts, c.num_experts_per_tok, c.routed_scaling_factor);
    let logits = w.linear("gate", text.hidden_size, count)?;
    check_choice("num_experts_per_tok", count, k)?;
    // How many groups there are, and how many of them a token does without.
    let groups = match c.topk_method.as_str() {
        "group_limited_greedy" => {
            let Size(groups) = config::field(config, "n_group")?;
            let Size(taken) = config::field(config, "topk_group")?;
            router::check_groups(count, groups, taken)?;
            Some((groups, groups - taken)).filter(|(_, dropped)| *dropped > 0)
        }
        // The first name is how mlx-lm spells its default.
        "gready" | "greedy" => {
            // Without groups it does not matter how many there are.
            for unused in ["n_group", "topk_group"] {
                config.get(unused);
            }
            None
        }
        method => {
            let reason = format!("`{method}` is not supported");
            return Err(Error::unsupported("topk_method", reason));
        }
    };
    Ok(move |x: &Array| {
        let mut scores = ops::softmax_axis(logits.forward(x)?, -1, true)?;
        if let Some((groups, dropped)) = groups {
            let split = ops::unflatten(&scores, -1, &[groups, -1])?;
            let axis = split.ndim() - 2;
            let ids = ops::argpartition_axis(split.max_axis(-1, true)?, dropped - 1, -2)?;
            let ids = mlx::detach_indices(mlx::slice(&ids, axis, 0, dropped)?)?;
            let zero = mlx::scalar(0.0, split.dtype())?;
            scores = split.put_along_axis(&ids, zero, -2)?.flatten(-2, -1)?;
        }
        let ids = first_top_k(&scores, k)?;
        let weights = take_along_axis(&scores, &ids, -1)?;
        let factor = mlx::scalar(factor, weights.dtype())?;
        Ok((ids, weights.multiply(factor)?))
    })
}
