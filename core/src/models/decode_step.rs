//! Prefill, and the decode step that is compiled as a whole.

use crate::{
    error::{Error, Result},
    layers::{cache_plan::CachePlan, step::Step},
    mlx::{compiled::Compiled, memory, parameter::Parameters},
    models::{cache::Cache, language::LanguageModel},
};
use mlx_rs::Array;
use std::rc::Rc;

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

pub(super) fn pass(model: &dyn LanguageModel, ids: &Array, cache: &mut Cache) -> Result<Array> {
    let step = Step::prefill(cache.offset, ids.dim(1));
    model.forward(&model.embed(ids)?, cache, &step)
}

/// The decode steps of a model, compiled for each shape of a cache and replayed from then on.
///
/// Building the graph of a step costs the host more than a small model costs the device; a
/// compiled step is built once and its operations are fused.
#[derive(Default)]
pub struct DecodeStep(Vec<(Shape, Compiled)>, Parameters);

/// What the shapes of a step follow from: the plan of the cache with its capacity, whether it is
/// quantized already, and the size of the batch.
type Shape = (CachePlan, bool, i32);

/// Sequences of so many lengths can take turns without compiling anew.
const KEPT: usize = 4;

impl DecodeStep {
    /// For a model with parameters, which the compiled steps take as inputs. Parameters that are not
    /// given here are constants of a compiled step.
    pub fn with_parameters(parameters: Parameters) -> Self {
        DecodeStep(Vec::new(), parameters)
    }

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
            self.0.insert(0, (shape, compile(model.clone(), cache, self.1.clone())));
            0
        });
        let compiled = &mut self.0[place].1;
        let position = Array::from_slice(&[cache.offset], &[1]);
        let mut inputs = vec![id.clone(), position];
        inputs.extend(self.1.values());
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
fn compile(model: Rc<dyn LanguageModel>, cache: &Cache, parameters: Parameters) -> Compiled {
    let mut template = cache.fork();
    // The step must not keep what the sequence it was made for remembers.
    template.arrays().into_iter().for_each(|array| *array = Array::from_int(0));
    Compiled::new(move |inputs| {
        let [id, position, rest @ ..] = inputs else {
            return Err(Error::Internal("a decode step has an id and a position".into()));
        };
        let (values, states) = rest.split_at(parameters.len());
        let mut cache = template.fork();
        for (array, state) in cache.arrays().into_iter().zip(states) {
            *array = state.clone();
        }
        let step = Step::decode(position.clone());
        let logits = parameters.with(values, || {
            model.logits(&model.forward(&model.embed(id)?, &mut cache, &step)?)
        })?;
        let mut outputs = vec![logits];
        outputs.extend(cache.arrays().into_iter().map(|array| array.clone()));
        Ok(outputs)
    })
}
