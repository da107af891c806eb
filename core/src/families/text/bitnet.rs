//! BitNet b1.58: Llama with ternary weights, a squared ReLU gate, and a norm before the last
//! projection of attention and MLP. Follows `bitnet` of mlx-lm.

use crate::families::prelude::*;

pub const FAMILY: Family =
    Family { model_types: &["bitnet"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let defaults = json!({"tie_word_embeddings": true, "hidden_act": "relu2"});
    let c = Text::read(&config::with_defaults(config, defaults))?;
    let rope = Rope::of(&c)?;
    Ok(Box::new(Decoder::stack(w, &c, |_, w| {
        let a = w.at("self_attn");
        let [queries, _] = c.qk_widths();
        let norm = a.rms_norm("attn_sub_norm", queries, c.rms_norm_eps)?;
        let attention = Attention::read(&a, QKVO, &c, rope.clone())?;
        let attention = attention.run_by(move |attention, x, kv, step| {
            attention.project(&norm.forward(&attention.gather(x, kv, step)?)?)
        });
        pre_norm(w, &c, attention, mlp(&w.at("mlp"), &c)?)
    })?))
}

fn mlp(w: &Scope, c: &Text) -> Result<impl Layer + 'static> {
    let read = if *c.mlp_bias { Scope::linear_with_bias } else { Scope::linear };
    let (width, inner) = (c.hidden_size, c.intermediate_size);
    let gate = read(w, "gate_proj", width, inner)?;
    let up = read(w, "up_proj", width, inner)?;
    let norm = w.rms_norm("ffn_sub_norm", inner, c.rms_norm_eps)?;
    let down = read(w, "down_proj", inner, width)?;
    let gated = gate_of(c)?;
    Ok(Map(move |x: &Array| {
        let y = gated(&gate.forward(x)?, &up.forward(x)?)?;
        down.forward(&norm.forward(&y)?)
    }))
}
