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
    let norm = |w: &Scope, name| w.layer_norm_with_bias(name, width, c.rms_norm_eps);
    let body = w.at("transformer");
    let block = |i| {
        let w = body.at("h").at(i);
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
        let mlp = PlainMlp::read(&w.at("mlp"), ["c_fc", "c_proj"], &c, gelu)?;
        let (pre, post) = (norm(&w, "ln_1")?, norm(&w, "ln_2")?);
        Ok(Block::new((Residual::pre(pre, attention), Residual::pre(post, mlp))))
    };
    let decoder = Decoder {
        embedding: body.embedding("wte", c.vocab_size, width)?,
        embedding_scale: None,
        blocks: (0..c.num_hidden_layers).map(block).collect::<Result<_>>()?,
        norm: norm(&body, "ln_f")?,
        head: Head::read(w, c.tie_word_embeddings, width, c.vocab_size)?,
    };
    Ok(Box::new(gpt2::Positioned::read(&body, config, width, decoder)?))
}
