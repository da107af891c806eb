//! Prefill, and the decode steps and verify passes that are compiled as a whole.

use crate::{
    error::{Error, Result},
    layers::{
        attention::cross::{Encoded, EncodedMask},
        cache_plan::CachePlan,
        embedded::Embedded,
        step::{Rotary, Step},
    },
    mlx::{self, compiled::Compiled, memory, parameter::Parameters},
    models::{
        cache::{Cache, Verified},
        history::History,
        language::LanguageModel,
    },
};
use mlx_rs::{Array, ops, transforms::eval};
use std::rc::Rc;

/// The tokens of one chunk of a cache that is computed anew.
const CHUNK: usize = 512;

/// Runs a part of a prompt of text: ids `[batch, length]` to hidden states.
///
/// # Errors
/// [`Error::MemoryLimit`], [`Error::Mlx`]; [`Error::Internal`] for a cache of rows with positions
/// of their own, which decode only.
pub fn prefill(model: &dyn LanguageModel, ids: &Array, cache: &mut Cache) -> Result<Array> {
    prefill_embedded(model, &model.embed(ids)?, cache)
}

/// Runs a part of a prompt, which cuts no span, to hidden states `[batch, length, width]`. A part
/// without rotary positions of its own goes on with the delta of the cache.
///
/// # Errors
/// As [`prefill`].
pub fn prefill_embedded(
    model: &dyn LanguageModel,
    x: &Embedded,
    cache: &mut Cache,
) -> Result<Array> {
    check_settled(cache)?;
    if cache.positions().len() > 1 {
        return Err(Error::Internal("the rows of a batch are prefilled one by one".into()));
    }
    let length = x.length() as i32;
    if let Some(context) = model.original_context() {
        check_text(x)?;
        let whole = cache.length_with(length);
        let is_long = whole > context;
        if cache.offset == 0 {
            cache.history = vec![History::new(is_long)];
        } else if cache.history.first().map(|history| history.is_long) != Some(Some(is_long)) {
            compute_anew(model, cache, whole)?;
        }
    }
    let hidden = extend(model, x, cache)?;
    cache.remember(&x.ids)?;
    Ok(hidden)
}

/// The history of a cache holds token ids, which are not all of a prompt with media.
fn check_text(x: &Embedded) -> Result<()> {
    if x.rotary.is_none() && x.encoded.is_none() && x.spans.is_empty() {
        return Ok(());
    }
    Err(Error::Internal("a model with LongRoPE has prompts of text only".into()))
}

/// Computes a cache of one row anew from its tokens, as those of a sequence of this length.
fn compute_anew(model: &dyn LanguageModel, cache: &mut Cache, length: i32) -> Result<()> {
    let Some(history) = cache.history.first() else {
        return Err(Error::Internal("the tokens of a cache are not known".into()));
    };
    let (ids, count) = (history.tokens()?, cache.offset);
    tracing::debug!(tokens = count, length, "computing the cache anew for another rotation");
    cache.rewind(count);
    cache.expect_length(length as usize);
    let mut history = History::new(model.original_context().is_some_and(|most| length > most));
    for from in (0..count).step_by(CHUNK) {
        let chunk = mlx::slice(&ids, 1, from, count.min(from + CHUNK as i32))?;
        extend(model, &model.embed(&chunk)?, cache)?;
        eval(cache.arrays().into_iter().map(|array| &*array))?;
    }
    history.push(ids)?;
    cache.history = vec![history];
    Ok(())
}

/// Computes rows anew that the next `count` tokens take across the original context, or that have
/// come back from beyond it.
fn stay_exact(model: &dyn LanguageModel, cache: &mut Cache, count: i32) -> Result<()> {
    let Some(context) = model.original_context() else { return Ok(()) };
    let lengths: Vec<i32> = cache.positions().iter().map(|position| position + count).collect();
    let is_exact = |(history, length): (&History, &i32)| history.is_long == Some(*length > context);
    if cache.offset == 0 || cache.history.iter().zip(&lengths).all(is_exact) {
        return Ok(());
    }
    if let [length] = lengths[..] {
        return compute_anew(model, cache, length);
    }
    let rows = (0..lengths.len()).map(|row| {
        let mut part = cache.part(row)?;
        stay_exact(model, &mut part, count)?;
        Ok(part)
    });
    let rows: Result<Vec<Cache>> = rows.collect();
    *cache = Cache::join(rows?)?;
    Ok(())
}

