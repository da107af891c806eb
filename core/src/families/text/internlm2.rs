//! InternLM 2 and 2.5: Llama with other tensor names and a fused QKV projection, in which each
//! group of query heads precedes its key and value heads. Follows `internlm2` of mlx-lm.

use crate::families::prelude::*;

pub const FAMILY: Family =
    Family { model_types: &["internlm2"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "tie_word_embeddings": false, "bias": true, "max_position_embeddings": 32768,
        }),
    );
    let mut c = Text::read_renamed(config, &[("bias", "attention_bias")])?;
    // The MLP has no biases, whatever the config says.
    c.mlp_bias = false.into();
    let rope = Rope::of(&c)?;
    let names = Names { embedding: "tok_embeddings", ..Names::default() };
    let head = Head::named(w, "output", c.tie_word_embeddings, c.hidden_size, c.vocab_size)?;
    Ok(Box::new(Decoder::named(&w.at("model"), names, &c, head, |_, w| {
        let (a, names) = (w.at("attention"), ["wqkv", "wo"]);
        grouped::require_biases(&a, names, &c)?;
        let attention = Attention::fused_by_group(&a, names, c.kv_heads(), &c, rope.clone())?;
        let mlp =
            Mlp::of(&w.at("feed_forward"), W1_W3_W2, &c)?;
        pre_norm_named(
            w,
            TwoNorms { before_mixer: "attention_norm", before_ffn: "ffn_norm" },
            &c,
            attention,
            mlp,
        )
    })?))
}
