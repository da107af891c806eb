//! Prefill, and the decode step that is compiled as a whole.

use crate::{
    error::{Error, Result},
    layers::{
        attention::cross::Encoded,
        cache_plan::CachePlan,
        embedded::Embedded,
        step::{Rotary, Step},
    },
    mlx::{compiled::Compiled, memory},
    models::{cache::Cache, language::LanguageModel},
};
use mlx_rs::Array;
use std::rc::Rc;

/// Runs a part of a prompt of text: ids `[batch, length]` to hidden states.
///
/// # Errors
/// [`Error::MemoryLimit`], [`Error::Mlx`].
pub fn prefill(model: &dyn LanguageModel, ids: &Array, cache: &mut Cache) -> Result<Array> {
    prefill_embedded(model, &model.embed(ids)?, cache)
}

/// Runs a part of a prompt, which cuts no span, to hidden states `[batch, length, width]`. A part
/// without rotary positions of its own goes on with the delta of the cache.
///
/// # Errors
/// [`Error::MemoryLimit`], [`Error::Mlx`].
pub fn prefill_embedded(
    model: &dyn LanguageModel,
    x: &Embedded,
    cache: &mut Cache,
) -> Result<Array> {
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
    step.spans.clone_from(&x.spans);
    step.rotary = match &x.rotary {
        Some(rotary) => Some(Rotary::Each(rotary.positions.clone())),
        None => rotary_from(&step.position, cache)?,
    };
    if let Some(encoded) = &x.encoded {
        step.put(Encoded(encoded.clone()));
    }
    let hidden = model.forward(x, cache, &step)?;
    if let Some(rotary) = &x.rotary {
        cache.rotary_delta = Some(Array::from_slice(&[rotary.delta], &[1]));
    }
    Ok(hidden)
}

/// Where the rotary positions of a pass at `position` begin, if not there.
fn rotary_from(position: &Array, cache: &Cache) -> Result<Option<Rotary>> {
    let Some(delta) = &cache.rotary_delta else { return Ok(None) };
    Ok(Some(Rotary::From(position.add(delta)?)))
}

/// The decode steps of a model, compiled for each shape of a cache and replayed from then on.
///
/// Building the graph of a step costs the host more than a small model costs the device; a
/// compiled step is built once and its operations are fused.
#[derive(Default)]
pub struct DecodeStep(Vec<(Shape, Compiled)>);

/// What the shapes of a step follow from: the plan of the cache with its capacity, whether it is
/// quantized already, the size of the batch, and whether rotary positions have a delta.
type Shape = (CachePlan, bool, i32, bool);

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
        let shape = (cache.plan, cache.quantized, id.dim(0), cache.rotary_delta.is_some());
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
        let mut step = Step::decode(position.clone());
        step.rotary = rotary_from(position, &cache)?;
        let hidden = model.forward(&model.embed(id)?, &mut cache, &step)?;
        let mut outputs = vec![model.logits(&hidden)?];
        outputs.extend(cache.arrays().into_iter().map(|array| array.clone()));
        Ok(outputs)
    })
}