/// Runs a part of a prompt at the end of a cache.
fn extend(model: &dyn LanguageModel, x: &Embedded, cache: &mut Cache) -> Result<Array> {
    let length = x.length() as i32;
    cache.reserve(cache.offset + length)?;
    let hidden = pass(model, x, cache)?;
    if cache.offset == 0 {
        // Its size is known only now, and nothing of it is computed yet.
        memory::allow(cache.bytes()).inspect_err(|_| cache.clear())?;
    }
    cache.advance(length)?;
    Ok(hidden)
}

fn pass(model: &dyn LanguageModel, x: &Embedded, cache: &mut Cache) -> Result<Array> {
    let mut step = Step::prefill(cache.offset, x.length() as i32);
    step.sequence_length = Some(cache.length_with(step.length));
    step.spans.clone_from(&x.spans);
    step.span_reach = x.span_reach;
    step.rotary = match &x.rotary {
        Some(rotary) => Some(Rotary::Each(rotary.positions.clone())),
        None => rotary_from(&step.position, cache)?,
    };
    if let Some(encoded) = &x.encoded {
        step.put(Encoded(encoded.clone()));
    }
    if let Some(mask) = &x.encoded_mask {
        step.put(EncodedMask(mask.clone()));
    }
    let hidden = model.forward(x, cache, &step)?;
    if let Some(rotary) = &x.rotary {
        let rows = x.ids.dim(0);
        let delta = vec![rotary.delta; rows as usize];
        cache.rotary_delta = Some(Array::from_slice(&delta, &[rows]));
    }
    Ok(hidden)
}

/// Where the rotary positions of a pass at `position` begin, if not there.
fn rotary_from(position: &Array, cache: &Cache) -> Result<Option<Rotary>> {
    let Some(delta) = &cache.rotary_delta else { return Ok(None) };
    Ok(Some(Rotary::From(position.add(delta)?)))
}

fn check_settled(cache: &Cache) -> Result<()> {
    match cache.verified {
        Some(_) => Err(Error::Internal("the tokens of a verify pass wait to be accepted".into())),
        None => Ok(()),
    }
}

/// The decode steps and verify passes of a model, compiled for each shape of a cache and replayed
/// from then on.
///
/// Building the graph of a step costs the host more than a small model costs the device; a
/// compiled step is built once and its operations are fused.
#[derive(Default)]
pub struct DecodeStep(Vec<(Shape, Compiled)>, Parameters);

/// What determines the shapes of a compiled pass.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Shape {
    /// The plan of the cache, with its capacity.
    plan: CachePlan,
    quantized: bool,
    batch: i32,
    /// How many positions the rows of the batch have.
    positions: usize,
    /// Whether rotary positions have a delta.
    has_rotary_delta: bool,
    /// How many arrays the fixed states have: none before media are read.
    fixed: usize,
    pass: Pass,
}

impl Shape {
    fn of(cache: &Cache, batch: i32, pass: Pass) -> Self {
        Shape {
            plan: cache.plan,
            quantized: cache.quantized,
            batch,
            positions: cache.positions().len(),
            has_rotary_delta: cache.rotary_delta.is_some(),
            fixed: cache.fork().fixed().0.iter().sum(),
            pass,
        }
    }
}

/// The kinds of compiled passes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pass {
    Decode,
    /// This number of tokens at once.
    Verify(i32),
    /// This number of tokens one by one, with the states after each.
    VerifyOneByOne(i32),
}

impl Pass {
    fn verify(cache: &Cache, length: i32) -> Self {
        if cache.verifies_at_once() { Pass::Verify(length) } else { Pass::VerifyOneByOne(length) }
    }

    fn length(self) -> i32 {
        match self {
            Pass::Decode => 1,
            Pass::Verify(length) | Pass::VerifyOneByOne(length) => length,
        }
    }
}

/// The number of shapes that stay compiled.
const KEPT: usize = 16;

/// The most tokens of a verify pass.
pub const MOST_DRAFT_TOKENS: i32 = 16;

impl DecodeStep {
    /// For a model with parameters, which the compiled passes take as inputs. Parameters that are not
    /// given here are constants of a compiled pass.
    pub fn with_parameters(parameters: Parameters) -> Self {
        DecodeStep(Vec::new(), parameters)
    }

    /// Whether the next decode step of the cache of one sequence is compiled already.
    pub(crate) fn has_compiled(&self, cache: &Cache) -> bool {
        self.knows(cache, Pass::Decode)
    }

