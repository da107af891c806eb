//! Nemotron 4 and Minitron: Llama with layer norms whose weight `w` means `1 + w`, an MLP without a
//! gate and with squared ReLU, and a partial rotary embedding. Follows `nemotron` of mlx-lm, and
//! transformers for other values of `hidden_act`.

use crate::families::prelude::*;

pub const FAMILY: Family =
    Family { model_types: &["nemotron"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let c = Text::read_renamed(config, &[("norm_eps", "rms_norm_eps")])?;
    let act = activation::named("hidden_act", c.hidden_act.as_deref().unwrap_or("relu2"))?;
    let rope = Rope::share(&c, 0.5)?;
    let norm =
        |w: &Scope, name| w.layer_norm_with_bias(name, c.hidden_size, c.rms_norm_eps)?.plus_one();
    Ok(Box::new(Decoder::stack_under(
        w,
        &c,
        |w| norm(w, "norm"),
        |_, w| {
            let attention = Attention::read(&w.at("self_attn"), QKVO, &c, rope.clone())?;
            let mlp = PlainMlp::read(
                &w.at("mlp"),
                PlainNames { up: "up_proj", down: "down_proj" },
                &c,
                act,
            )?;
            pre_norm_under(|name| norm(w, name), TWO_NORMS, attention, mlp)
        },
    )?))
}
