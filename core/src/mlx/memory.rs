//! The memory of the process: how much it uses, and its limit.
//!
//! MLX keeps freed buffers for the next step, up to 256 MB or a sixteenth of the memory that it may
//! use. They return to the system when the engine has been idle for a second and when a model is
//! dropped.

use crate::{
    error::{Error, Result},
    mlx::device,
};
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

/// Sets the number of bytes that all models and sessions of this process may use together; `None` sets
/// no limit. The default is no limit, and on iOS nine tenths of what the system lets the process use
/// when the engine starts. The system ends whole processes, so there is no limit for a single model.
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

/// Sets the default limit.
pub(crate) fn limit_by_default() -> Result<()> {
    match device::process_limit() {
        // Some is left for what is no array.
        Some(bytes) => set_memory_limit(Some((bytes / 10 * 9) as usize)),
        None => bound_free_buffers(),
    }
}

/// Keeps the arrays of large models where the GPU finds them at once, as mlx-lm does while it generates:
/// the system would otherwise page weights out that no step has used for a while. On macOS; before
/// macOS 15 it does nothing.
///
/// Small models stay in memory by themselves, and other programs need what a wired model takes; so
/// the engine wires from a quarter of the memory on, and only while it computes.
pub(crate) fn wire_if_large() -> Result<()> {
    if cfg!(target_os = "macos")
        && let Some(most) = device::device_memory()
        && memory::active_memory()? as u64 > most / 4
    {
        memory::set_wired_limit(most as usize)?;
    }
    Ok(())
}

/// Ends [`wire_if_large`].
pub(crate) fn unwire() -> Result<()> {
    if cfg!(target_os = "macos") {
        memory::set_wired_limit(0)?;
    }
    Ok(())
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
fn bound_free_buffers() -> Result<()> {
    memory::set_cache_limit(FREE_BUFFERS.min(memory::memory_limit()? / 16))?;
    Ok(())
}