    /// Whether the next verify pass over `length` tokens of the cache of one sequence is compiled
    /// already.
    pub(crate) fn has_compiled_verify(&self, cache: &Cache, length: i32) -> bool {
        self.knows(cache, Pass::verify(cache, length))
    }

    fn knows(&self, cache: &Cache, pass: Pass) -> bool {
        let shape = Shape::of(cache, 1, pass);
        cache.has_room(pass.length()) && self.0.iter().any(|(known, _)| *known == shape)
    }

    /// Runs one token of each row, `[batch, 1]`, which may still be on its way through the device,
    /// to logits `[batch, 1, vocabulary]`.
    ///
    /// # Errors
    /// [`Error::Mlx`]; [`Error::Internal`] when the cache is empty.
    pub fn run(
        &mut self,
        model: &Rc<dyn LanguageModel>,
        id: &Array,
        cache: &mut Cache,
    ) -> Result<Array> {
        stay_exact(&**model, cache, 1)?;
        let (logits, _) = self.replay(model, id, cache, Pass::Decode)?;
        cache.advance(1)?;
        cache.remember(id)?;
        Ok(logits)
    }

    /// Runs up to [`MOST_DRAFT_TOKENS`] tokens of each row, `[batch, length]`, to logits
    /// `[batch, length, vocabulary]`: those that as many decode steps would give. The positions of
    /// the cache stay as they are until [`Cache::accept`] says how many tokens it keeps.
    ///
    /// # Errors
    /// [`Error::Mlx`]; [`Error::Internal`] when the cache is empty or there are too many tokens.
    pub fn verify(
        &mut self,
        model: &Rc<dyn LanguageModel>,
        ids: &Array,
        cache: &mut Cache,
    ) -> Result<Array> {
        let length = ids.dim(1);
        if !(1..=MOST_DRAFT_TOKENS).contains(&length) {
            let reason = format!("a verify pass has 1 to {MOST_DRAFT_TOKENS} tokens, not {length}");
            return Err(Error::Internal(reason));
        }
        let crosses = model.original_context().is_some_and(|context| {
            let crosses = |position: &i32| (position + 1..position + length).contains(&context);
            cache.positions().iter().any(crosses)
        });
        if crosses || !cache.quantized && cache.is_due_after(length - 1) {
            return self.verify_by_steps(model, ids, cache);
        }
        stay_exact(&**model, cache, length)?;
        let pass = Pass::verify(cache, length);
        let at_once = matches!(pass, Pass::Verify(_));
        let before = cache.fork();
        let (logits, left) = self.replay(model, ids, cache, pass)?;
        cache.verified = Some(if at_once {
            cache.expect_trail();
            put(cache.trail(), left);
            Verified::Trail(ids.clone())
        } else {
            let last = cache.fork();
            let fork = |count: i32, volatile: Vec<Array>| {
                let mut fork = last.fork();
                put(fork.volatile_arrays(), volatile);
                fork.offset += count;
                if count > 0 {
                    fork.remember(&mlx::slice(ids, 1, 0, count)?)?;
                }
                Ok(fork)
            };
            let volatile = |mut cache: Cache| -> Vec<Array> {
                cache.volatile_arrays().into_iter().map(|array| array.clone()).collect()
            };
            let first = volatile(before);
            let each = left.chunks(first.len().max(1)).map(<[Array]>::to_vec);
            let mut after: Vec<Vec<Array>> = std::iter::once(first).chain(each).collect();
            after.resize(length as usize, Vec::new());
            after.push(volatile(last.fork()));
            let forks = (0..).zip(after).map(|(count, left)| fork(count, left));
            Verified::Forks(forks.collect::<Result<_>>()?)
        });
        Ok(logits)
    }

    /// A verify pass in which the cache becomes quantized, or is computed anew.
    fn verify_by_steps(
        &mut self,
        model: &Rc<dyn LanguageModel>,
        ids: &Array,
        cache: &mut Cache,
    ) -> Result<Array> {
        check_settled(cache)?;
        let (mut forks, mut logits) = (vec![cache.fork()], Vec::new());
        for at in 0..ids.dim(1) {
            let mut next = forks[at as usize].fork();
            logits.push(self.run(model, &mlx::slice(ids, 1, at, at + 1)?, &mut next)?);
            forks.push(next);
        }
        cache.verified = Some(Verified::Forks(forks));
        Ok(ops::concatenate(&logits, 1)?)
    }

