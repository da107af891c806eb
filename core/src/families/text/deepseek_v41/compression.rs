//! Which layers pool groups of tokens, which choose among them, and whose groups a layer attends
//! to.

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
    /// The base of the positions in layers with groups.
    pub compress_rope_theta: Positive,
    candidate_source_layer_id: i64,
    candidate_topk_blocks: Count,
    candidate_block_size: Size,
    /// Heads of an indexer.
    pub index_n_heads: Size,
    /// Width of a head of an indexer.
    pub index_head_dim: Size,
    /// How many groups a token attends to.
    pub index_topk: Size,
}

/// Whose groups a layer attends to.
#[derive(Clone, Copy)]
pub struct Reads {
    /// The layer that pools them.
    pub pooled: i32,
    /// The layer whose index keys an indexer scores.
    pub scored: i32,
    /// How many tokens make a group.
    pub size: i32,
}

impl Compression {
    /// Reads the fields.
    ///
    /// # Errors
    /// [`Error::Config`] with the field at fault.
    pub fn read(config: &Json) -> Result<Self> {
        // A group is remembered whole until it is closed.
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

    /// How many tokens make a group in this layer; none where it has its window only.
    pub fn size(&self, layer: i32) -> i32 {
        self.compress_ratios.get(layer as usize).copied().unwrap_or(0)
    }

    /// Whether a layer pools groups.
    pub fn pools(&self, layer: i32) -> bool {
        self.kv_source_layer_ids.contains(&layer) && self.size(layer) > 0
    }

    /// Whether a layer chooses groups.
    pub fn chooses(&self, layer: i32) -> bool {
        self.index_source_layer_ids.contains(&layer) && self.size(layer) > 0
    }

    /// What a layer has although nobody could use it.
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

    /// Whose groups a layer attends to, if any: those of the last layer that pools, as the last one
    /// has chosen that can.
    ///
    /// # Errors
    /// [`Error::Config`] when the groups of those layers are not of the same size.
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
