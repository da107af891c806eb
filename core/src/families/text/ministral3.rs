//! Ministral 3: Llama whose queries are scaled with the logarithm of their position, in steps of
//! the original context length. Follows `ministral3` of mlx-lm.

use crate::families::prelude::*;
use crate::families::text::{llama, qwen2};

pub const FAMILY: Family =
    Family { model_types: &["ministral3"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    rope_parameters: Growth,
}

/// The scaling of queries by position.
#[derive(Clone, Copy, Deserialize)]
pub struct Growth {
    #[serde(rename = "llama_4_scaling_beta")]
    beta: f32,
    original_max_position_embeddings: Positive,
}

impl Growth {
    pub fn read(config: &Json) -> Result<Self> {
        Ok(config::read::<Config>(config)?.rope_parameters)
    }

    /// `1 + beta · ln(1 + ⌊position / context⌋)`, `[length, 1]` or `[batch, 1, length, 1]`.
    pub fn factor(&self, step: &Step) -> Result<Array> {
        let one = Array::from_f32(1.0);
        let context = Array::from_f32(*self.original_max_position_embeddings);
        let steps = step.positions_of_heads()?.divide(context)?.floor()?;
        let growth = steps.add(&one)?.log()?.multiply(Array::from_f32(self.beta))?;
        Ok(growth.add(one)?.expand_dims(-1)?)
    }
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    Ok(Box::new(decoder(&config::with_defaults(config, json!({"tie_word_embeddings": true})), w)?))
}

pub fn decoder(config: &Json, w: &Scope) -> Result<Decoder> {
    let (c, growth) = (llama::all_sliding(Text::read(config)?), Growth::read(config)?);
    let rope = Rope::of(&c)?;
    Decoder::stack(w, &c, |i, w| {
        let attention = qwen2::attention(&w.at("self_attn"), &c, rope.clone())?
            .window(c.window(i)?)
            .queries(move |q, step| Ok(q.multiply(growth.factor(step)?.as_dtype(q.dtype())?)?));
        pre_norm(w, &c, attention, Mlp::of(&w.at("mlp"), GATE_UP_DOWN, &c)?)
    })
}
