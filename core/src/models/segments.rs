//! Stretches of speech, from probabilities.

/// A stretch of speech.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SpeechSegment {
    /// Its beginning in seconds.
    pub start: f64,
    /// Its end in seconds.
    pub end: f64,
}

/// When speech begins and ends. Times are in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SegmentRules {
    /// Speech begins at this probability.
    pub threshold: f32,
    /// Silence begins below this one.
    pub off_threshold: f32,
    /// Shorter speech is dropped.
    pub min_speech: f64,
    /// Speech goes on over shorter silence.
    pub min_silence: f64,
    /// Added before and after speech.
    pub padding: f64,
}

impl SegmentRules {
    /// Speech in a recording of `seconds`, of which frames of `frame` seconds have these
    /// probabilities.
    pub fn segments(&self, probabilities: &[f32], frame: f64, seconds: f64) -> Vec<SpeechSegment> {
        let (mut found, mut start, mut silence): (Vec<SpeechSegment>, _, Option<f64>) =
            (Vec::new(), None, None);
        for (i, &probability) in probabilities.iter().enumerate() {
            let now = i as f64 * frame;
            if probability >= self.threshold {
                start = start.or(Some(now));
                silence = None;
            } else if let Some(begun) = start
                && probability < self.off_threshold
            {
                let end = *silence.get_or_insert(now);
                // A multiple of a frame is not exact.
                if now - end >= self.min_silence - 1e-9 {
                    found.push(SpeechSegment { start: begun, end });
                    (start, silence) = (None, None);
                }
            }
        }
        let end = seconds.min(probabilities.len() as f64 * frame);
        found.extend(start.map(|start| SpeechSegment { start, end }));
        found.retain(|segment| segment.end - segment.start >= self.min_speech - 1e-9);
        self.padded(found, seconds)
    }

    fn padded(&self, segments: Vec<SpeechSegment>, seconds: f64) -> Vec<SpeechSegment> {
        let mut padded: Vec<SpeechSegment> = Vec::new();
        for SpeechSegment { start, end } in segments {
            let (start, end) = ((start - self.padding).max(0.0), (end + self.padding).min(seconds));
            match padded.last_mut() {
                Some(last) if start <= last.end => last.end = last.end.max(end),
                _ => padded.push(SpeechSegment { start, end }),
            }
        }
        padded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: SegmentRules = SegmentRules {
        threshold: 0.5,
        off_threshold: 0.35,
        min_speech: 0.25,
        min_silence: 0.1,
        padding: 0.0,
    };

    fn times(rules: &SegmentRules, probabilities: &[f32]) -> Vec<(f64, f64)> {
        let round = |seconds: f64| (seconds * 100.0).round() / 100.0;
        let segments = rules.segments(probabilities, 0.05, probabilities.len() as f64 * 0.05);
        segments.iter().map(|segment| (round(segment.start), round(segment.end))).collect()
    }

    #[test]
    fn speech_goes_on_between_the_thresholds_and_over_short_silence() {
        let mut speech = vec![0.9; 6];
        speech.extend([0.4, 0.1, 0.4, 0.9, 0.9]);
        assert_eq!(times(&RULES, &speech), [(0.0, 0.55)]);
        speech.extend([0.1, 0.1, 0.1, 0.1]);
        assert_eq!(times(&RULES, &speech), [(0.0, 0.55)]);
    }

    #[test]
    fn short_speech_is_dropped_and_padding_joins() {
        let mut speech = vec![0.9; 4];
        speech.extend([0.0; 4]);
        assert_eq!(times(&RULES, &speech), []);
        let speech = [vec![0.9; 6], vec![0.0; 4], vec![0.9; 6]].concat();
        assert_eq!(times(&RULES, &speech), [(0.0, 0.3), (0.5, 0.8)]);
        assert_eq!(times(&SegmentRules { padding: 0.1, ..RULES }, &speech), [(0.0, 0.8)]);
    }
}
