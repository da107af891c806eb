//! Hosts that ask for a pause with `Retry-After`. No connection of this process sends such a host a
//! request before the pause is over.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The end of each host's pause.
static ENDS: Mutex<BTreeMap<String, Instant>> = Mutex::new(BTreeMap::new());

fn ends() -> MutexGuard<'static, BTreeMap<String, Instant>> {
    ENDS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins or prolongs the pause of a host.
pub(super) fn begin(host: String, pause: Duration) {
    let end = Instant::now() + pause;
    let mut ends = ends();
    let known = ends.entry(host).or_insert(end);
    *known = end.max(*known);
}

/// How long a request to a host has to wait.
pub(super) fn remaining(host: &str) -> Duration {
    let (now, mut ends) = (Instant::now(), ends());
    ends.retain(|_, end| *end > now);
    ends.get(host).map_or(Duration::ZERO, |end| *end - now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_the_longest_that_was_asked_for() {
        let host = "pauses.test";
        assert_eq!(remaining(host), Duration::ZERO);
        begin(host.into(), Duration::from_secs(20));
        begin(host.into(), Duration::from_secs(5));
        assert!(remaining(host) > Duration::from_secs(15));
        assert_eq!(remaining("other.test"), Duration::ZERO);
    }
}
