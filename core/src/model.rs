//! What a language model can do, and what it remembers of a sequence.

use crate::{
    error::{Error, Result},
    layer::{CachePlan, State, Step},
    memory,
    mlx::Compiled,
    state::{Memory, Volatile},
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
    /// Its capacity is the one that there is now.
    pub(crate) plan: CachePlan,
    /// The capacity that was asked for.
    expected: i32,
    pub(crate) quantized: bool,
}

/// A place that a cache can come back to: what rewinding it may not bring back, which is rings and
/// recurrent states.
#[derive(Clone)]
pub struct Snapshot {
    offset: i32,
    volatile: Vec<Volatile>,
}

impl Cache {
    /// A cache of empty states.
    pub fn new(states: Vec<Box<dyn State>>, plan: &CachePlan) -> Self {
        let now = CachePlan { capacity: plan.first_capacity(), ..*plan };
        Cache { offset: 0, states, plan: now, expected: plan.capacity, quantized: false }
    }

    /// How it was asked to be kept.
    pub fn plan(&self) -> &CachePlan {
        &self.plan
    }

    fn memories(&mut self) -> impl Iterator<Item = Memory<'_>> {
        self.states.iter_mut().flat_map(|state| state.memories())
    }

    /// Makes room for `positions` in all.
    ///
    /// # Errors
    /// [`Error::MemoryLimit`], [`Error::Mlx`].
    pub fn reserve(&mut self, positions: i32) -> Result<()> {
        let needed = self.plan.bound.map_or(positions, |bound| positions.min(bound.positions));
        if needed > self.plan.capacity {
            let mut grown = self.fork();
            grown.plan.capacity = (needed as u32).next_multiple_of(GROWTH) as i32;
            grown.fit()?;
            memory::allow(grown.bytes())?;
            *self = grown;
        }
        Ok(())
    }

    /// Gives all memories the capacity of the cache.
    fn fit(&mut self) -> Result<()> {
        let capacity = self.plan.capacity;
        self.memories().try_for_each(|memory| memory.reserve(capacity))
    }

    /// Moves on after a pass over `count` positions.
    fn advance(&mut self, count: i32) -> Result<()> {
        self.offset += count;
        let due = self.plan.quantization.is_some_and(|q| self.offset >= q.from);
        if due && !self.quantized { self.quantize() } else { Ok(()) }
    }

    fn quantize(&mut self) -> Result<()> {
        self.quantized = true;
        self.memories().try_for_each(Memory::quantize)?;
        self.plan.capacity = self.plan.capacity.max(self.expected);
        self.fit()
    }

    /// A cache of `plan` whose arrays are never computed, and so take no memory: only their shapes
    /// are of use.
    ///
    /// # Errors
    /// [`Error::Option`] when the plan does not fit the model; [`Error::Mlx`].
    pub(crate) fn sketch(
        model: &dyn LanguageModel,
        plan: &CachePlan,
        quantized: bool,
    ) -> Result<Cache> {
        let mut cache = model.cache(plan);
        cache.reserve(plan.capacity.max(1))?;
        pass(model, &Array::from_slice(&[0u32], &[1, 1]), &mut cache)?;
        if quantized {
            cache.quantize()?;
        }
        Ok(cache)
    }

    /// What a cache of `plan` takes for so many positions, with everything quantized that will be.
    ///
    /// # Errors
    /// [`Error::Option`] when the plan does not fit the model; [`Error::Mlx`].
    pub fn estimate(
        model: &dyn LanguageModel,
        plan: &CachePlan,
        positions: usize,
    ) -> Result<usize> {
        let plan = CachePlan { capacity: CachePlan::new(positions).capacity, ..*plan };
        Ok(Cache::sketch(model, &plan, plan.quantization.is_some())?.bytes())
    }

    /// Everything it holds.
    pub fn arrays(&mut self) -> Vec<&mut Array> {
        self.memories().flat_map(Memory::arrays).collect()
    }

    /// What its arrays take, whoever shares them.
    pub fn bytes(&self) -> usize {
        self.fork().arrays().iter().map(|array| array.nbytes()).sum()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.memories().for_each(Memory::clear);
        (self.offset, self.quantized) = (0, false);
    }

    /// Forgets the last `count` positions; `false`, with nothing changed, when a memory cannot.
    /// All of them can always be forgotten. What has been quantized stays so.
    pub fn rewind(&mut self, count: i32) -> bool {
        let (from, to) = (self.offset, self.offset - count);
        if to == 0 {
            self.clear();
            return true;
        }
        let can = (1..=from).contains(&to) && self.memories().all(|m| m.rewinds(from, to));
        if can {
            self.offset = to;
        }
        can
    }

    /// The place where it is now. Arrays are shared, and those in it are copied when the cache
    /// changes them.
    pub fn snapshot(&mut self) -> Snapshot {
        let volatile = self.memories().map(|memory| memory.volatile()).collect();
        Snapshot { offset: self.offset, volatile }
    }

    /// Goes back to a snapshot of this cache, or of one that it was forked from or that was forked
    /// from it, whose positions it still has; `false`, with nothing changed, when it is before it.
    /// What has been quantized since stays so.
    ///
    /// # Errors
    /// [`Error::Mlx`].
    pub fn restore(&mut self, snapshot: &Snapshot) -> Result<bool> {
        if snapshot.offset > self.offset {
            return Ok(false);
        }
        if snapshot.offset == 0 {
            self.clear();
            return Ok(true);
        }
        for (mut memory, volatile) in self.memories().zip(&snapshot.volatile) {
            memory.restore(volatile);
        }
        self.offset = snapshot.offset;
        self.fit()?;
        if self.quantized {
            self.quantize()?;
        }
        Ok(true)
    }

    /// A copy that shares its arrays: the one that goes on first copies what it changes.
    pub fn fork(&self) -> Cache {
        let states = self.states.iter().map(|state| state.fork()).collect();
        Cache { states, ..*self }
    }
}

