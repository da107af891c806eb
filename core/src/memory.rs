//! How much memory the process takes, and how much it may.
//!
//! Buffers that are free again stay in MLX's cache for the next step, up to 256 MB or a sixteenth of
//! what MLX may take; all of them go back to the system when the engine has been
//! idle for a second and when a model is dropped.

use crate::{
    error::{Error, Result},
    generate::Engine,
    handle, mlx,
    model::{Cache, LanguageModel},
    state::{Bound, CachePlan, CacheQuantization},
};
use mlx_rs::memory;
use std::sync::{
    OnceLock,
    atomic::{AtomicUsize, Ordering},
};

/// More than this is seldom asked for again.
const FREE_BUFFERS: usize = 256 << 20;

static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

/// What arrays take, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// Weights, caches, and what is being computed.
    pub active: usize,
    /// Buffers that are free again and not yet given back.
    pub free: usize,
    /// The most that was active at once since the last generation began.
    pub peak: usize,
    /// What may be active, if there is a limit.
    pub limit: Option<usize>,
}

/// What one model takes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelMemory {
    /// Its weights.
    pub weights: usize,
    /// What its sessions remember.
    pub caches: usize,
}

/// What all models and sessions of this process take now.
///
/// # Errors
/// [`Error::Mlx`].
pub fn memory_use() -> Result<MemoryUse> {
    let limit = LIMIT.load(Ordering::Acquire);
    Ok(MemoryUse {
        active: memory::active_memory()?,
        free: memory::cache_memory()?,
        peak: memory::peak_memory()?,
        limit: (limit != usize::MAX).then_some(limit),
    })
}

/// How many bytes all models and sessions of this process may take together; `None`, the default,
/// is no limit. The system ends whole processes, so there is no limit for a single model.
///
/// A model that does not fit is not loaded and a sequence that does not fit does not go on, each
/// with [`Error::MemoryLimit`]; what is there already stays.
///
/// # Errors
/// [`Error::Mlx`].
pub fn set_memory_limit(bytes: Option<usize>) -> Result<()> {
    static USUAL: OnceLock<usize> = OnceLock::new();
    let usual = *USUAL.get_or_init(|| memory::memory_limit().unwrap_or(usize::MAX));
    LIMIT.store(bytes.unwrap_or(usize::MAX), Ordering::Release);
    memory::set_memory_limit(bytes.map_or(usual, |bytes| bytes.min(usual)))?;
    bound_free_buffers()
}

/// Gives back at once what can be computed again: buffers that are free, and the positions that
/// sessions could have gone back to. This is for a system that is short of memory, and works while
/// the engine is paused.
///
/// # Errors
/// [`Error::Mlx`].
pub async fn shrink_caches() -> Result<()> {
    let shrink = || {
        for loaded in handle::all() {
            for slot in loaded.sessions.borrow().values() {
                slot.memory.borrow_mut().forget_snapshots();
            }
        }
        mlx::release_memory()
    };
    Engine::get()?.run_at_once(shrink).await
}

/// An error unless so many more bytes are allowed.
pub(crate) fn allow(needed: usize) -> Result<()> {
    let limit = LIMIT.load(Ordering::Acquire);
    if limit == usize::MAX {
        return Ok(());
    }
    let used = memory::active_memory()?;
    if used.saturating_add(needed) > limit {
        return Err(Error::MemoryLimit { needed, used, limit });
    }
    Ok(())
}

/// Bounds the buffers that MLX keeps.
pub(crate) fn bound_free_buffers() -> Result<()> {
    memory::set_cache_limit(FREE_BUFFERS.min(memory::memory_limit()? / 16))?;
    Ok(())
}

impl CachePlan {
    /// The plan that loses least of those whose cache takes at most `bytes` for so many positions:
    /// everything in full precision, in 8 bits or in 4, else no more than the latest positions, as
    /// many as fit. On the engine's thread.
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
                // What does not divide the heads of this model is no choice.
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

/// The first positions, which stay whatever is dropped: as many as mlx-lm keeps.
const KEPT: usize = 4;
