//! Mistral 4: DeepSeek V3 with Ministral 3's scaled queries and a router whose weights sum to one.
//! Follows `mistral4` of mlx-lm, and Mistral's own code, as in transformers, for the defaults of
//! `rope_parameters`.

use crate::families::prelude::*;
use crate::families::text::{deepseek_v3::Config, ministral3::Growth};

pub const FAMILY: Family =
    Family { model_types: &["mistral4"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    Ok(Box::new(decoder(config, w)?))
}

pub fn decoder(config: &Json, w: &Scope) -> Result<Decoder> {
    let config = &config::with_defaults(
        config,
        json!({
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 128.0,
                "original_max_position_embeddings": 8192, "beta_fast": 32.0, "beta_slow": 1.0,
                "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
            },
            "tie_word_embeddings": false,
        }),
    );
    let (c, growth) = (Config::read(config)?, Growth::read(config)?);
    let rope = c.latent.rope(&c.text)?;
    // The norms of the low-rank projections have an epsilon of their own.
    let attention = |_, w: &Scope| {
        Ok(GrowingMla { mla: Mla::read(w, &c.text, &c.latent, 1e-6, rope.clone())?, growth })
    };
    let routing: LossFreeRouting = config::read(config)?;
    c.decoder(w, attention, |w| {
        let logits = w.linear("gate", c.text.hidden_size, routing.n_routed_experts)?;
        let router = LossFreeRouter::new(logits, None, &routing)?.scores(router::softmax);
        Ok(if routing.norm_topk_prob { router.normalized() } else { router })
    })
}

struct GrowingMla {
    mla: Mla,
    growth: Growth,
}

impl Layer for GrowingMla {
    type State = KvCache;

    fn state(&self, plan: &CachePlan) -> KvCache {
        self.mla.state(plan)
    }

    fn forward(&self, x: &Array, kv: &mut KvCache, step: &Step) -> Result<Array> {
        let projected = self.mla.project(x)?;
        let mut rotated = self.mla.rotate(&projected, step)?;
        let factor = self.growth.factor(step)?.as_dtype(x.dtype())?;
        rotated.q_nope = rotated.q_nope.multiply(&factor)?;
        rotated.q_rope = rotated.q_rope.multiply(factor)?;
        self.mla.attend(&projected, &rotated, kv, step)
    }
}
