//! Qwen 2 and 2.5: Llama with biases on queries, keys and values. Follows `qwen2` of mlx-lm, which
//! has no windows.

use crate::prelude::*;

pub const FAMILY: Family = Family { model_types: &["qwen2", "acereason"], build };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let mut c = Text::read(&config::with_defaults(config, json!({
        "tie_word_embeddings": true, "rope_parameters": {"rope_theta": 1e6},
    })))?;
    c.attention_bias = true;
    Ok(Box::new(decoder(w, &c)?))
}

pub fn decoder(w: &Scope, c: &Text) -> Result<Decoder> {
    let rope = Rope::of(c)?;
    Decoder::stack(w, c, |_, w| {
        let mlp = Mlp::read(&w.at("mlp"), GATE_UP_DOWN, c, swiglu)?;
        pre_norm(w, c, attention(&w.at("self_attn"), c, rope.clone())?, mlp)
    })
}

/// Attention whose output does without a bias, whatever queries, keys and values need.
pub fn attention(w: &Scope, c: &Text, rope: Rope) -> Result<Attention> {
    let read = if c.attention_bias { Scope::linear_with_bias } else { Scope::linear };
    let width = c.hidden_size;
    let [queries, keys] = [c.num_attention_heads, c.kv_heads()].map(|heads| heads * c.head_dim());
    let projections = [
        read(w, "q_proj", width, queries)?,
        read(w, "k_proj", width, keys)?,
        read(w, "v_proj", width, keys)?,
        w.linear("o_proj", queries, width)?,
    ];
    Ok(Attention::new(projections, c, rope))
}
