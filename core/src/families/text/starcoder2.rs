//! StarCoder 2: Llama with layer norms, an MLP without a gate, and biases everywhere. Follows
//! `starcoder2` of mlx-lm, and BigCode's code for the sliding window, `rope_scaling` and
//! the activation.

use crate::families::prelude::*;

pub const FAMILY: Family =
    Family { model_types: &["starcoder2"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "norm_epsilon": 1e-5, "vocab_size": 49152, "use_bias": true, "tie_word_embeddings": true,
            "rope_theta": 100_000.0, "hidden_act": "gelu_pytorch_tanh",
        }),
    );
    let names = [("norm_epsilon", "rms_norm_eps"), ("use_bias", "attention_bias")];
    let mut c = Text::read_renamed(config, &names)?;
    c.mlp_bias = (*c.attention_bias).into();
    let rope = Rope::of(&c)?;
    let norm = |w: &Scope, name| w.layer_norm_with_bias(name, c.hidden_size, c.rms_norm_eps);
    Ok(Box::new(Decoder::stack_under(
        w,
        &c,
        |w| norm(w, "norm"),
        |_, w| {
            let attention = Attention::read(&w.at("self_attn"), QKVO, &c, rope.clone())?;
            let names = PlainNames { up: "c_fc", down: "c_proj" };
            let mlp = PlainMlp::of(&w.at("mlp"), names, &c)?;
            // mlx-lm lets no layer slide, which is the same as long as the window is not full.
            let attention = attention.window(*c.sliding_window);
            pre_norm_under(|name| norm(w, name), TWO_NORMS, attention, mlp)
        },
    )?))
}
