//! How much memory the process takes, and how much it may.
//!
//! Buffers that are free again stay in MLX's cache for the next step, up to 256 MB or a sixteenth of
//! what MLX may take; all of them go back to the system when the engine has been
//! idle for a second and when a model is dropped.

use crate::error::{Error, Result};
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
