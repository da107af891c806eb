//! Talkie: norms without weights, learned gains instead (of heads, branches and the head), rotary
//! positions that turn backwards, and the embedding added again after every block. Follows `talkie`
//! of mlx-lm.

use crate::{
    model::{Cache, Embedded},
    parts::{
        attention::{join_heads, split_heads},
        kv::Kv,
        rope::wavelengths,
    },
    prelude::*,
};

pub const FAMILY: Family = Family { model_types: &["talkie"], build };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let c = Text::read(&config::with_defaults(config, json!({
        "hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40, "head_dim": 128,
        "intermediate_size": 13696, "vocab_size": 65540, "rope_theta": 1e6,
        "rms_norm_eps": f32::EPSILON,
    })))?;
    // Tables of rotations, which follow from the config.
    w.ignore_named(&["cos", "sin"]);
    let body = w.at("model");
    let norm = || Norm::Rms { weight: None, eps: c.rms_norm_eps };
    let (mut blocks, mut skips) = (Vec::new(), Vec::new());
    for i in 0..c.num_hidden_layers {
        let w = body.at("blocks").at(i);
        let gain = |name| w.at(name).tensor("a_g", &[1]);
        let names = ["mlp_gate", "mlp_linear", "mlp_resid"];
        let mlp = Mlp::read(&w.at("mlp"), names, &c, swiglu)?;
        blocks.push(Block::new((
            Residual::pre(norm(), Gain(HeadGain::read(&w.at("attn"), &c)?, gain("attn_gain")?)),
            Residual::pre(norm(), Gain(mlp, gain("mlp_gain")?)),
        )));
        skips.push(gain("embed_skip")?);
    }
    let head = w.tensor("lm_head", &[c.vocab_size, c.hidden_size])?;
    Ok(Box::new(Talkie {
        decoder: Decoder {
            embedding: body.embedding("embed", c.vocab_size, c.hidden_size)?,
            embedding_scale: None,
            blocks,
            norm: norm(),
            head: Head::new(Some(Linear::new(Matrix::Dense(head), None))),
        },
        skips,
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

/// Attention that gives each head's queries a factor after their norm.
struct HeadGain {
    projections: [Linear; 4],
    gain: Array,
    norm: Norm,
    rope: Rope,
    heads: i32,
    scores: Scores,
}

impl HeadGain {
    fn read(w: &Scope, c: &Text) -> Result<Self> {
        let (width, heads, dims) = (c.hidden_size, c.num_attention_heads, c.head_dim());
        // Checks the width of a head.
        Rope::of(c)?;
        let wavelengths = wavelengths(dims, c.rope_theta())?.negative()?;
        let all = heads * dims;
        Ok(HeadGain {
            projections: [
                w.linear("attn_query", width, all)?,
                w.linear("attn_key", width, all)?,
                w.linear("attn_value", width, all)?,
                w.linear("attn_resid", all, width)?,
            ],
            gain: w.at("head_gain").tensor("head_g", &[heads])?,
            norm: Norm::Rms { weight: None, eps: c.rms_norm_eps },
            rope: Rope::Frequencies { dims, traditional: false, wavelengths, magnitude: 1.0 },
            heads,
            scores: Scores { scale: (dims as f32).powf(-0.5), sinks: None },
        })
    }
}

impl Layer for HeadGain {
    type State = Kv;

    fn state(&self, plan: &CachePlan) -> Kv {
        Kv::new(None, plan)
    }

    fn forward(&self, x: &Array, kv: &mut Kv, step: &Step) -> Result<Array> {
        let [q, k, v, output] = &self.projections;
        let split = |projection: &Linear| split_heads(&projection.forward(x)?, self.heads);
        let normalised = |x| self.norm.forward(&self.rope.forward(&x, step)?);
        let gain = self.gain.as_dtype(x.dtype())?.reshape(&[1, self.heads, 1, 1])?;
        let (q, k) = (normalised(split(q)?)?.multiply(gain)?, normalised(split(k)?)?);
        output.forward(&join_heads(&kv.attend(&q, k, split(v)?, &self.scores, step)?)?)
    }
}

struct Talkie {
    decoder: Decoder,
    /// How much of the embedding each block adds.
    skips: Vec<Array>,
    head_gain: Array,
}

impl Wrapper for Talkie {
    fn inner(&self) -> &dyn LanguageModel {
        &self.decoder
    }

    fn embed(&self, ids: &Array) -> Result<Embedded> {
        let Embedded { ids, hidden } = self.decoder.embed(ids)?;
        Ok(Embedded { ids, hidden: self.decoder.norm.forward(&hidden)? })
    }

    fn forward(&self, x: &Embedded, cache: &mut Cache, step: &Step) -> Result<Array> {
        let mut h = x.hidden.clone();
        let blocks = self.decoder.blocks.iter().zip(&self.skips);
        for ((block, skip), state) in blocks.zip(&mut cache.states) {
            h = block.forward(&h, &mut **state, step)?;
            h = h.add(x.hidden.multiply(skip.as_dtype(h.dtype())?)?)?;
        }
        self.decoder.norm.forward(&h)
    }

    fn logits(&self, hidden: &Array) -> Result<Array> {
        let logits = self.decoder.logits(hidden)?;
        Ok(logits.multiply(self.head_gain.as_dtype(logits.dtype())?)?)
    }
}
