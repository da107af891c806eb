//! InternLM 3: Llama with one switch for the biases of attention and one for the others. Follows
//! `internlm3` of mlx-lm, and InternLM's own code where the output projection has no bias.

use crate::families::prelude::*;
use crate::families::text::qwen2;

pub const FAMILY: Family =
    Family { model_types: &["internlm3"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "tie_word_embeddings": false, "max_position_embeddings": 32768,
        }),
    );
    let c = Text::read_renamed(config, &[("qkv_bias", "attention_bias"), ("bias", "mlp_bias")])?;
    Ok(Box::new(qwen2::decoder(w, &c)?))
}
