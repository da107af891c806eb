//! Apertus: Qwen 3's attention and a network without a gate, whose activation, xIELU, learns its
//! curvature in each layer. Follows `apertus` of mlx-lm.

use super::qwen3;
use crate::prelude::*;

pub const FAMILY: Family = Family { model_types: &["apertus"], build };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let c = Text::read(&config::with_defaults(config, json!({
        "rope_parameters": {"rope_theta": 12_000_000.0},
    })))?;
    let rope = Rope::of(&c)?;
    let decoder = Decoder::stack(w, &c, |_, w| {
        let attention = qwen3::attention(&w.at("self_attn"), &c, rope.clone())?;
        let mlp = CurvedMlp::read(&w.at("mlp"), &c)?;
        let names = ["attention_layernorm", "feedforward_layernorm"];
        pre_norm_named(w, names, &c, attention, mlp)
    })?;
    Ok(Box::new(decoder))
}

/// `down(xielu(up(x)))` ([Huang and Schlag 2024](https://arxiv.org/abs/2411.13010)).
struct CurvedMlp {
    up: Linear,
    down: Linear,
    /// Curvature above and below zero, slope at zero, and the largest argument of the exponential.
    alpha_p: Array,
    alpha_n: Array,
    beta: Array,
    eps: Array,
}

impl CurvedMlp {
    fn read(w: &Scope, c: &Text) -> Result<Self> {
        let read = if c.mlp_bias { Scope::linear_with_bias } else { Scope::linear };
        let act = w.at("act_fn");
        // Hugging Face files hold vectors of one element.
        let scalar = |name| -> Result<Array> {
            let vector = act.shape(name).is_some_and(|shape| shape == [1]);
            Ok(act.take(name, if vector { &[1] } else { &[] })?.reshape(&[])?)
        };
        let softplus = |x: Array| -> Result<Array> {
            Ok(ops::logaddexp(&x, mlx::scalar(0.0, x.dtype())?)?)
        };
        let beta = scalar("beta")?;
        Ok(CurvedMlp {
            up: read(w, "up_proj", c.hidden_size, c.intermediate_size)?,
            down: read(w, "down_proj", c.intermediate_size, c.hidden_size)?,
            alpha_p: w.keep(softplus(scalar("alpha_p")?)?),
            alpha_n: w.keep(beta.add(softplus(scalar("alpha_n")?)?)?),
            beta: w.keep(beta),
            eps: w.keep(scalar("eps")?),
        })
    }
}

impl Layer for CurvedMlp {
    type State = ();

    fn state(&self, _: &CachePlan) {}

    fn forward(&self, x: &Array, (): &mut (), _: &Step) -> Result<Array> {
        let x = self.up.forward(x)?;
        let line = x.multiply(&self.beta)?;
        let above = self.alpha_p.multiply(x.square()?)?.add(&line)?;
        let bend = ops::expm1(ops::minimum(&x, &self.eps)?)?.subtract(&x)?;
        let below = bend.multiply(&self.alpha_n)?.add(&line)?;
        let positive = x.gt(mlx::scalar(0.0, x.dtype())?)?;
        self.down.forward(&ops::select(&positive, &above, &below)?)
    }
}
