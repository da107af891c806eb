//! StarCoder 1 and SantaCoder: GPT-2 with multi-query attention (one key-value head). Follows
//! `gpt_bigcode` of mlx-lm, and BigCode's code for multi-head attention, unscaled scores and the
//! activation.

use crate::families::prelude::*;
use crate::families::text::gpt2;

pub const FAMILY: Family =
    Family { model_types: &["gpt_bigcode"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    multi_query: bool,
    scale_attn_weights: bool,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "tie_word_embeddings": true, "attention_bias": true, "mlp_bias": true,
            "multi_query": true, "scale_attn_weights": true,
            "activation_function": "gelu_pytorch_tanh",
        }),
    );
    let (mut c, e): (Text, Config) = (gpt2::read(config)?, config::read(config)?);
    c.num_key_value_heads = e.multi_query.then_some(1);
    let body = w.at("transformer");
    let decoder = gpt2::decoder(w, &body, &c, |_, w| {
        let (a, names) = (w.at("attn"), ["c_attn", "c_proj"]);
        grouped::require_biases(&a, names, &c)?;
        // The fused projection is ordered by heads, where mlx-lm expects all queries, then keys,
        // then values.
        let mut attention = Attention::fused_by_group(&a, names, c.kv_heads(), &c, Rope::None)?;
        if !e.scale_attn_weights {
            attention = attention.scale(1.0);
        }
        let names = PlainNames { up: "c_fc", down: "c_proj" };
        Ok((attention, PlainMlp::of(&w.at("mlp"), names, &c)?))
    })?;
    Ok(Box::new(gpt2::Positioned::read(&body, config, c.hidden_size, decoder)?))
}
