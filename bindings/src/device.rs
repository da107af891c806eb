//! The device and its memory, which all models share.

use crate::error::MynahError;
use mynah::Engine;

/// The memory of all arrays, in bytes.
#[derive(Clone, Copy, Debug, uniffi::Record)]
pub struct MemoryUse {
    /// Weights, KV caches and intermediate results.
    pub active: u64,
    /// Freed buffers that MLX keeps for reuse.
    pub free: u64,
    /// The peak of `active` since the last generation began.
    pub peak: u64,
    /// The limit of `active`, if one is set.
    pub limit: Option<u64>,
}

/// Checks whether this device can run models.
///
/// # Errors
/// Why it cannot.
#[uniffi::export]
pub fn check_device() -> Result<(), MynahError> {
    Engine::get()?;
    Ok(())
}

/// The memory of all models and sessions of this process.
///
/// # Errors
/// When the device fails.
#[uniffi::export]
pub fn memory_use() -> Result<MemoryUse, MynahError> {
    let mynah::MemoryUse { active, free, peak, limit } = mynah::memory_use()?;
    Ok(MemoryUse {
        active: active as u64,
        free: free as u64,
        peak: peak as u64,
        limit: limit.map(|limit| limit as u64),
    })
}

/// Limits the bytes of all models and sessions together; there is no limit by default.
///
/// # Errors
/// When the device fails.
#[uniffi::export]
pub fn set_memory_limit(bytes: Option<u64>) -> Result<(), MynahError> {
    let bytes = bytes.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    Ok(mynah::set_memory_limit(bytes)?)
}

/// Frees buffers and caches that can be computed again.
///
/// # Errors
/// When the device fails.
#[uniffi::export]
pub async fn shrink_caches() -> Result<(), MynahError> {
    Ok(mynah::shrink_caches().await?)
}

/// Finishes the current step and computes nothing more until [`resume`]: the device is idle when this
/// returns. Generations and loads wait and lose nothing.
///
/// # Errors
/// When the device cannot be used.
#[uniffi::export]
pub async fn pause() -> Result<(), MynahError> {
    Ok(Engine::get()?.pause().await?)
}

/// Prepares for a pause that must not take long: until [`resume`], nothing is queued ahead, and prompts
/// are computed in short chunks.
///
/// # Errors
/// When the device cannot be used.
#[uniffi::export]
pub fn expect_pause() -> Result<(), MynahError> {
    Engine::get()?.expect_pause();
    Ok(())
}

/// Continues after [`pause`] and [`expect_pause`].
///
/// # Errors
/// When the device cannot be used.
#[uniffi::export]
pub fn resume() -> Result<(), MynahError> {
    Engine::get()?.resume();
    Ok(())
}
