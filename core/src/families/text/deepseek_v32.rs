//! DeepSeek V3.2: V3 whose tokens attend to a limited number of tokens, which an indexer, a small
//! attention of its own, chooses. Follows `deepseek_v32` of mlx-lm.

use super::deepseek_v3::{Config, router};
use crate::{
    parts::{attention::split_heads, kv::Kv, latent::Projected, router::top_k},
    prelude::*,
};
use mlx_rs::ops::indexing::take_along_axis;

pub const FAMILY: Family =
    Family { model_types: &["deepseek_v32", "deepseek_v3.2"], build };

#[derive(Deserialize)]
struct IndexerConfig {
    #[serde(deserialize_with = "config::size")]
    index_head_dim: i32,
    #[serde(deserialize_with = "config::size")]
    index_n_heads: i32,
    #[serde(deserialize_with = "config::size")]
    index_topk: i32,
    indexer_rope_interleave: bool,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    Ok(Box::new(decoder(config, w, |_| true)?))
}

/// The stack, whose layers choose for themselves where `chooses` says so, and otherwise attend to
/// what an earlier one has chosen.
pub fn decoder(config: &Json, w: &Scope, chooses: impl Fn(i32) -> bool) -> Result<Decoder> {
    let config = &config::with_defaults(config, json!({
        "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "qk_nope_head_dim": 128, "rms_norm_eps": 1e-6, "max_position_embeddings": 2048,
        "tie_word_embeddings": false,
        "norm_topk_prob": true, "routed_scaling_factor": 1.0, "num_experts_per_tok": 1,
        "index_head_dim": 128, "index_n_heads": 64, "index_topk": 2048,
        "indexer_rope_interleave": false,
    }));
    let (c, e): (_, IndexerConfig) = (Config::read(config)?, config::read(config)?);
    let rope = c.latent.rope(&c.text)?;
    let attention = |i, w: &Scope| {
        let indexer = w.at("indexer");
        if !chooses(i) {
            // It goes without use where it is there.
            w.ignore("indexer");
        }
        Ok(SparseMla {
            // The norms of low ranks have an epsilon of their own.
            mla: Mla::read(w, &c.text, &c.latent, 1e-6, rope.clone())?,
            indexer: chooses(i).then(|| Indexer::read(&indexer, &c, &e)).transpose()?,
        })
    };
    c.decoder(w, attention, |w| router(w, &c.text, config))
}

struct SparseMla {
    mla: Mla,
    indexer: Option<Indexer>,
}

impl Layer for SparseMla {
    type State = (Kv, Kv);

    fn state(&self, plan: &CachePlan) -> (Kv, Kv) {
        (self.mla.state(plan), Kv::of_indexer(plan))
    }

    fn forward(&self, x: &Array, (kv, index): &mut (Kv, Kv), step: &Step) -> Result<Array> {
        let projected = self.mla.project(x)?;
        let rotated = self.mla.rotate(&projected, step)?;
        let latent = projected.latent.expand_dims(1)?;
        let seen = kv.update(latent, rotated.k_rope.clone(), step)?;
        let (mut latents, mut k_rope, mut mask) = seen.parts(step)?;
        if let Some(indexer) = &self.indexer {
            step.lend_choice(indexer.choose(x, &projected, index, step)?);
        }
        let Some(choice) = step.choice() else {
            return self.mla.attend_to(&rotated, [&latents, &k_rope], &mask);
        };
        let (batch, keys) = (x.dim(0), latents.dim(2));
        let all = ops::broadcast_to(&mask, &[batch, 1, step.length, keys])?;
        if step.length == 1 {
            let ids = choice.swap_axes(-1, -2)?;
            let gather = |x: &Array| -> Result<Array> {
                let ids = ops::broadcast_to(&ids, &[batch, 1, ids.dim(2), x.dim(3)])?;
                Ok(take_along_axis(x, &ids, 2)?)
            };
            (latents, k_rope) = (gather(&latents)?, gather(&k_rope)?);
            mask = take_along_axis(&all, &choice, -1)?;
        } else {
            let none = ops::zeros_like(&all)?;
            mask = none.put_along_axis(&choice, Array::from_bool(true), -1)?.logical_and(all)?;
        }
        self.mla.attend_to(&rotated, [&latents, &k_rope], &mask)
    }
}

