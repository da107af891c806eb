//! Texts that end a generation.

/// Lets text through until a stop text begins, whatever the pieces that it comes in.
#[derive(Clone, Debug)]
pub(crate) struct StopFilter {
    stops: Vec<String>,
    /// A beginning of a stop text, or nothing.
    held: String,
}

impl StopFilter {
    /// Stop texts that are not empty.
    pub(crate) fn new(stops: &[String]) -> Self {
        StopFilter { stops: stops.to_vec(), held: String::new() }
    }

    /// Takes a piece; gives the text that is certain to be before any stop text, and whether one
    /// has been met.
    pub(crate) fn push(&mut self, piece: &str) -> (String, bool) {
        let mut text = std::mem::take(&mut self.held) + piece;
        let met = self.stops.iter().filter_map(|stop| text.find(stop.as_str())).min();
        let end = met.unwrap_or_else(|| {
            let begins = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&text[*at..]));
            text.char_indices().map(|(at, _)| at).find(begins).unwrap_or(text.len())
        });
        self.held = text.split_off(end);
        (text, met.is_some())
    }

    /// Gives what turned out to be no stop text.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes out of all pieces, and whether a stop text was met.
    fn filter(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let stops: Vec<_> = stops.iter().map(ToString::to_string).collect();
        let mut filter = StopFilter::new(&stops);
        let mut out = String::new();
        for piece in pieces {
            let (text, met) = filter.push(piece);
            out += &text;
            assert!(stops.iter().all(|stop| !out.contains(stop)));
            if met {
                return (out, true);
            }
        }
        (out + &filter.finish(), false)
    }

    #[test]
    fn a_stop_text_in_any_pieces_never_leaks() {
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
    fn what_only_looks_like_a_beginning_comes_out() {
        assert_eq!(filter(&["aab"], &["a", "a", "a", "c"]), ("aaac".into(), false));
        assert_eq!(filter(&["aab"], &["a", "a", "a", "b"]), ("a".into(), true));
        assert_eq!(filter(&["END"], &["the E", "N"]), ("the EN".into(), false));
        assert_eq!(filter(&["éé"], &["é", "e"]), ("ée".into(), false));
        assert_eq!(filter(&[], &["a", "b"]), ("ab".into(), false));
    }

    #[test]
    fn the_first_of_several_counts() {
        assert_eq!(filter(&["b", "ab", "abc"], &["xab", "c"]), ("x".into(), true));
        assert_eq!(filter(&["\n\n", "User:"], &["hi\n", "User", ":"]), ("hi\n".into(), true));
    }
}
