//! StarCoder 1 and SantaCoder: GPT-2 whose heads share one key and one value. Follows `gpt_bigcode`
//! of mlx-lm, and BigCode where heads have keys of their own.

use super::gpt2;
use crate::prelude::*;

pub const FAMILY: Family = Family { model_types: &["gpt_bigcode"], build };

#[derive(Deserialize)]
struct Config {
    #[serde(default = "shared")]
    multi_query: bool,
}

fn shared() -> bool {
    true
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let mut c = gpt2::read(&config::with_defaults(config, json!({
        "tie_word_embeddings": true, "attention_bias": true, "mlp_bias": true,
    })))?;
    let shared = config::read::<Config>(config)?.multi_query;
    c.num_key_value_heads = shared.then_some(1);
    let (width, heads, head_dim) = (c.hidden_size, c.num_attention_heads, c.head_dim());
    let body = w.at("transformer");
    let decoder = gpt2::decoder(w, &body, &c, |_, w| {
        let a = w.at("attn");
        if c.attention_bias {
            a.at("c_attn").require("bias")?;
            a.at("c_proj").require("bias")?;
        }
        let [q, k, v] = if shared {
            a.fused("c_attn", width, [heads * head_dim, head_dim, head_dim])?
        } else {
            // Head by head, which mlx-lm takes for one part after the other.
            a.fused_by_group("c_attn", width, heads, [head_dim; 3])?
        };
        let output = a.linear("c_proj", heads * head_dim, width)?;
        let attention = Attention::new([q, k, v, output], &c, Rope::None);
        Ok((attention, PlainMlp::read(&w.at("mlp"), ["c_fc", "c_proj"], &c, gelu)?))
    })?;
    Ok(Box::new(gpt2::Positioned::read(&body, config, width, decoder)?))
}
