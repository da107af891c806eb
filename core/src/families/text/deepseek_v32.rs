//! DeepSeek V3.2: DeepSeek V3 with sparse attention: an indexer, a small attention of its own,
//! selects the keys that each token attends to. Follows `deepseek_v32` of mlx-lm.

use crate::families::text::deepseek_v3::{Config, complete, router};
use crate::{
    families::prelude::*,
    layers::attention::sparse_mla::{SparseMla, TokenIndexer, TokenIndexerSizes},
};

pub const FAMILY: Family =
    Family { model_types: &["deepseek_v32", "deepseek_v3.2"], build, recommended: RECOMMENDED };

const RECOMMENDED: Recommended =
    Recommended { chat_template: Some(crate::text::DEEPSEEK_V32), ..Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    Ok(Box::new(decoder(config, w, |_| true)?))
}

/// The decoder. Layers for which `chooses` is true run an indexer; the others reuse the selection
/// of an earlier layer.
pub fn decoder(config: &Json, w: &Scope, chooses: impl Fn(i32) -> bool) -> Result<Decoder> {
    config::only(config, json!({"layer_types": "indexed_attention"}))?;
    let defaults = json!({
        "index_head_dim": 128, "index_n_heads": 64, "index_topk": 2048,
        "indexer_rope_interleave": false,
    });
    // The authors' networks have no biases, whatever `mlp_bias` says.
    let config = config::without(config, &["mlp_bias"]);
    let config = &config::with_defaults(&complete(&config), defaults);
    let (c, sizes): (_, TokenIndexerSizes) = (Config::read(config)?, config::read(config)?);
    let rope = c.latent.rope(&c.text)?;
    let attention = |i, w: &Scope| {
        // The norms of the low-rank projections have an epsilon of their own.
        let mla = Mla::read(w, &c.text, &c.latent, 1e-6, rope.clone())?;
        if !chooses(i) {
            // Some checkpoints have an indexer in these layers too; nothing uses it.
            w.ignore("indexer");
            return Ok(SparseMla::new(mla, None));
        }
        let indexer = TokenIndexer::read(&w.at("indexer"), &c.text, &c.latent, &sizes)?;
        Ok(SparseMla::new(mla, Some(indexer)))
    };
    c.decoder(w, attention, |w| router(w, &c.text, config))
}