/// Scores keys by a weighted sum over heads of what is positive in their products with queries.
struct Indexer {
    q: Linear,
    k: Linear,
    k_norm: Norm,
    weights: Linear,
    rope: Rope,
    heads: i32,
    scale: f32,
    top_k: i32,
}

impl Indexer {
    fn read(w: &Scope, c: &Config, e: &IndexerConfig) -> Result<Self> {
        let (text, rope_width) = (&c.text, c.latent.qk_rope_head_dim);
        let (heads, head_dim, width) = (e.index_n_heads, e.index_head_dim, text.hidden_size);
        let rank = c.latent.q_lora_rank;
        let rank = rank.ok_or_else(|| Error::config("q_lora_rank", "missing for the indexer"))?;
        if head_dim < rope_width {
            let reason = format!("{head_dim} elements, of which {rope_width} are rotated");
            return Err(Error::config("index_head_dim", reason));
        }
        let (interleave, context) = (e.indexer_rope_interleave, text.max_position_embeddings);
        let (base, scaling) = (text.rope_theta(), text.rope_scaling());
        let queries = config::product("index_head_dim", [heads, head_dim])?;
        Ok(Indexer {
            q: w.linear("wq_b", rank, queries)?,
            k: w.linear("wk", width, head_dim)?,
            k_norm: w.layer_norm_with_bias("k_norm", head_dim, 1e-5)?,
            weights: w.linear("weights_proj", width, heads)?,
            rope: Rope::scaled(rope_width, base, interleave, scaling, context)?,
            heads,
            scale: ((heads as f32) * (head_dim as f32)).powf(-0.5),
            top_k: e.index_topk,
        })
    }

    /// Remembers keys of its own. The ids of the keys that each token attends to, `[batch, 1, length, index_topk]`; nothing
    /// when there are no more than these.
    fn choose(
        &self,
        x: &Array,
        projected: &Projected,
        kv: &mut Kv,
        step: &Step,
    ) -> Result<Option<Array>> {
        let k = self.k_norm.forward(&self.k.forward(x)?)?.expand_dims(1)?;
        let seen = kv.update_keys(self.rope.forward(&k, step)?, step)?;
        let (keys, mask) = seen.keys(step)?;
        if keys.dim(2) <= self.top_k {
            return Ok(None);
        }
        let q = split_heads(&self.q.forward(&projected.q_source)?, self.heads)?;
        let q = self.rope.forward(&q, step)?;
        let weights = self.weights.forward(x)?;
        let weights = weights.multiply(mlx::scalar(self.scale, weights.dtype())?)?;
        let weights = weights.swap_axes(-1, -2)?.expand_dims(-1)?;
        let keys = keys.swap_axes(-1, -2)?;
        let weigh = |q: &Array, weights: &Array| -> Result<Array> {
            let scores = q.matmul(&keys)?;
            let positive = ops::maximum(&scores, mlx::scalar(0.0, scores.dtype())?)?;
            Ok(positive.multiply(weights)?)
        };
        let scores = if step.length == 1 {
            weigh(&q, &weights)?.sum_axis(1, true)?
        } else {
            // The scores of all heads together would take too much memory.
            let head = |i| weigh(&mlx::slice(&q, 1, i, i + 1)?, &mlx::slice(&weights, 1, i, i + 1)?);
            let add = |sum: Array, i| -> Result<Array> { Ok(sum.add(head(i)?)?) };
            (1..self.heads).try_fold(head(0)?, add)?
        };
        let never = mlx::scalar(f32::NEG_INFINITY, scores.dtype())?;
        Ok(Some(top_k(&ops::select(&mask, scores, never)?, self.top_k)?))
    }
}
