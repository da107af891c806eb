//! How far a download is: counting the bytes of all files, and events with a smooth speed.

use crate::hub::listing::RemoteFile;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How far the download of a model is, over all of its files.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// Bytes in the cache, including those of earlier attempts. It never decreases.
    pub done: u64,
    /// Bytes of all files that the model needs.
    pub total: u64,
    /// Bytes received per second, averaged over the last few seconds.
    pub bytes_per_second: f64,
    /// The remaining time at this speed; `None` until a speed is known.
    pub remaining: Option<Duration>,
    /// A file that is being downloaded, such as `model-00001-of-00002.safetensors`.
    pub file: String,
}

impl Progress {
    /// The share that is done, from 0 to 1.
    pub fn share(&self) -> f64 {
        if self.total == 0 { 1.0 } else { self.done as f64 / self.total as f64 }
    }
}

/// Receives the progress events of a download.
pub(super) type ProgressHandler = Box<dyn FnMut(Progress) + Send>;

/// Counts the received bytes of all files of a download and reports them.
pub(super) struct ProgressCounter(Option<Mutex<Counts>>);

struct Counts {
    meter: ProgressMeter,
    /// Bytes of the files that were complete at the start.
    complete: u64,
    /// Bytes received of each other file.
    received: HashMap<String, u64>,
    handler: Arc<Mutex<ProgressHandler>>,
}

impl ProgressCounter {
    /// A counter that reports nothing.
    pub fn silent() -> Self {
        ProgressCounter(None)
    }

    /// A counter for a download of `total` bytes, of which `complete` are in finished files and
    /// `received` in unfinished ones.
    pub fn new(
        total: u64,
        complete: u64,
        received: HashMap<String, u64>,
        handler: Arc<Mutex<ProgressHandler>>,
    ) -> Self {
        let done = complete + received.values().sum::<u64>();
        let meter = ProgressMeter::new(total, done, Instant::now());
        ProgressCounter(Some(Mutex::new(Counts { meter, complete, received, handler })))
    }

    /// Sets the number of bytes received of a file.
    pub fn set_received(&self, file: &RemoteFile, bytes: u64) {
        let Some(counts) = &self.0 else { return };
        let mut counts = lock(counts);
        counts.received.insert(file.name.clone(), bytes);
        let done = counts.complete + counts.received.values().sum::<u64>();
        if let Some(event) = counts.meter.event(done, &file.name, Instant::now()) {
            lock(&counts.handler)(event);
        }
    }

    /// Reports the last event: all files are verified and in the cache.
    pub fn finish(self) {
        let Some(counts) = self.0 else { return };
        let counts = counts.into_inner().unwrap_or_else(PoisonError::into_inner);
        let event = counts.meter.finish();
        lock(&counts.handler)(event);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Turns byte counts into events: at most twenty a second, with an exponentially smoothed speed.
struct ProgressMeter {
    total: u64,
    shown: u64,
    file: String,
    speed: f64,
    /// When the speed was last measured, and how many bytes were done then.
    measured: (Instant, u64),
    next: Instant,
}

impl ProgressMeter {
    const INTERVAL: Duration = Duration::from_millis(50);
    /// The time constant of the smoothing, in seconds.
    const SMOOTHING: f64 = 3.0;

    /// A meter for `total` bytes, of which earlier downloads brought `done`.
    fn new(total: u64, done: u64, now: Instant) -> Self {
        ProgressMeter {
            total,
            shown: done,
            file: String::new(),
            speed: 0.0,
            measured: (now, done),
            next: now,
        }
    }

    /// The event for `done` bytes; `None` if the previous event is too recent.
    fn event(&mut self, done: u64, file: &str, now: Instant) -> Option<Progress> {
        if now < self.next {
            return None;
        }
        self.next = now + Self::INTERVAL;
        self.measure(done, now);
        // Only `finish` reports all bytes, after every file is verified and has its name.
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
    fn finish(mut self) -> Progress {
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
        // The count falls when a damaged file is downloaded again from its start.
        let current = done.saturating_sub(before) as f64 / seconds;
        let weight = if self.speed == 0.0 { 1.0 } else { 1.0 - (-seconds / Self::SMOOTHING).exp() };
        self.speed += weight * (current - self.speed);
        self.measured = (now, done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_events_are_rare_and_never_decrease() {
        let start = Instant::now();
        let mut meter = ProgressMeter::new(1_000, 100, start);
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
    fn the_speed_counts_new_bytes_and_is_smoothed() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut meter = ProgressMeter::new(100_000, 50_000, start);
        assert_eq!(meter.event(50_000, "f", at(100)).unwrap().remaining, None);
        let event = meter.event(51_000, "f", at(1_000)).unwrap();
        assert_eq!(event.bytes_per_second, 1_000.0);
        assert_eq!(event.remaining, Some(Duration::from_secs(49)));
        // One second without a byte, at a time constant of three.
        let event = meter.event(51_000, "f", at(2_000)).unwrap();
        assert!((event.bytes_per_second - 1_000.0 * (-1.0f64 / 3.0).exp()).abs() < 1e-6);
    }

    #[test]
    fn only_the_last_event_reports_all_bytes() {
        let start = Instant::now();
        let mut meter = ProgressMeter::new(10, 0, start);
        assert_eq!(meter.event(10, "f", start).unwrap().done, 9);
        assert_eq!(ProgressMeter::new(0, 0, start).finish().share(), 1.0);
    }
}
