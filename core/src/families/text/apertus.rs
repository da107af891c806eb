//! Apertus: Qwen 3's attention and an MLP without a gate, whose activation xIELU has a learned
//! curvature in each layer. Follows `apertus` of mlx-lm.

use crate::families::prelude::*;
use crate::families::text::qwen3;

pub const FAMILY: Family =
    Family { model_types: &["apertus"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let c = Text::read(&config::with_defaults(
        config,
        json!({
            "rope_theta": 12_000_000.0,
        }),
    ))?;
    config::only(config, json!({"hidden_act": "xielu", "qk_norm": true, "post_norm": false}))?;
    let rope = Rope::of(&c)?;
    Ok(Box::new(Decoder::stack(w, &c, |_, w| {
        let attention = qwen3::attention(&w.at("self_attn"), &c, rope.clone())?;
        let mlp = curved_mlp(&w.at("mlp"), &c)?;
        let names =
            TwoNorms { before_mixer: "attention_layernorm", before_ffn: "feedforward_layernorm" };
        pre_norm_named(w, names, &c, attention, mlp)
    })?))
}

/// `down(xielu(up(x)))` ([Huang and Schlag 2024](https://arxiv.org/abs/2411.13010)).
fn curved_mlp(w: &Scope, c: &Text) -> Result<impl Layer + 'static> {
    let read = if *c.mlp_bias { Scope::linear_with_bias } else { Scope::linear };
    let act = w.at("act_fn");
    // Hugging Face checkpoints store these scalars as vectors of one element.
    let scalar = |name| -> Result<Array> {
        let vector = act.shape(name).is_some_and(|shape| shape == [1]);
        Ok(act.take(name, if vector { &[1] } else { &[] })?.reshape(&[])?)
    };
    let up = read(w, "up_proj", c.hidden_size, c.intermediate_size)?;
    let down = read(w, "down_proj", c.intermediate_size, c.hidden_size)?;
    // The curvature above and below zero, the slope at zero, and the largest argument of the
    // exponential.
    let beta = w.keep(scalar("beta")?);
    let alpha_p = w.keep(activation::softplus(&scalar("alpha_p")?)?);
    let alpha_n = w.keep(beta.add(activation::softplus(&scalar("alpha_n")?)?)?);
    let eps = w.keep(scalar("eps")?);
    Ok(Map(move |x: &Array| {
        let x = up.forward(x)?;
        let line = x.multiply(&beta)?;
        let above = alpha_p.multiply(x.square()?)?.add(&line)?;
        let bend = ops::expm1(ops::minimum(&x, &eps)?)?.subtract(&x)?;
        let below = bend.multiply(&alpha_n)?.add(&line)?;
        let positive = x.gt(mlx::scalar(0.0, x.dtype())?)?;
        down.forward(&ops::select(&positive, &above, &below)?)
    }))
}
