//! Gemma 2: Gemma with four norms a block and soft bounds for the products of queries and keys and
//! for the logits; every second layer slides. Follows `gemma2` of mlx-lm, and Gemma's authors where
//! it slides.

use super::gemma;
use crate::{
    parts::{
        attention::{join_heads, projections, split_heads},
        kv::Kv,
    },
    prelude::*,
};

pub const FAMILY: Family = Family { model_types: &["gemma2", "gemma2_text"], build };

#[derive(Deserialize)]
struct Config {
    #[serde(deserialize_with = "config::positive")]
    query_pre_attn_scalar: f32,
    #[serde(default, deserialize_with = "config::optional_positive")]
    attn_logit_softcapping: Option<f32>,
    #[serde(default, deserialize_with = "config::optional_positive")]
    final_logit_softcapping: Option<f32>,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(config, json!({
        "head_dim": 256, "tie_word_embeddings": true, "query_pre_attn_scalar": 144.0,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    }));
    let (c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    let rope = Rope::of(&c)?;
    let decoder = Decoder::stack(w, &c, |i, w| {
        let norm = |name| w.rms_norm(name, c.hidden_size, c.rms_norm_eps)?.plus_one();
        // mlx-lm lets no layer slide, which is the same as long as the window is not full.
        let window = match &c.layer_types {
            Some(_) => c.window(i)?,
            None => c.sliding_window.filter(|_| i % 2 == 0),
        };
        let attention = CappedAttention {
            projections: projections(&w.at("self_attn"), QKVO, &c)?,
            rope: rope.clone(),
            window,
            scale: e.query_pre_attn_scalar.powf(-0.5),
            softcap: e.attn_logit_softcapping,
            heads: c.num_attention_heads,
            kv_heads: c.kv_heads(),
        };
        let mlp = Mlp::read(&w.at("mlp"), GATE_UP_DOWN, &c, geglu_tanh)?;
        let (pre, post) = (norm("input_layernorm")?, norm("post_attention_layernorm")?);
        let attention = Residual::sandwich(pre, attention, post);
        let (pre, post) =
            (norm("pre_feedforward_layernorm")?, norm("post_feedforward_layernorm")?);
        Ok(Block::new((attention, Residual::sandwich(pre, mlp, post))))
    })?;
    let decoder = gemma::scaled(decoder, &c)?;
    let head = decoder.head.softcap(e.final_logit_softcapping);
    Ok(Box::new(Decoder { head, ..decoder }))
}

/// Attention whose scores are bounded before the softmax, which no kernel does.
struct CappedAttention {
    projections: [Linear; 4],
    rope: Rope,
    window: Option<i32>,
    scale: f32,
    softcap: Option<f32>,
    heads: i32,
    kv_heads: i32,
}

impl Layer for CappedAttention {
    type State = Kv;

    fn state(&self, plan: &CachePlan) -> Kv {
        Kv::new(self.window, plan)
    }

    fn forward(&self, x: &Array, kv: &mut Kv, step: &Step) -> Result<Array> {
        let [q, k, v, output] = &self.projections;
        let q = self.rope.forward(&split_heads(&q.forward(x)?, self.heads)?, step)?;
        let k = self.rope.forward(&split_heads(&k.forward(x)?, self.kv_heads)?, step)?;
        let v = split_heads(&v.forward(x)?, self.kv_heads)?;
        let seen = kv.update(k, v, step)?;
        let (keys, values, mask) = seen.parts(step)?;
        let constant = |value| mlx::scalar(value, q.dtype());
        let repeats = self.heads / self.kv_heads;
        let grouped = [q.dim(0), self.kv_heads, repeats, step.length, q.dim(3)];
        let queries = q.multiply(constant(self.scale)?)?.reshape(&grouped)?;
        let keys = keys.expand_dims(2)?.swap_axes(-1, -2)?;
        let mut scores = queries.matmul(keys)?;
        if let Some(softcap) = self.softcap {
            let cap = constant(softcap)?;
            scores = ops::tanh(&scores.divide(&cap)?)?.multiply(cap)?;
        }
        let scores = ops::select(&mask, &scores, constant(f32::NEG_INFINITY)?)?;
        let weights = ops::softmax_axis(&scores, -1, true)?;
        let mixed = weights.matmul(values.expand_dims(2)?)?.reshape(q.shape())?;
        output.forward(&join_heads(&mixed)?)
    }
}
