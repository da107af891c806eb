//! How far a download is.

use std::time::{Duration, Instant};

/// How far the download of a model is, over all of its files.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// Bytes that are in the cache, those of earlier attempts included. It never falls.
    pub done: u64,
    /// Bytes of all files that the model needs.
    pub total: u64,
    /// Bytes that arrive in a second, over the last few seconds.
    pub bytes_per_second: f64,
    /// How long it will take at this speed, once there is one.
    pub remaining: Option<Duration>,
    /// A file that is being fetched, such as `model-00001-of-00002.safetensors`.
    pub file: String,
}

impl Progress {
    /// The share that is done, from 0 to 1.
    pub fn share(&self) -> f64 {
        if self.total == 0 { 1.0 } else { self.done as f64 / self.total as f64 }
    }
}

/// Makes events of bytes: at most twenty a second, with a speed that does not jump.
pub(super) struct Meter {
    total: u64,
    shown: u64,
    file: String,
    speed: f64,
    /// Since when how many bytes count for the next measurement of the speed.
    measured: (Instant, u64),
    next: Instant,
}

impl Meter {
    const INTERVAL: Duration = Duration::from_millis(50);
    /// How fast older measurements fade, in seconds.
    const MEMORY: f64 = 3.0;

    /// Of `total` bytes `done` are there from earlier.
    pub fn new(total: u64, done: u64, now: Instant) -> Self {
        Meter {
            total,
            shown: done,
            file: String::new(),
            speed: 0.0,
            measured: (now, done),
            next: now,
        }
    }

    /// The event that is due when `done` bytes are there, if one is.
    pub fn event(&mut self, done: u64, file: &str, now: Instant) -> Option<Progress> {
        if now < self.next {
            return None;
        }
        self.next = now + Self::INTERVAL;
        self.measure(done, now);
        // The last event is that of `finish`, when everything is verified and published.
        self.shown = self.shown.max(done.min(self.total.saturating_sub(1)));
        let left = self.total - self.shown;
        let seconds = (self.speed >= 1.0).then(|| left as f64 / self.speed);
        let remaining = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        if self.file != file {
            self.file = file.into();
        }
        Some(self.progress(remaining))
    }

    /// The last event.
    pub fn finish(mut self) -> Progress {
        self.shown = self.total;
        self.progress(Some(Duration::ZERO))
    }

    fn progress(&self, remaining: Option<Duration>) -> Progress {
        Progress {
            done: self.shown,
            total: self.total,
            bytes_per_second: self.speed,
            remaining,
            file: self.file.clone(),
        }
    }

    fn measure(&mut self, done: u64, now: Instant) {
        let (since, before) = self.measured;
        let seconds = (now - since).as_secs_f64();
        if seconds < 0.25 {
            return;
        }
        // Bytes are counted anew when a file starts anew.
        let current = done.saturating_sub(before) as f64 / seconds;
        let weight = if self.speed == 0.0 { 1.0 } else { 1.0 - (-seconds / Self::MEMORY).exp() };
        self.speed += weight * (current - self.speed);
        self.measured = (now, done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_rare_and_never_fall() {
        let start = Instant::now();
        let mut meter = Meter::new(1_000, 100, start);
        let mut events = Vec::new();
        for ms in 0..1_000 {
            let done = if ms < 500 { 100 + ms } else { ms - 400 };
            events.extend(meter.event(done, "f", start + Duration::from_millis(ms)));
        }
        assert_eq!(events.len(), 20);
        assert!(events.is_sorted_by_key(|event| event.done));
        assert_eq!(events.last().map(|event| event.done), Some(600 - 50));
        let last = meter.finish();
        assert_eq!((last.done, last.share(), last.remaining), (1_000, 1.0, Some(Duration::ZERO)));
    }

    #[test]
    fn the_speed_is_that_of_new_bytes_and_changes_smoothly() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut meter = Meter::new(100_000, 50_000, start);
        assert_eq!(meter.event(50_000, "f", at(100)).unwrap().remaining, None);
        let event = meter.event(51_000, "f", at(1_000)).unwrap();
        assert_eq!(event.bytes_per_second, 1_000.0);
        assert_eq!(event.remaining, Some(Duration::from_secs(49)));
        // A second without a byte, of a memory of three.
        let event = meter.event(51_000, "f", at(2_000)).unwrap();
        assert!((event.bytes_per_second - 1_000.0 * (-1.0f64 / 3.0).exp()).abs() < 1e-6);
    }

    #[test]
    fn all_bytes_are_not_yet_the_end() {
        let start = Instant::now();
        let mut meter = Meter::new(10, 0, start);
        assert_eq!(meter.event(10, "f", start).unwrap().done, 9);
        assert_eq!(Meter::new(0, 0, start).finish().share(), 1.0);
    }
}
