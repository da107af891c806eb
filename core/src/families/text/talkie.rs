//! Talkie: nanochat's weightless norms and rotary embedding in the opposite direction, with learned
//! gains of heads, branches and output head, and the embedding added again after every block.
//! Follows `talkie` of mlx-lm.

use crate::families::prelude::*;
use crate::families::text::nanochat::{Normed, backwards};

pub const FAMILY: Family =
    Family { model_types: &["talkie"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let c = Text::read(&config::with_defaults(
        config,
        json!({
            "hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40, "head_dim": 128,
            "intermediate_size": 13696, "vocab_size": 65540, "rope_theta": 1e6,
            "rms_norm_eps": f32::EPSILON,
        }),
    ))?;
    // The tables of rotary frequencies follow from the config.
    w.ignore_named(&["cos", "sin"]);
    let body = w.at("model");
    let norm = || Norm::Rms { weight: None, eps: c.rms_norm_eps };
    let rope = backwards(&c)?;
    let block = |_, w: &Scope| {
        let gain = |name| w.at(name).tensor("a_g", &[1]);
        let names = ["attn_query", "attn_key", "attn_value", "attn_resid"];
        let a = w.at("attn");
        let head_gain = a.at("head_gain").tensor("head_g", &[c.num_attention_heads])?;
        let attention = Attention::read(&a, names, &c, rope.clone())?
            .qk_norm(QkNorm::AfterRope(norm(), norm()))
            .queries(move |q, _| {
                Ok(q.multiply(head_gain.as_dtype(q.dtype())?.reshape(&[1, -1, 1, 1])?)?)
            });
        let names = MlpNames { gate: "mlp_gate", up: "mlp_linear", down: "mlp_resid" };
        let mlp = Mlp::of(&w.at("mlp"), names, &c)?;
        Ok(Block::new((
            Residual::pre(norm(), Gain(attention, gain("attn_gain")?)),
            Residual::pre(norm(), Gain(mlp, gain("mlp_gain")?)),
        )))
    };
    let skip = |i| body.at("blocks").at(i).at("embed_skip").tensor("a_g", &[1]);
    let head = w.tensor("lm_head", &[c.vocab_size, c.hidden_size])?;
    let head = Head::new(Some(Linear::new(Matrix::Dense(head), None)));
    let ends = Ends { norm: norm(), head };
    let names = Names { embedding: "embed", layers: "blocks", ..Names::default() };
    let decoder = Decoder::assemble(&body, names, &c, ends, block)?;
    Ok(Box::new(Talkie {
        inner: Normed { norm: norm(), decoder },
        skips: (0..c.num_hidden_layers).map(skip).collect::<Result<_>>()?,
        head_gain: w.at("lm_head_gain").tensor("w_g", &[1])?,
    }))
}

/// A branch and its factor.
struct Gain<L>(L, Array);

impl<L: Layer> Layer for Gain<L> {
    type State = L::State;

    fn state(&self, plan: &CachePlan) -> L::State {
        self.0.state(plan)
    }

    fn forward(&self, x: &Array, state: &mut L::State, step: &Step) -> Result<Array> {
        Ok(self.0.forward(x, state, step)?.multiply(self.1.as_dtype(x.dtype())?)?)
    }
}

struct Talkie {
    inner: Normed,
    /// The factor of the embedding that each block adds.
    skips: Vec<Array>,
    head_gain: Array,
}

impl Wrapper for Talkie {
    fn inner(&self) -> &dyn LanguageModel {
        &self.inner
    }

    fn forward(&self, x: &Embedded, cache: &mut Cache, step: &Step) -> Result<Array> {
        let mut h = x.hidden.clone();
        let blocks = self.inner.decoder.blocks.iter().zip(&self.skips);
        for ((block, skip), state) in blocks.zip(&mut cache.states) {
            h = block.forward(&h, &mut **state, step)?;
            h = h.add(x.hidden.multiply(skip.as_dtype(h.dtype())?)?)?;
        }
        self.inner.norm.forward(&h)
    }

    fn logits(&self, hidden: &Array) -> Result<Array> {
        let logits = self.inner.decoder.logits(hidden)?;
        Ok(logits.multiply(self.head_gain.as_dtype(logits.dtype())?)?)
    }
}