    /// Runs a compiled pass; the cache gets its arrays. Returns the logits and what the pass gives
    /// beside the arrays of the cache.
    fn replay(
        &mut self,
        model: &Rc<dyn LanguageModel>,
        ids: &Array,
        cache: &mut Cache,
        pass: Pass,
    ) -> Result<(Array, Vec<Array>)> {
        if cache.offset == 0 {
            return Err(Error::Internal("a prompt comes before the first token".into()));
        }
        check_settled(cache)?;
        cache.reserve(cache.offset + pass.length())?;
        let positions = cache.positions();
        let (batch, rows) = (ids.dim(0), positions.len());
        if rows > 1 && rows != batch as usize {
            let reason = format!("tokens for {batch} rows, but the cache has {rows}");
            return Err(Error::Internal(reason));
        }
        let shape = Shape::of(cache, batch, pass);
        let place = self.0.iter().position(|(known, _)| *known == shape).unwrap_or_else(|| {
            tracing::debug!(?shape, "compiling a decode step");
            self.0.truncate(KEPT - 1);
            self.0.insert(0, (shape, compile(model.clone(), cache, pass, self.1.clone())));
            0
        });
        let compiled = &mut self.0[place].1;
        let position = Array::from_slice(&positions, &[rows as i32]);
        let mut inputs = vec![ids.clone(), position];
        inputs.extend(self.1.values());
        inputs.extend(cache.arrays().into_iter().map(|array| array.clone()));
        let mut outputs = compiled.call(&inputs)?;
        let states = outputs.split_off(1);
        let mut arrays = cache.arrays();
        let (count, logits) = (arrays.len(), outputs.pop().expect("the logits come first"));
        let left = states[count..].to_vec();
        arrays.iter_mut().zip(states).for_each(|(array, state)| **array = state);
        Ok((logits, left))
    }
}

fn put(arrays: Vec<&mut Array>, values: Vec<Array>) {
    arrays.into_iter().zip(values).for_each(|(array, value)| *array = value);
}

/// A pass for caches like this one: ids, positions and the arrays of the cache to logits, the arrays
/// of the cache, and what the pass sets aside.
fn compile(
    model: Rc<dyn LanguageModel>,
    cache: &Cache,
    pass: Pass,
    parameters: Parameters,
) -> Compiled {
    let mut template = cache.fork();
    // The compiled step must not keep the entries of the sequence it was made for.
    template.arrays().into_iter().for_each(|array| *array = Array::from_int(0));
    Compiled::new(move |inputs| {
        let [ids, position, rest @ ..] = inputs else {
            return Err(Error::Internal("a decode step has ids and positions".into()));
        };
        let position = mlx::in_device_memory(position)?;
        let (values, states) = rest.split_at(parameters.len());
        let mut cache = template.fork();
        put(cache.arrays(), states.to_vec());
        let forward = |ids: &Array, cache: &mut Cache, mut step: Step| {
            step.rotary = rotary_from(&step.position, cache)?;
            model.forward(&model.embed(ids)?, cache, &step)
        };
        let mut left = Vec::new();
        let mut run = || {
            let hidden = match pass {
                Pass::Decode => forward(ids, &mut cache, Step::decode(position.clone()))?,
                Pass::Verify(length) => {
                    let hidden = forward(ids, &mut cache, Step::verify(position.clone(), length))?;
                    left.extend(cache.trail().into_iter().map(|array| array.clone()));
                    hidden
                }
                Pass::VerifyOneByOne(length) => {
                    let mut hidden = Vec::new();
                    for at in 0..length {
                        let step = Step::decode(mlx::in_device_memory(
                            &position.add(Array::from_int(at))?,
                        )?);
                        hidden.push(forward(&mlx::slice(ids, 1, at, at + 1)?, &mut cache, step)?);
                        if at + 1 < length {
                            let volatile = cache.volatile_arrays();
                            left.extend(volatile.into_iter().map(|array| array.clone()));
                        }
                    }
                    ops::concatenate(&hidden, 1)?
                }
            };
            model.logits(&hidden)
        };
        let logits = parameters.with(values, &mut run)?;
        let mut outputs = vec![logits];
        outputs.extend(cache.arrays().into_iter().map(|array| array.clone()));
        outputs.append(&mut left);
        Ok(outputs)
    })
}
