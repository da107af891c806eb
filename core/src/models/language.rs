//! What a language model can do, and what it remembers of a sequence.

use crate::{
    error::Result,
    layers::{cache_plan::CachePlan, embedded::Embedded, step::Step},
    models::cache::Cache,
};
use mlx_rs::Array;

/// Tokens in, logits of the next token out.
pub trait LanguageModel {
    /// How many tokens it has embeddings for.
    fn vocabulary(&self) -> u32;
    /// An empty memory.
    fn cache(&self, plan: &CachePlan) -> Cache;
    /// Token ids `[batch, length]` to the start of the residual stream.
    fn embed(&self, ids: &Array) -> Result<Embedded>;
    /// One pass through all blocks, to normalised hidden states `[batch, length, width]`. Whoever
    /// calls it has reserved room in the cache, and moves its offset afterwards.
    fn forward(&self, x: &Embedded, cache: &mut Cache, step: &Step) -> Result<Array>;
    /// Hidden states `[…, width]` to logits `[…, vocabulary]`.
    fn logits(&self, hidden: &Array) -> Result<Array>;
}

/// A model around another one, which does whatever this one does not.
pub trait Wrapper {
    /// The model within, usually a [`Decoder`](crate::models::decoder::Decoder).
    fn inner(&self) -> &dyn LanguageModel;
    /// See [`LanguageModel::cache`].
    fn cache(&self, plan: &CachePlan) -> Cache {
        self.inner().cache(plan)
    }
    /// See [`LanguageModel::embed`].
    fn embed(&self, ids: &Array) -> Result<Embedded> {
        self.inner().embed(ids)
    }
    /// See [`LanguageModel::forward`].
    fn forward(&self, x: &Embedded, cache: &mut Cache, step: &Step) -> Result<Array> {
        self.inner().forward(x, cache, step)
    }
    /// See [`LanguageModel::logits`].
    fn logits(&self, hidden: &Array) -> Result<Array> {
        self.inner().logits(hidden)
    }
}

impl<W: Wrapper> LanguageModel for W {
    fn vocabulary(&self) -> u32 {
        self.inner().vocabulary()
    }
    fn cache(&self, plan: &CachePlan) -> Cache {
        Wrapper::cache(self, plan)
    }
    fn embed(&self, ids: &Array) -> Result<Embedded> {
        Wrapper::embed(self, ids)
    }
    fn forward(&self, x: &Embedded, cache: &mut Cache, step: &Step) -> Result<Array> {
        Wrapper::forward(self, x, cache, step)
    }
    fn logits(&self, hidden: &Array) -> Result<Array> {
        Wrapper::logits(self, hidden)
    }
}
