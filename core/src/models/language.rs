//! What a language model can do, and what it remembers of a sequence.

use crate::{
    error::{Error, Result},
    layers::{cache_plan::CachePlan, embedded::Embedded, step::Step},
    mlx,
    models::cache::Cache,
};
use mlx_rs::Array;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

/// A prompt before the model has embedded it.
#[derive(Clone, Default)]
pub struct Input {
    /// Token ids, with one placeholder for each of the media or as many as the processor writes.
    pub tokens: Vec<u32>,
    /// Pictures, clips and sounds in the order of their placeholders.
    pub media: Vec<Media>,
}

/// One picture, clip or sound as its processor has prepared it.
#[derive(Clone)]
pub struct Media {
    /// A hash of the content: two prompts share a prefix only where their media have equal hashes.
    pub hash: u64,
    /// The tensors by the names of the processor, such as `pixel_values` and `image_grid_thw`.
    pub tensors: HashMap<String, Array>,
    /// What the tower has made of them; clones share it.
    features: Arc<Mutex<Option<Vec<Array>>>>,
}

impl Media {
    /// Media that no tower has read yet.
    pub fn new(hash: u64, tensors: HashMap<String, Array>) -> Self {
        Media { hash, tensors, features: Arc::default() }
    }

    /// The bytes of its tensors and features.
    pub fn bytes(&self) -> usize {
        let features = self.features.lock().unwrap_or_else(PoisonError::into_inner);
        let features = features.iter().flatten();
        self.tensors.values().chain(features).map(Array::nbytes).sum()
    }

    /// The features of the media, which `encode` computes from the tensors the first time: a session
    /// keeps them, so that a later prompt with the same media runs no tower.
    ///
    /// # Errors
    /// Those of `encode`.
    pub fn features(
        &self,
        encode: impl FnOnce(&HashMap<String, Array>) -> Result<Vec<Array>>,
    ) -> Result<Vec<Array>> {
        let mut features = self.features.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(features) = &*features {
            return Ok(features.clone());
        }
        let encoded = encode(&self.tensors)?;
        *features = Some(encoded.clone());
        Ok(encoded)
    }
}

impl Media {
    /// A tensor that the processor made.
    ///
    /// # Errors
    /// [`Error::Internal`] when it made none of this name: it is another family's processor.
    pub fn tensor(&self, name: &str) -> Result<&Array> {
        let missing = || Error::Internal(format!("the processor made no `{name}`"));
        self.tensors.get(name).ok_or_else(missing)
    }

    /// The numbers of a tensor of sizes, such as `image_grid_thw`.
    ///
    /// # Errors
    /// As [`Media::tensor`], and when it has fewer than `count` numbers.
    pub fn sizes(&self, name: &str, count: usize) -> Result<Vec<i32>> {
        let sizes: Vec<i32> = mlx::to_vec(self.tensor(name)?)?;
        if sizes.len() < count {
            return Err(Error::Internal(format!("`{name}` has {} numbers", sizes.len())));
        }
        Ok(sizes)
    }
}

/// Tokens in, logits of the next token out.
pub trait LanguageModel {
    /// How many tokens it has embeddings for.
    fn vocabulary(&self) -> u32;
    /// An empty memory.
    fn cache(&self, plan: &CachePlan) -> Cache;
    /// Token ids `[batch, length]` to the start of the residual stream.
    fn embed(&self, ids: &Array) -> Result<Embedded>;
    /// A whole prompt, once, to one embedding a position; a family of vision or audio replaces the
    /// placeholders of its media. By default the tokens alone.
    ///
    /// # Errors
    /// [`Error::TextOnly`] when the prompt has media and the model reads none.
    fn prompt(&self, input: &Input) -> Result<Embedded> {
        input.embed_text(|ids| self.embed(ids))
    }
    /// One pass through all blocks, to normalised hidden states `[batch, length, width]`. The caller
    /// has reserved room in the cache, and moves its offset afterwards.
    fn forward(&self, x: &Embedded, cache: &mut Cache, step: &Step) -> Result<Array>;
    /// Hidden states `[…, width]` to logits `[…, vocabulary]`.
    fn logits(&self, hidden: &Array) -> Result<Array>;
    /// The longest sequence that rotates with LongRoPE's short factors. Keys of longer sequences are
    /// others, from the first token on: their cache is computed anew when they cross it.
    fn original_context(&self) -> Option<i32> {
        None
    }
}

impl Input {
    /// The embedded tokens of a prompt without media.
    fn embed_text(&self, embed: impl FnOnce(&Array) -> Result<Embedded>) -> Result<Embedded> {
        if !self.media.is_empty() {
            return Err(Error::TextOnly { media: self.media.len() });
        }
        embed(&Array::from_slice(&self.tokens, &[1, self.tokens.len() as i32]))
    }
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
    /// See [`LanguageModel::prompt`].
    fn prompt(&self, input: &Input) -> Result<Embedded> {
        input.embed_text(|ids| self.embed(ids))
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
    fn prompt(&self, input: &Input) -> Result<Embedded> {
        Wrapper::prompt(self, input)
    }
    fn forward(&self, x: &Embedded, cache: &mut Cache, step: &Step) -> Result<Array> {
        Wrapper::forward(self, x, cache, step)
    }
    fn logits(&self, hidden: &Array) -> Result<Array> {
        Wrapper::logits(self, hidden)
    }
    fn original_context(&self) -> Option<i32> {
        self.inner().original_context()
    }
}
