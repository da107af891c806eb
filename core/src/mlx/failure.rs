//! Failures of evaluations.
//!
//! MLX hands a failure of queued work to whichever call waits for the device next, and forgets it.
//! This module keeps the failure until the engine takes it, even if that call drops its error.

use std::cell::RefCell;

/// The files of mlx-c whose functions evaluate arrays or wait for the device. The functions of all
/// others only build graphs, and their errors say nothing about queued work.
const EVALUATING: [&str; 3] = ["/transforms.cpp:", "/array.cpp:", "/stream.cpp:"];

thread_local! {
    static FAILURE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Looks at a message of mlx-c, which ends with the place in its source that caught the exception.
pub(super) fn note(message: &str) {
    let (what, place) = message.rsplit_once(" at ").unwrap_or((message, ""));
    if EVALUATING.iter().any(|file| place.contains(file)) {
        FAILURE.with_borrow_mut(|failure| failure.get_or_insert_with(|| what.into()).len());
    }
}

/// Whether an evaluation on this thread has failed since the last call of [`take_failure`].
pub(crate) fn has_failed() -> bool {
    FAILURE.with_borrow(Option::is_some)
}

/// What the first failed evaluation has said since the last call.
pub(crate) fn take_failure() -> Option<String> {
    FAILURE.take()
}
