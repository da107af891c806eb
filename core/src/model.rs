//! What a language model can do, and what it remembers of a sequence.

use crate::{
    error::Result,
    layer::{CachePlan, State, Step},
    mlx::Compiled,
};
use mlx_rs::Array;
use std::rc::Rc;

/// Buffers of a cache grow by this many positions, so that few shapes occur.
const GROWTH: u32 = 256;

/// Tokens and the residual stream that they start.
pub struct Embedded {
    /// Token ids `[batch, length]`.
    pub ids: Array,
    /// The stream `[batch, length, width]`.
    pub hidden: Array,
}

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
    /// The model within, usually a [`Decoder`](crate::decoder::Decoder).
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

/// What a model remembers of one sequence.
pub struct Cache {
    /// How many positions it has seen.
    pub offset: i32,
    /// One state a layer.
    pub states: Vec<Box<dyn State>>,
    capacity: i32,
}

impl Cache {
    /// A cache of empty states.
    pub fn new(states: Vec<Box<dyn State>>, plan: &CachePlan) -> Self {
        Cache { offset: 0, states, capacity: plan.capacity }
    }

    /// Makes room for `positions` in all.
    ///
    /// # Errors
    /// [`crate::Error::Mlx`].
    pub fn reserve(&mut self, positions: i32) -> Result<()> {
        if positions > self.capacity {
            self.capacity = (positions as u32).next_multiple_of(GROWTH) as i32;
            for state in &mut self.states {
                state.reserve(self.capacity)?;
            }
        }
        Ok(())
    }

    /// Everything it holds.
    pub fn arrays(&mut self) -> Vec<&mut Array> {
        self.states.iter_mut().flat_map(|state| state.arrays()).collect()
    }

    /// Forgets the last `count` positions; `false`, with nothing changed, when a state cannot.
    pub fn rewind(&mut self, count: i32) -> bool {
        let to = self.offset - count;
        let can = to >= 0 && self.states.iter().all(|state| state.rewinds(self.offset, to));
        if can {
            self.offset = to;
        }
        can
    }

    /// A copy that shares its arrays.
    pub fn snapshot(&self) -> Cache {
        let states = self.states.iter().map(|state| state.snapshot()).collect();
        Cache { offset: self.offset, states, capacity: self.capacity }
    }
}

/// Runs a part of a prompt: ids `[batch, length]` to hidden states.
///
/// # Errors
/// [`crate::Error::Mlx`].
pub fn prefill(model: &dyn LanguageModel, ids: &Array, cache: &mut Cache) -> Result<Array> {
    let length = ids.dim(1);
    cache.reserve(cache.offset + length)?;
    let hidden = model.forward(&model.embed(ids)?, cache, &Step::prefill(cache.offset, length))?;
    cache.offset += length;
    Ok(hidden)
}

/// The decode steps of a model, compiled for each capacity of a cache and replayed from then on.
///
/// Building the graph of a step costs the host more than a small model costs the device; a
/// compiled step is built once and its operations are fused.
#[derive(Default)]
pub struct DecodeStep(Vec<(Shape, Compiled)>);

/// What the shapes of a step follow from: the capacity of the cache and the size of the batch.
type Shape = (i32, i32);

/// Sequences of so many lengths can take turns without compiling anew.
const KEPT: usize = 4;

impl DecodeStep {
    /// Runs one token `[batch, 1]`, which may still be on its way through the device, to logits
    /// `[batch, 1, vocabulary]`.
    ///
    /// # Errors
    /// [`crate::Error::Mlx`].
    pub fn run(
        &mut self,
        model: &Rc<dyn LanguageModel>,
        id: &Array,
        cache: &mut Cache,
    ) -> Result<Array> {
        cache.reserve(cache.offset + 1)?;
        let shape = (cache.capacity, id.dim(0));
        let place = self.0.iter().position(|(known, _)| *known == shape).unwrap_or_else(|| {
            tracing::debug!(capacity = shape.0, batch = shape.1, "compiling a decode step");
            self.0.truncate(KEPT - 1);
            self.0.insert(0, (shape, compile(model.clone(), cache)));
            0
        });
        let compiled = &mut self.0[place].1;
        let position = Array::from_slice(&[cache.offset], &[1]);
        let mut inputs = vec![id.clone(), position];
        inputs.extend(cache.arrays().into_iter().map(|array| array.clone()));
        let mut outputs = compiled.call(&inputs)?.into_iter();
        let logits = outputs.next().expect("the logits come first");
        for (array, output) in cache.arrays().into_iter().zip(outputs) {
            *array = output;
        }
        cache.offset += 1;
        Ok(logits)
    }
}

/// A step for caches like this one.
fn compile(model: Rc<dyn LanguageModel>, cache: &Cache) -> Compiled {
    let mut template = cache.snapshot();
    // The step must not keep what the sequence it was made for remembers.
    template.arrays().into_iter().for_each(|array| *array = Array::from_int(0));
    Compiled::new(move |inputs| {
        let [id, position, states @ ..] = inputs else {
            return Err(crate::Error::Internal("a decode step has an id and a position".into()));
        };
        let mut cache = template.snapshot();
        for (array, state) in cache.arrays().into_iter().zip(states) {
            *array = state.clone();
        }
        let step = Step::decode(position.clone());
        let hidden = model.forward(&model.embed(id)?, &mut cache, &step)?;
        let mut outputs = vec![model.logits(&hidden)?];
        outputs.extend(cache.arrays().into_iter().map(|array| array.clone()));
        Ok(outputs)
    })
}
