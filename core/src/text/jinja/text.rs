//! Text that knows which of its characters the template did not write.

use std::ops::Range;

/// The longest text in bytes: far more than a prompt, and small enough to allocate.
const MAX_LENGTH: usize = 1 << 26;

/// Text with the origin of each character: the template, or a value that the template was given. All
/// operations of the engine keep the origins.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Text {
    text: String,
    /// The byte ranges that the template did not write: sorted, disjoint, not empty.
    given: Vec<Range<usize>>,
    is_cut: bool,
}

impl Text {
    /// Text that the template wrote.
    pub fn written(text: &str) -> Self {
        let mut out = Text::default();
        out.push_str(text, false);
        out
    }

    /// Text that the template was given.
    pub fn given(text: &str) -> Self {
        let mut out = Text::default();
        out.push_str(text, true);
        out
    }

    /// The characters.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The byte ranges that the template did not write, in their order.
    pub fn given_ranges(&self) -> &[Range<usize>] {
        &self.given
    }

    /// Whether the text became longer than [`MAX_LENGTH`], so that its end is missing.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// Appends characters of one origin.
    pub fn push_str(&mut self, text: &str, is_given: bool) {
        self.is_cut |= self.text.len() + text.len() > MAX_LENGTH;
        if self.is_cut || text.is_empty() {
            return;
        }
        let start = self.text.len();
        self.text.push_str(text);
        if is_given {
            match self.given.last_mut() {
                Some(last) if last.end == start => last.end = self.text.len(),
                _ => self.given.push(start..self.text.len()),
            }
        }
    }

    /// Appends a text.
    pub fn push(&mut self, text: &Text) {
        self.push_slice(text, 0..text.text.len());
        self.is_cut |= text.is_cut;
    }

    /// Appends a part of a text.
    pub fn push_slice(&mut self, text: &Text, range: Range<usize>) {
        for (range, is_given) in text.runs(range) {
            self.push_str(&text.text[range], is_given);
        }
    }

    /// A part of the text.
    pub fn slice(&self, range: Range<usize>) -> Self {
        let mut out = Text::default();
        out.push_slice(self, range);
        out
    }

    /// A part of the text, which must be a slice of [`as_str`](Self::as_str).
    pub fn part(&self, part: &str) -> Self {
        let start = part.as_ptr() as usize - self.text.as_ptr() as usize;
        self.slice(start..start + part.len())
    }

    /// The text up to a byte position.
    pub fn truncate(&mut self, end: usize) {
        *self = self.slice(0..end);
    }

    /// The text with each character replaced; what replaces it has its origin.
    pub fn map(&self, mut replace: impl FnMut(char, &mut String)) -> Self {
        let (mut out, mut buffer) = (Text::default(), String::new());
        for (range, is_given) in self.runs(0..self.text.len()) {
            buffer.clear();
            self.text[range].chars().for_each(|c| replace(c, &mut buffer));
            out.push_str(&buffer, is_given);
        }
        out
    }

    /// The text as a whole converted by a function, such as that to lower case.
    pub fn convert(&self, convert: impl Fn(&str) -> String) -> Self {
        let mut out = Text::default();
        for (range, is_given) in self.runs(0..self.text.len()) {
            out.push_str(&convert(&self.text[range]), is_given);
        }
        out
    }

    /// The runs of one origin in a range, and whether they were given.
    pub fn runs(&self, range: Range<usize>) -> impl Iterator<Item = (Range<usize>, bool)> {
        let first = self.given.partition_point(|given| given.end <= range.start);
        let mut given = self.given[first..].iter().peekable();
        let mut at = range.start;
        std::iter::from_fn(move || {
            if at >= range.end {
                return None;
            }
            let (end, is_given) = match given.peek() {
                Some(next) if next.start <= at => (next.end.min(range.end), true),
                Some(next) => (next.start.min(range.end), false),
                None => (range.end, false),
            };
            if is_given {
                given.next();
            }
            let run = at..end;
            at = end;
            Some((run, is_given))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_keep_the_origins_of_their_characters() {
        let mut text = Text::written("<a>");
        text.push(&Text::given("bc"));
        text.push(&Text::given("d"));
        text.push(&Text::written("</a>"));
        let given = |text: &Text| -> Vec<_> {
            text.given_ranges().iter().map(|range| (range.start, range.end)).collect()
        };
        assert_eq!(given(&text), [(3, 6)]);
        assert_eq!(given(&text.slice(2..5)), [(1, 3)]);
        assert_eq!(given(&text.part(&text.as_str()[4..])), [(0, 2)]);
        let upper = text.map(|c, out| out.extend([c, c]));
        assert_eq!((upper.as_str(), given(&upper)), ("<<aa>>bbccdd<<//aa>>", vec![(6, 12)]));
        let runs: Vec<_> = text.runs(0..10).collect();
        assert_eq!(runs, [(0..3, false), (3..6, true), (6..10, false)]);
    }
}
