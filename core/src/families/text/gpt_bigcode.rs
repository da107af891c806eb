//! StarCoder 1 and SantaCoder: GPT-2 whose heads share one key and one value. Follows `gpt_bigcode`
//! of mlx-lm, and BigCode where heads have keys of their own or scores are not scaled.

use super::gpt2;
use crate::prelude::*;

pub const FAMILY: Family = Family { model_types: &["gpt_bigcode"], build };

#[derive(Deserialize)]
struct Config {
    multi_query: bool,
    scale_attn_weights: bool,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(config, json!({
        "tie_word_embeddings": true, "attention_bias": true, "mlp_bias": true,
        "multi_query": true, "scale_attn_weights": true,
    }));
    let (mut c, e): (Text, Config) = (gpt2::read(config)?, config::read(config)?);
    let shared = e.multi_query;
    c.num_key_value_heads = shared.then_some(1);
    let (width, heads, head_dim) = (c.hidden_size, c.num_attention_heads, c.head_dim());
    let scale = if e.scale_attn_weights { (head_dim as f32).powf(-0.5) } else { 1.0 };
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
        let attention = Attention::new([q, k, v, output], &c, Rope::None)
            .scores(Scores { scale, sinks: None });
        Ok((attention, PlainMlp::read(&w.at("mlp"), ["c_fc", "c_proj"], &c, gelu)?))
    })?;
    Ok(Box::new(gpt2::Positioned::read(&body, config, width, decoder)?))
}
