//! The memory of the process: how much it uses, and its limit.
//!
//! MLX keeps freed buffers for the next step, up to 256 MB or a sixteenth of the memory that it may
//! use. They return to the system when the engine has been idle for a second and when a model is
//! dropped.

use crate::error::{Error, Result};
use mlx_rs::memory;
use std::sync::{
    OnceLock,
    atomic::{AtomicUsize, Ordering},
};

/// The largest cache of freed buffers; larger ones are seldom reused.
const FREE_BUFFERS: usize = 256 << 20;

static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

/// The memory of arrays, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// Memory in use: weights, caches and intermediate results.
    pub active: usize,
    /// Freed buffers that MLX keeps.
    pub free: usize,
    /// The peak of `active` since the last generation started.
    pub peak: usize,
    /// The limit of `active`.
    pub limit: Option<usize>,
}

/// The memory that all models and sessions of this process use now.
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

/// Sets the number of bytes that all models and sessions of this process may use together; `None`,
/// the default, sets no limit. The system ends whole processes, so there is no limit for a single
/// model.
///
/// A model that does not fit is not loaded, and a sequence that does not fit does not continue;
/// both return [`Error::MemoryLimit`] and keep what is loaded.
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

/// Checks that `needed` more bytes are within the limit.
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

/// Limits the freed buffers that MLX keeps.
pub(crate) fn bound_free_buffers() -> Result<()> {
    memory::set_cache_limit(FREE_BUFFERS.min(memory::memory_limit()? / 16))?;
    Ok(())
}
