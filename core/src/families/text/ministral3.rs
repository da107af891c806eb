//! Ministral 3: Llama whose queries grow with the logarithm of their position, in steps of the
//! context of the first training. Follows `ministral3` of mlx-lm.

use super::qwen2;
use crate::{
    parts::{
        attention::{join_heads, split_heads},
        kv::Kv,
    },
    prelude::*,
};

pub const FAMILY: Family = Family { model_types: &["ministral3"], build };

#[derive(Deserialize)]
struct Config {
    rope_parameters: Growth,
}

/// How queries grow with their positions.
#[derive(Clone, Copy, Deserialize)]
pub struct Growth {
    #[serde(rename = "llama_4_scaling_beta")]
    beta: f32,
    #[serde(deserialize_with = "config::positive")]
    original_max_position_embeddings: f32,
}

impl Growth {
    pub fn read(config: &Json) -> Result<Self> {
        Ok(config::read::<Config>(config)?.rope_parameters)
    }

    /// `1 + beta · ln(1 + ⌊position / context⌋)`, `[length, 1]`.
    pub fn factor(&self, step: &Step) -> Result<Array> {
        let one = Array::from_f32(1.0);
        let context = Array::from_f32(self.original_max_position_embeddings);
        let positions = ops::arange::<_, i32>(0, step.length, None)?.add(&step.position)?;
        let steps = positions.divide(context)?.floor()?;
        let growth = steps.add(&one)?.log()?.multiply(Array::from_f32(self.beta))?;
        Ok(growth.add(one)?.expand_dims(-1)?)
    }
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    Ok(Box::new(decoder(&config::with_defaults(config, json!({"tie_word_embeddings": true})), w)?))
}

pub fn decoder(config: &Json, w: &Scope) -> Result<Decoder> {
    let (c, growth) = (Text::read(config)?, Growth::read(config)?);
    let rope = Rope::of(&c)?;
    Decoder::stack(w, &c, |i, w| {
        let attention = GrowingQueries {
            projections: qwen2::projections(&w.at("self_attn"), &c)?,
            rope: rope.clone(),
            scores: Scores { scale: (c.head_dim() as f32).powf(-0.5), sinks: None },
            window: c.window(i)?,
            heads: (c.num_attention_heads, c.kv_heads()),
            growth,
        };
        pre_norm(w, &c, attention, Mlp::read(&w.at("mlp"), GATE_UP_DOWN, &c, swiglu)?)
    })
}

struct GrowingQueries {
    projections: [Linear; 4],
    rope: Rope,
    scores: Scores,
    window: Option<i32>,
    /// Of queries, and of keys and values.
    heads: (i32, i32),
    growth: Growth,
}

impl Layer for GrowingQueries {
    type State = Kv;

    fn state(&self, plan: &CachePlan) -> Kv {
        Kv::new(self.window, plan)
    }

    fn forward(&self, x: &Array, kv: &mut Kv, step: &Step) -> Result<Array> {
        let ([q, k, v, output], (heads, kv_heads)) = (&self.projections, self.heads);
        let split = |projection: &Linear, heads| split_heads(&projection.forward(x)?, heads);
        let q = self.rope.forward(&split(q, heads)?, step)?;
        let k = self.rope.forward(&split(k, kv_heads)?, step)?;
        let q = q.multiply(self.growth.factor(step)?.as_dtype(x.dtype())?)?;
        let seen = kv.attend(&q, k, split(v, kv_heads)?, &self.scores, step)?;
        output.forward(&join_heads(&seen)?)
    }
}
