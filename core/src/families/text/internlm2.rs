//! InternLM 2 and 2.5: Llama under other names; queries, keys and values are one matrix, in which
//! each group of queries stands before its key and its value. Follows `internlm2` of mlx-lm.

use crate::prelude::*;

pub const FAMILY: Family = Family { model_types: &["internlm2"], build };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(config, json!({
        "tie_word_embeddings": false, "bias": true, "max_position_embeddings": 32768,
    }));
    let mut c = Text::read_renamed(config, &[("bias", "attention_bias")])?;
    // Feed-forward networks have no biases, whatever the config says.
    c.mlp_bias = false;
    let rope = Rope::of(&c)?;
    let names = ["tok_embeddings", "layers", "norm"];
    let head = Head::named(w, "output", c.tie_word_embeddings, c.hidden_size, c.vocab_size)?;
    Ok(Box::new(Decoder::named(&w.at("model"), names, &c, head, |_, w| {
        let attention = attention(&w.at("attention"), &c, rope.clone())?;
        let mlp = Mlp::of(&w.at("feed_forward"), ["w1", "w3", "w2"], &c)?;
        pre_norm_named(w, ["attention_norm", "ffn_norm"], &c, attention, mlp)
    })?))
}

fn attention(w: &Scope, c: &Text, rope: Rope) -> Result<Attention> {
    if c.attention_bias {
        w.at("wqkv").require("bias")?;
        w.at("wo").require("bias")?;
    }
    let (groups, head_dim) = (c.kv_heads(), c.head_dim());
    let outputs = [c.num_attention_heads / groups * head_dim, head_dim, head_dim];
    let [q, k, v] = w.fused_by_group("wqkv", c.hidden_size, groups, outputs)?;
    let output = w.linear("wo", c.num_attention_heads * head_dim, c.hidden_size)?;
    Ok(Attention::new([q, k, v, output], c, rope))
}
