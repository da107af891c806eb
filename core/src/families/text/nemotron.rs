//! Nemotron 4 and Minitron: Llama with layer norms whose weight `w` means `1 + w`, an MLP without a
//! gate and with squared ReLU, and a partial rotary embedding. Follows `nemotron` of mlx-lm, and
//! transformers for other values of `hidden_act`.

use crate::families::prelude::*;

pub const FAMILY: Family =
    Family { model_types: &["nemotron"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(config, json!({"hidden_act": "relu2"}));
    let c = Text::read_renamed(config, &[("norm_eps", "rms_norm_eps")])?;
    let rope = Rope::share(&c, 0.5)?;
    let norm =
        |w: &Scope, name| w.layer_norm_with_bias(name, c.hidden_size, c.rms_norm_eps)?.plus_one();
    Ok(Box::new(Decoder::stack_under(
        w,
        &c,
        |w| norm(w, "norm"),
        |_, w| {
            let attention = Attention::read(&w.at("self_attn"), QKVO, &c, rope.clone())?;
            let names = PlainNames { up: "up_proj", down: "down_proj" };
            let mlp = PlainMlp::of(&w.at("mlp"), names, &c)?;
            pre_norm_under(|name| norm(w, name), TWO_NORMS, attention, mlp)
        },
    )?))
}
