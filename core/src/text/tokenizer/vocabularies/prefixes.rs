//! An index of pieces by prefix: all pieces that a text starts with.

/// Pieces and their ids, sorted by bytes.
#[derive(Default)]
pub struct Prefixes(Vec<(Box<str>, u32)>);

impl Prefixes {
    /// Builds the index. Empty pieces are left out.
    pub fn new<'a>(pieces: impl Iterator<Item = (&'a str, u32)>) -> Self {
        let pieces = pieces.filter(|(piece, _)| !piece.is_empty());
        let mut pieces: Vec<_> = pieces.map(|(piece, id)| (Box::from(piece), id)).collect();
        pieces.sort_unstable();
        Prefixes(pieces)
    }

    /// The lengths in bytes and the ids of the pieces that a text starts with, shortest first.
    pub fn of<'a>(&'a self, text: &'a str) -> impl Iterator<Item = (usize, u32)> + 'a {
        let mut rest = self.0.as_slice();
        (0..text.len())
            .map_while(move |depth| {
                // All of `rest` equal the text up to `depth`; the shortest come first.
                let byte = text.as_bytes()[depth];
                let at = |piece: &str| piece.as_bytes().get(depth).copied();
                let begin = rest.partition_point(|(piece, _)| at(piece) < Some(byte));
                let end = rest.partition_point(|(piece, _)| at(piece) <= Some(byte));
                rest = &rest[begin..end];
                let (piece, id) = rest.first()?;
                Some((piece.len() == depth + 1).then_some((depth + 1, *id)))
            })
            .flatten()
    }

    /// The length in bytes of the longest piece that a text starts with.
    pub fn longest(&self, text: &str) -> Option<usize> {
        if self.0.is_empty() { None } else { self.of(text).last().map(|(length, _)| length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_shortest_first() {
        let pieces = ["", "a", "ab", "abé", "b", "é", "abc"];
        let prefixes = Prefixes::new(pieces.iter().zip(0..).map(|(piece, id)| (*piece, id)));
        let of = |text| prefixes.of(text).collect::<Vec<_>>();
        assert_eq!(of("abéx"), [(1, 1), (2, 2), (4, 3)]);
        assert_eq!(of("abcd"), [(1, 1), (2, 2), (3, 6)]);
        assert_eq!(of("é"), [(2, 5)]);
        assert_eq!(of("ê"), []);
        assert_eq!(of(""), []);
        assert_eq!((prefixes.longest("abx"), prefixes.longest("x")), (Some(2), None));
        assert_eq!(Prefixes::default().longest("a"), None);
    }
}
