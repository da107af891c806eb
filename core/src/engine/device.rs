//! Whether the device is idle, and whether it has failed, as the engine thread knows it.
//!
//! MLX reports a failure of queued work once, to whichever call waits for the device next; what the
//! failed work should have computed then reads as numbers. So a failure is an event of the engine: all
//! tasks drop what they have queued and compute it again from their tokens.

use crate::{
    error::{Error, Result},
    mlx,
};
use std::cell::Cell;

thread_local! {
    /// Whether something may be queued on the device.
    static IS_BUSY: Cell<bool> = const { Cell::new(false) };
    /// Whether a failure has been met that the tasks have not been told of.
    static IS_UNTOLD: Cell<bool> = const { Cell::new(false) };
}

/// Precedes everything that may compute.
pub(super) fn begin() {
    IS_BUSY.set(true);
}

/// Waits until the device is idle. Then everything that was queued is computed, or has failed.
///
/// # Errors
/// [`Error::Device`].
pub(super) fn settle() -> Result<()> {
    if IS_BUSY.replace(false) {
        mlx::synchronize().ok();
    }
    match mlx::take_failure() {
        None => Ok(()),
        Some(reason) => {
            IS_UNTOLD.set(true);
            drain();
            Err(Error::device(reason))
        }
    }
}

/// Whether the last call of MLX that computes has failed, as opposed to one that refuses an operation.
pub(super) fn has_failed() -> bool {
    mlx::has_failed()
}

/// Whether something that was queued has failed since this was called last. If so, nothing is queued
/// any more.
pub(super) fn has_failed_since_asked() -> bool {
    if mlx::has_failed() {
        settle().ok();
    }
    IS_UNTOLD.take()
}

/// Runs a job with nothing else on the device, and waits for what it computes.
///
/// # Errors
/// Those of the job; [`Error::Device`] when the device fails meanwhile.
pub(crate) fn alone<T>(job: impl FnOnce() -> Result<T>) -> Result<T> {
    // A failure of what was queued before is not the job's.
    settle().ok();
    let was_untold = IS_UNTOLD.get();
    begin();
    let result = job();
    let settled = settle();
    // Nor is the job's a failure of theirs.
    IS_UNTOLD.set(was_untold);
    result.and_then(|value| settled.map(|()| value))
}

/// Waits until no queued work is left that could report a failure.
fn drain() {
    /// One for each of the streams that hand on a failure, and one to see that there is none.
    const ATTEMPTS: usize = 3;
    for _ in 0..ATTEMPTS {
        if mlx::synchronize().is_ok() {
            break;
        }
    }
    mlx::take_failure();
}
