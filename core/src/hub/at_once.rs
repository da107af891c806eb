//! Short requests, several at the same time.

use crate::error::{Error, Result};
use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

const CONNECTIONS: usize = 8;

/// Calls `each` for every item, several at the same time, until one fails.
pub(super) fn for_each_at_once<T: Sync>(
    items: &[T],
    each: impl Fn(&T) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = each(item) {
                next.store(items.len(), Ordering::Relaxed);
                return Err(error);
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> =
            (0..CONNECTIONS.min(items.len())).map(|_| scope.spawn(work)).collect();
        let panicked = |_| Err(Error::Internal("a thread that asks a hub panicked".into()));
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(panicked))
    })
}
