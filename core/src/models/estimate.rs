//! The bytes of a cache, and the most precise plan that fits.

use crate::{
    error::{Error, Result},
    layers::{
        attention::cross::NothingEncoded,
        cache_plan::{Bound, CachePlan, CacheQuantization},
        step::Step,
    },
    models::{cache::Cache, language::LanguageModel},
};
use mlx_rs::Array;

impl Cache {
    /// A cache of `plan` whose arrays are never computed, and so take no memory: the caller reads
    /// their shapes.
    ///
    /// # Errors
    /// [`Error::Option`] when the plan does not fit the model; [`Error::Mlx`].
    pub(crate) fn sketch(
        model: &dyn LanguageModel,
        plan: &CachePlan,
        quantized: bool,
    ) -> Result<Cache> {
        let mut cache = model.cache(plan);
        cache.plan.capacity = plan.capacity.max(1);
        cache.fit()?;
        let step = Step::prefill(0, 1);
        step.put(NothingEncoded);
        model.forward(&model.embed(&Array::from_slice(&[0u32], &[1, 1]))?, &mut cache, &step)?;
        if quantized {
            cache.quantize()?;
        }
        Ok(cache)
    }

    /// The bytes of a cache of `plan` for this many positions, after it has been quantized.
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
}

impl CachePlan {
    /// The plan that loses least of those whose cache takes at most `bytes` for this many positions:
    /// all positions in full precision, in 8 bits or in 4, else the latest positions, as many as
    /// fit. Call it on the engine's thread.
    ///
    /// # Errors
    /// [`Error::MemoryLimit`] when the model cannot do with that at all.
    pub fn within(model: &dyn LanguageModel, positions: usize, bytes: usize) -> Result<CachePlan> {
        const LEAST: usize = 128;
        let whole = CachePlan::new(positions);
        let mut plans = vec![whole];
        for bits in [8, 4] {
            for group in [64, 32] {
                let plan = CachePlan {
                    quantization: Some(CacheQuantization::new(bits, group, 0)?),
                    ..whole
                };
                // The group size must divide the heads of the model.
                if Cache::estimate(model, &plan, 1).is_ok() {
                    plans.push(plan);
                    break;
                }
            }
        }
        let smallest = *plans.last().expect("the whole one is there");
        let mut latest = positions / 2;
        while latest >= LEAST {
            plans.push(CachePlan { bound: Some(Bound::new(latest, KEPT)?), ..smallest });
            latest /= 2;
        }
        let mut needed = 0;
        for plan in plans {
            needed = Cache::estimate(model, &plan, positions)?;
            if needed <= bytes {
                return Ok(plan);
            }
        }
        Err(Error::MemoryLimit { needed, used: 0, limit: bytes })
    }
}

/// The attention sinks of a bounded cache, as many as in mlx-lm.
const KEPT: usize = 4;
