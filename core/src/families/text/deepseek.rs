//! DeepSeek MoE (first generation): Llama with many small routed experts beside shared experts,
//! after a few dense layers. Follows `deepseek` of mlx-lm, and DeepSeek's own code for
//! `rope_scaling` and normalised top-k weights.

use crate::families::prelude::*;

pub const FAMILY: Family =
    Family { model_types: &["deepseek"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    num_experts_per_tok: Option<Size>,
    norm_topk_prob: bool,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "vocab_size": 102400, "hidden_size": 4096, "intermediate_size": 11008,
            "moe_intermediate_size": 1407, "num_hidden_layers": 30, "num_attention_heads": 32,
            "num_key_value_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
            "norm_topk_prob": false,
        }),
    );
    let (c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    let sparsity = Sparsity::read(config, c.num_hidden_layers)?;
    let rope = Rope::of(&c)?;
    Ok(Box::new(Decoder::stack(w, &c, |i, w| {
        let attention = Attention::read(&w.at("self_attn"), QKVO, &c, rope.clone())?;
        let network = sparsity.network(&w.at("mlp"), &c, i, |w, count| e.router(w, &c, count))?;
        pre_norm(w, &c, attention, network)
    })?))
}

impl Config {
    fn router(&self, w: &Scope, c: &Text, count: i32) -> Result<LinearRouter> {
        let Some(Size(k)) = self.num_experts_per_tok else {
            return Err(Error::config("num_experts_per_tok", "missing, but there are experts"));
        };
        let route =
            if self.norm_topk_prob { softmax_then_top_k_normalized } else { softmax_then_top_k };
        let logits = w.linear("gate", c.hidden_size, count)?;
        Ok(LinearRouter::new(logits, route, count, k)?.choosing(first_top_k))
    }
}
