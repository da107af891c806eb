//! A draft model: a smaller model with the same vocabulary, whose greedy tokens are drafts.

use crate::{
    error::{Error, Result},
    layers::cache_plan::CachePlan,
    mlx::{self, queued::Queued},
    models::{
        cache::{Cache, CacheCheckpoint},
        decode_step::{DecodeStep, prefill},
        language::LanguageModel,
    },
};
use mlx_rs::{
    Array, Dtype,
    ops::{self, indexing},
    transforms::eval,
};
use std::{cell::RefCell, rc::Rc};

/// Tokens of one chunk of its prefill, which the model does not wait for.
const CHUNK: usize = 512;

/// From this number of missing tokens on, they are prefilled.
const MANY: usize = 8;

/// A draft model and its cache of one sequence.
pub(crate) struct DraftModel {
    network: Rc<dyn LanguageModel>,
    decode: Rc<RefCell<DecodeStep>>,
    cache: Cache,
    /// The tokens that the cache holds.
    tokens: Vec<u32>,
    /// Where the cache was during the last draft, unless it can rewind.
    places: Vec<CacheCheckpoint>,
}

/// What drafting has come to.
pub(crate) enum Drafted {
    /// Draft tokens, and whether nothing had to be compiled for them.
    Tokens(Vec<u32>, bool),
    /// The draft model is still reading the prompt.
    Reading,
}

impl DraftModel {
    /// With an empty cache.
    pub fn new(network: Rc<dyn LanguageModel>, decode: Rc<RefCell<DecodeStep>>) -> Self {
        let cache = network.cache(&CachePlan::default());
        DraftModel { network, decode, cache, tokens: Vec::new(), places: Vec::new() }
    }

    /// The bytes of its cache.
    pub fn bytes(&self) -> usize {
        self.cache.bytes() + self.places.iter().map(CacheCheckpoint::bytes).sum::<usize>()
    }

    /// Whether these are its compiled steps.
    pub fn steps_by(&self, decode: &Rc<RefCell<DecodeStep>>) -> bool {
        Rc::ptr_eq(&self.decode, decode)
    }

    fn step(&mut self, id: &Array) -> Result<Array> {
        self.decode.borrow_mut().run(&self.network, id, &mut self.cache)
    }

    /// The `count` tokens after `tokens`, of a vocabulary of this size. A long text is read in several
    /// calls.
    ///
    /// # Errors
    /// [`Error::TokenOutOfVocabulary`], [`Error::MemoryLimit`], [`Error::Mlx`].
    pub fn draft(&mut self, tokens: &[u32], count: usize, vocabulary: u32) -> Result<Drafted> {
        let Some((last, before)) = tokens.split_last() else { return Ok(Drafted::Reading) };
        let shared = self.tokens.iter().zip(before).take_while(|(a, b)| a == b).count();
        self.rewind_to(shared)?;
        let missing = &before[self.tokens.len()..];
        let known = self.network.vocabulary();
        if let Some(id) = missing.iter().chain([last]).copied().find(|id| *id >= known) {
            return Err(Error::TokenOutOfVocabulary { id, vocabulary: known });
        }
        if missing.len() >= MANY || self.tokens.is_empty() && !missing.is_empty() {
            let chunk = &missing[..missing.len().min(CHUNK)];
            self.cache.expect_length(tokens.len());
            prefill(&*self.network, &row(chunk), &mut self.cache)?;
            eval(self.cache.arrays().into_iter().map(|array| &*array))?;
            self.tokens.extend(chunk);
            if chunk.len() < missing.len() {
                return Ok(Drafted::Reading);
            }
        } else {
            for id in missing {
                self.step(&row(&[*id]))?;
            }
            self.tokens.extend(missing);
        }
        if self.cache.offset == 0 {
            // A prompt of one token has nothing before it.
            return Ok(Drafted::Reading);
        }
        let is_compiled = self.decode.borrow().has_compiled(&self.cache);
        let rewinds = self.cache.rewinds();
        let (mut id, mut draft) = (row(&[*last]), Vec::new());
        for _ in 0..count {
            if !rewinds {
                self.places.push(self.cache.checkpoint());
            }
            let logits = self.step(&id)?;
            let most = logits.dim(-1).min(vocabulary as i32);
            let logits = mlx::slice(&logits.reshape(&[1, -1])?, 1, 0, most)?;
            id = indexing::argmax_axis(&logits, -1, true)?.as_dtype(Dtype::Uint32)?;
            draft.push(id.clone());
        }
        let draft = ops::concatenate(&draft, 1)?;
        let states = self.cache.arrays().into_iter().map(|array| &*array);
        let draft: Vec<u32> = Queued::new(&[&draft], states)?.read(|it| mlx::to_vec(&it[0]))?;
        self.tokens.push(*last);
        self.tokens.extend(&draft[..draft.len() - 1]);
        Ok(Drafted::Tokens(draft, is_compiled))
    }

    /// Takes back the tokens after the first `most`, and more where the cache can only restore a place.
    fn rewind_to(&mut self, most: usize) -> Result<()> {
        let places = std::mem::take(&mut self.places);
        let excess = self.tokens.len() - most;
        if excess > 0 && !self.cache.rewind(excess as i32) {
            let is_within = |place: &&CacheCheckpoint| place.offset() as usize <= most;
            match places.iter().rev().find(is_within) {
                Some(place) => drop(self.cache.restore(place)?),
                None => self.cache.clear(),
            }
        }
        self.tokens.truncate(self.cache.offset as usize);
        Ok(())
    }
}

fn row(tokens: &[u32]) -> Array {
    Array::from_slice(tokens, &[1, tokens.len() as i32])
}
