//! Stop texts, which end a generation and do not appear in its output.

/// Passes text through up to the first stop text, which may be split over several pieces.
#[derive(Clone, Debug)]
pub(crate) struct StopFilter {
    stops: Vec<String>,
    /// The end of the text so far, if it may be the start of a stop text.
    held: String,
}

impl StopFilter {
    /// A filter for stop texts, none of which may be empty.
    pub(crate) fn new(stops: &[String]) -> Self {
        StopFilter { stops: stops.to_vec(), held: String::new() }
    }

    /// Adds a piece. Returns the text that cannot be part of a stop text, and whether a stop text was
    /// found.
    pub(crate) fn push(&mut self, piece: &str) -> (String, bool) {
        let mut text = std::mem::take(&mut self.held) + piece;
        let found = self.stops.iter().filter_map(|stop| text.find(stop.as_str())).min();
        let end = found.unwrap_or_else(|| {
            let may_start =
                |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&text[*at..]));
            text.char_indices().map(|(at, _)| at).find(may_start).unwrap_or(text.len())
        });
        self.held = text.split_off(end);
        (text, found.is_some())
    }

    /// Returns the text that was held back and turned out not to be a stop text.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text that passes the filter, and whether a stop text was found.
    fn filter(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let stops: Vec<_> = stops.iter().map(ToString::to_string).collect();
        let mut filter = StopFilter::new(&stops);
        let mut out = String::new();
        for piece in pieces {
            let (text, found) = filter.push(piece);
            out += &text;
            assert!(stops.iter().all(|stop| !out.contains(stop)));
            if found {
                return (out, true);
            }
        }
        (out + &filter.finish(), false)
    }

    #[test]
    fn a_stop_text_split_anywhere_never_leaks() {
        let text = "Grüße, <|end|> und mehr";
        let stop = "<|end|>";
        for first in (0..=text.len()).filter(|at| text.is_char_boundary(*at)) {
            for second in (first..=text.len()).filter(|at| text.is_char_boundary(*at)) {
                let pieces = [&text[..first], &text[first..second], &text[second..]];
                assert_eq!(filter(&[stop], &pieces), ("Grüße, ".into(), true), "{pieces:?}");
            }
        }
    }

    #[test]
    fn a_partial_stop_text_is_released() {
        assert_eq!(filter(&["aab"], &["a", "a", "a", "c"]), ("aaac".into(), false));
        assert_eq!(filter(&["aab"], &["a", "a", "a", "b"]), ("a".into(), true));
        assert_eq!(filter(&["END"], &["the E", "N"]), ("the EN".into(), false));
        assert_eq!(filter(&["éé"], &["é", "e"]), ("ée".into(), false));
        assert_eq!(filter(&[], &["a", "b"]), ("ab".into(), false));
    }

    #[test]
    fn the_first_of_several_stop_texts_ends_the_text() {
        assert_eq!(filter(&["b", "ab", "abc"], &["xab", "c"]), ("x".into(), true));
        assert_eq!(filter(&["\n\n", "User:"], &["hi\n", "User", ":"]), ("hi\n".into(), true));
    }
}
