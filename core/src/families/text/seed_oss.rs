//! Seed-OSS: Llama with one switch for the biases of queries, keys and values and one for that of
//! the output projection. Follows `seed_oss` of mlx-lm.

use crate::families::prelude::*;
use crate::families::text::qwen2;

pub const FAMILY: Family =
    Family { model_types: &["seed_oss"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "tie_word_embeddings": true, "attention_out_bias": false,
        }),
    );
    let c = Text::read(config)?;
    if config::field(config, "attention_out_bias")? {
        let layers = body(w).0.at("layers");
        for i in 0..c.num_hidden_layers {
            layers.at(i).at("self_attn.o_proj").require("bias")?;
        }
    }
    Ok(Box::new(qwen2::decoder(w, &c)?))
}
