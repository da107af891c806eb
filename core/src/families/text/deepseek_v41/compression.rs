//! The plan of compressed attention: which layers pool groups of tokens, which select among them,
//! and whose groups a layer attends to. Follows `deepseek_v41` of mlx-lm.

use crate::{
    checkpoint::config::{Count, Json, Positive, Size, read},
    error::{Error, Result},
};
use serde::Deserialize;

/// To how many blocks of groups an indexer restricts later ones.
#[derive(Clone, Copy)]
pub struct Blocks {
    /// How many blocks.
    pub most: i32,
    /// How many groups make one.
    pub size: i32,
}

/// The fields of compressed attention, as configs spell them.
#[derive(Clone, Deserialize)]
pub struct Compression {
    compress_ratios: Vec<i32>,
    kv_source_layer_ids: Vec<i32>,
    index_source_layer_ids: Vec<i32>,
    /// The rotary base of layers with groups.
    pub compress_rope_theta: Positive,
    candidate_source_layer_id: i64,
    candidate_topk_blocks: Count,
    candidate_block_size: Size,
    /// The number of heads of an indexer.
    pub index_n_heads: Size,
    /// The head size of an indexer.
    pub index_head_dim: Size,
    /// The number of groups that a token attends to.
    pub index_topk: Size,
}

/// The groups that a layer attends to.
#[derive(Clone, Copy)]
pub struct Reads {
    /// The layer that pools them.
    pub pooled: i32,
    /// The layer whose index keys the indexer scores.
    pub scored: i32,
    /// The number of tokens in a group.
    pub size: i32,
}

impl Compression {
    /// Reads the fields.
    ///
    /// # Errors
    /// [`Error::Config`] with the field at fault.
    pub fn read(config: &Json) -> Result<Self> {
        // The state keeps the tokens of a group until the group is closed.
        const MOST_TOKENS: i32 = 4096;
        let fields: Compression = read(config)?;
        match fields.compress_ratios.iter().find(|ratio| !(0..=MOST_TOKENS).contains(*ratio)) {
            Some(ratio) => {
                let reason = format!("{ratio} is not a number of tokens up to {MOST_TOKENS}");
                Err(Error::config("compress_ratios", reason))
            }
            None => Ok(fields),
        }
    }

    /// The group size of this layer; `None` if it has its sliding window only.
    pub fn size(&self, layer: i32) -> i32 {
        self.compress_ratios.get(layer as usize).copied().unwrap_or(0)
    }

    /// Whether a layer pools groups.
    pub fn pools(&self, layer: i32) -> bool {
        self.kv_source_layer_ids.contains(&layer) && self.size(layer) > 0
    }

    /// Whether a layer selects groups.
    pub fn chooses(&self, layer: i32) -> bool {
        self.index_source_layer_ids.contains(&layer) && self.size(layer) > 0
    }

    /// Tensors that published layers contain but no layer reads.
    pub fn unused(&self, layer: i32, reads: Option<Reads>) -> impl Iterator<Item = &'static str> {
        let pools = self.kv_source_layer_ids.contains(&layer) && !self.pools(layer);
        let chooses = self.index_source_layer_ids.contains(&layer) && reads.is_none();
        [(pools, "compressor"), (chooses, "indexer")]
            .into_iter()
            .filter_map(|(is_unused, name)| is_unused.then_some(name))
    }

    /// To which blocks of groups a layer restricts later ones, if it does.
    pub fn candidates(&self, layer: i32) -> Option<Blocks> {
        let is_source = self.candidate_source_layer_id == i64::from(layer);
        let restricts = is_source && *self.candidate_topk_blocks > 0;
        let (most, size) = (*self.candidate_topk_blocks, *self.candidate_block_size);
        restricts.then_some(Blocks { most, size })
    }

    /// The groups that a layer attends to: those of the last layer that pools, as selected by the
    /// last layer that selects among them.
    ///
    /// # Errors
    /// [`Error::Config`] when the groups of those layers differ in size.
    pub fn reads(&self, layer: i32) -> Result<Option<Reads>> {
        let last = |before: i32, is_one: &dyn Fn(i32) -> bool| {
            let ids = self.kv_source_layer_ids.iter().chain(&self.index_source_layer_ids);
            ids.copied().filter(|id| (0..=before).contains(id) && is_one(*id)).max()
        };
        if self.size(layer) == 0 {
            return Ok(None);
        }
        let Some(chooser) = last(layer, &|id| self.chooses(id)) else { return Ok(None) };
        let scored = last(chooser, &|id| self.pools(id) && self.chooses(id));
        let pooled = last(layer, &|id| self.pools(id));
        let (Some(scored), Some(pooled)) = (scored, pooled) else { return Ok(None) };
        let restricts = |id: i32| self.candidates(id).is_some() && self.chooses(id);
        let restricting = last(chooser, &restricts).unwrap_or(chooser);
        let size = self.size(chooser);
        for other in [scored, pooled, restricting] {
            if self.size(other) != size {
                let reason =
                    format!("layers {other} and {chooser} share groups of different sizes");
                return Err(Error::config("compress_ratios", reason));
            }
        }
        Ok(Some(Reads { pooled, scored, size }))
    }
}
