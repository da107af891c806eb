//! Text that a model invents in silence: segments of improbable, very short or very long words with silence
//! around them, as the code of OpenAI finds them.

use crate::generate::transcription::transcript::{Segment, Word};
use std::ops::Range;

/// Marks that are no words.
const MARKS: &str = "\"'“¿([{-\"'.。,，!！?？:：”)]}、";
/// Words of a segment that are looked at.
const LOOKED_AT: usize = 8;
/// A word shorter than this is suspicious, in seconds.
const SHORT: f64 = 0.133;
/// A word longer than this is.
const LONG: f64 = 2.0;
/// The start and the end of a window are silent from this distance on, in seconds.
const EDGE: f64 = 2.0;

/// Where silence may be around the segments of a window; all in seconds.
pub(super) struct Silence {
    /// Silence is at least this long.
    pub threshold: f64,
    /// The audio of the window.
    pub window: Range<f64>,
    /// The end of a whole window.
    pub window_end: f64,
    /// The length of the recording.
    pub total: f64,
    /// Where speech ended before the window.
    pub last_end: f64,
    /// Where the last word ends, unless the model says that nothing follows.
    pub word_end: Option<f64>,
}

/// Removes what was invented, and returns where the next window begins if that changes it.
pub(super) fn remove(segments: &mut Vec<Segment>, silence: &Silence) -> Option<f64> {
    let Silence { threshold, window, window_end, .. } = silence;
    let mut seek = None;
    if let Some(end) = silence.word_end.filter(|end| *end > window.start) {
        seek = Some(if window_end - end > *threshold { end } else { window.end });
    }
    let first = segments.iter().find(|segment| !segment.words.is_empty());
    if let Some(first) = first.filter(|first| is_suspicious(Some(first))) {
        let gap = first.start - window.start;
        if gap > *threshold {
            segments.clear();
            return Some(window.start + gap);
        }
    }
    let mut last_end = silence.last_end;
    for i in 0..segments.len() {
        let segment = &segments[i];
        if segment.words.is_empty() {
            continue;
        }
        if is_suspicious(Some(segment)) {
            let next = segments[i + 1..].iter().find(|next| !next.words.is_empty());
            let next_start = next.map_or(window.end, |next| next.words[0].start);
            let is_silent_before = segment.start - last_end > *threshold
                || segment.start < *threshold
                || segment.start - window.start < EDGE;
            let is_silent_after = next_start - segment.end > *threshold
                || is_suspicious(next)
                || window_end - segment.end < EDGE;
            if is_silent_before && is_silent_after {
                let resume = (window.start + 1.0).max(segment.start);
                let is_last = silence.total - segment.end < *threshold;
                segments.truncate(i);
                return Some(if is_last { silence.total } else { resume });
            }
        }
        last_end = segment.end;
    }
    seek
}

fn is_suspicious(segment: Option<&Segment>) -> bool {
    let Some(segment) = segment.filter(|segment| !segment.words.is_empty()) else { return false };
    let words = segment.words.iter().filter(|word| !MARKS.contains(word.word.as_str()));
    let scores: Vec<f64> = words.take(LOOKED_AT).map(score).collect();
    let sum: f64 = scores.iter().sum();
    sum >= 3.0 || sum + 0.01 >= scores.len() as f64
}

fn score(word: &Word) -> f64 {
    let duration = word.end - word.start;
    let improbable = if word.probability < 0.15 { 1.0 } else { 0.0 };
    let short = if duration < SHORT { (SHORT - duration) * 15.0 } else { 0.0 };
    improbable + short + (duration - LONG).max(0.0)
}