impl Snapshot {
    /// How many positions the cache had seen.
    pub fn offset(&self) -> i32 {
        self.offset
    }

    /// What its arrays take, whoever shares them: nothing where a cache can rewind.
    pub fn bytes(&self) -> usize {
        self.volatile.iter().map(Volatile::bytes).sum()
    }
}

/// Runs a part of a prompt: ids `[batch, length]` to hidden states.
///
/// # Errors
/// [`Error::MemoryLimit`], [`Error::Mlx`].
pub fn prefill(model: &dyn LanguageModel, ids: &Array, cache: &mut Cache) -> Result<Array> {
    let length = ids.dim(1);
    cache.reserve(cache.offset + length)?;
    let hidden = pass(model, ids, cache)?;
    if cache.offset == 0 {
        // Its size is known only now, and nothing of it is computed yet.
        memory::allow(cache.bytes()).inspect_err(|_| cache.clear())?;
    }
    cache.advance(length)?;
    Ok(hidden)
}

fn pass(model: &dyn LanguageModel, ids: &Array, cache: &mut Cache) -> Result<Array> {
    let step = Step::prefill(cache.offset, ids.dim(1));
    model.forward(&model.embed(ids)?, cache, &step)
}

/// The decode steps of a model, compiled for each shape of a cache and replayed from then on.
///
/// Building the graph of a step costs the host more than a small model costs the device; a
/// compiled step is built once and its operations are fused.
#[derive(Default)]
pub struct DecodeStep(Vec<(Shape, Compiled)>);

/// What the shapes of a step follow from: the plan of the cache with its capacity, whether it is
/// quantized already, and the size of the batch.
type Shape = (CachePlan, bool, i32);

/// Sequences of so many lengths can take turns without compiling anew.
const KEPT: usize = 4;

impl DecodeStep {
    /// Runs one token `[batch, 1]`, which may still be on its way through the device, to logits
    /// `[batch, 1, vocabulary]`.
    ///
    /// # Errors
    /// [`Error::Mlx`]; [`Error::Internal`] when the cache is empty.
    pub fn run(
        &mut self,
        model: &Rc<dyn LanguageModel>,
        id: &Array,
        cache: &mut Cache,
    ) -> Result<Array> {
        if cache.offset == 0 {
            return Err(Error::Internal("a prompt comes before the first token".into()));
        }
        cache.reserve(cache.offset + 1)?;
        let shape = (cache.plan, cache.quantized, id.dim(0));
        let place = self.0.iter().position(|(known, _)| *known == shape).unwrap_or_else(|| {
            tracing::debug!(?shape, "compiling a decode step");
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
        cache.advance(1)?;
        Ok(logits)
    }
}

/// A step for caches like this one.
fn compile(model: Rc<dyn LanguageModel>, cache: &Cache) -> Compiled {
    let mut template = cache.fork();
    // The step must not keep what the sequence it was made for remembers.
    template.arrays().into_iter().for_each(|array| *array = Array::from_int(0));
    Compiled::new(move |inputs| {
        let [id, position, states @ ..] = inputs else {
            return Err(Error::Internal("a decode step has an id and a position".into()));
        };
        let mut cache = template.fork();
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
