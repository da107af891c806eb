//! Nanbeige: Llama whose whole stack runs several times, each time with its own KV caches. Follows
//! `nanbeige` of mlx-lm.

use crate::families::prelude::*;
use crate::families::text::llama;

pub const FAMILY: Family =
    Family { model_types: &["nanbeige"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    num_loops: Size,
    loop_loss_weights: Option<Vec<f32>>,
    skip_loop_final_norm: bool,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "tie_word_embeddings": false, "num_loops": 1, "skip_loop_final_norm": false,
        }),
    );
    config::only(
        config,
        json!({
            "enable_double_loop_split": false, "loop_share_kv": false, "enable_depth_attention": false,
        }),
    )?;
    let (c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    // Training weighs the loss of each loop after the first; inference does not use this field.
    let loops = match &e.loop_loss_weights {
        Some(weights) if !weights.is_empty() => weights.len() + 1,
        _ => *e.num_loops as usize,
    };
    if loops > MOST_LOOPS {
        return Err(Error::config("num_loops", format!("{loops} are more than {MOST_LOOPS}")));
    }
    let decoder = llama::decoder(w, &c)?;
    Ok(Box::new(Looped { decoder, loops, norm_between: !e.skip_loop_final_norm }))
}

/// A limit, so that a number in a config cannot allocate caches of any size.
const MOST_LOOPS: usize = 64;

struct Looped {
    decoder: Decoder,
    loops: usize,
    norm_between: bool,
}

impl Wrapper for Looped {
    fn inner(&self) -> &dyn LanguageModel {
        &self.decoder
    }

    fn cache(&self, plan: &CachePlan) -> Cache {
        let loops = (0..self.loops).flat_map(|_| self.decoder.cache(plan).states);
        Cache::new(loops.collect(), plan)
    }

    fn forward(&self, x: &Embedded, cache: &mut Cache, step: &Step) -> Result<Array> {
        let (mut h, blocks) = (x.hidden.clone(), &self.decoder.blocks);
        for (i, states) in cache.states.chunks_mut(blocks.len()).enumerate() {
            for (block, state) in blocks.iter().zip(states) {
                h = block.forward(&h, &mut **state, step)?;
            }
            if self.norm_between || i + 1 == self.loops {
                h = self.decoder.norm.forward(&h)?;
            }
        }
        Ok(h)
    }
}
