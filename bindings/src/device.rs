//! What all models share: the device and its memory.

use crate::error::MynahError;
use mynah::Engine;

/// What arrays take, in bytes.
#[derive(Clone, Copy, Debug, uniffi::Record)]
pub struct MemoryUse {
    /// Weights, caches, and what is being computed.
    pub active: u64,
    /// Buffers that are free again and not yet given back.
    pub free: u64,
    /// The most that was active at once since the last generation began.
    pub peak: u64,
    /// What may be active, if there is a limit.
    pub limit: Option<u64>,
}

/// Whether models can run here.
///
/// # Errors
/// Why not.
#[uniffi::export]
pub fn check_device() -> Result<(), MynahError> {
    Engine::get()?;
    Ok(())
}

/// What all models and sessions of this process take now.
///
/// # Errors
/// When the device has failed.
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

/// How many bytes all models and sessions may take together; by default there is no limit.
///
/// # Errors
/// When the device has failed.
#[uniffi::export]
pub fn set_memory_limit(bytes: Option<u64>) -> Result<(), MynahError> {
    let bytes = bytes.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    Ok(mynah::set_memory_limit(bytes)?)
}

/// Gives back at once what can be computed again.
///
/// # Errors
/// When the device has failed.
#[uniffi::export]
pub async fn shrink_caches() -> Result<(), MynahError> {
    Ok(mynah::shrink_caches().await?)
}

/// Finishes the step that is being computed, and computes nothing more until [`resume`]: when this
/// returns, the device is idle. Generations and loading wait and lose nothing.
///
/// # Errors
/// When the device has failed.
#[uniffi::export]
pub async fn pause() -> Result<(), MynahError> {
    Ok(Engine::get()?.pause().await?)
}

/// Goes on after [`pause`].
///
/// # Errors
/// When the device cannot be used.
#[uniffi::export]
pub fn resume() -> Result<(), MynahError> {
    Engine::get()?.resume();
    Ok(())
}
