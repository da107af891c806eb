//! StarCoder 2: Llama with layer norms, a network without a gate, and biases everywhere. Follows
//! `starcoder2` of mlx-lm, and BigCode where it slides or stretches positions.

use crate::prelude::*;

pub const FAMILY: Family = Family { model_types: &["starcoder2"], build };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let biases = config.get("use_bias").cloned().unwrap_or(json!(true));
    let c = Text::read(&config::with_defaults(config, json!({
        "rms_norm_eps": config.get("norm_epsilon").unwrap_or(&json!(1e-5)), "vocab_size": 49152,
        "rope_parameters": {"rope_theta": 100_000.0}, "tie_word_embeddings": true,
        "attention_bias": biases, "mlp_bias": biases,
    })))?;
    let rope = Rope::of(&c)?;
    let norm = |w: &Scope, name| w.layer_norm_with_bias(name, c.hidden_size, c.rms_norm_eps);
    let decoder = Decoder::stack_under(w, &c, |w| norm(w, "norm"), |_, w| {
        let attention = Attention::read(&w.at("self_attn"), QKVO, &c, rope.clone())?;
        let mlp = PlainMlp::read(&w.at("mlp"), ["c_fc", "c_proj"], &c, gelu)?;
        // mlx-lm lets no layer slide, which is the same as long as the window is not full.
        Ok(Block::new((
            Residual::pre(norm(w, "input_layernorm")?, attention.window(c.sliding_window)),
            Residual::pre(norm(w, "post_attention_layernorm")?, mlp),
        )))
    })?;
    Ok(Box::new(decoder))
}
