//! The likeliest way to cut a text into pieces that have scores: Unigram as sentencepiece
//! (`EncodeOptimized`) and as Preferred Networks (`tokenization_plamo.py`) search for it. They
//! differ in direction, in rounding, and so in which of two equals they take.

use crate::text::tokenizer::backend::{Result, Segment, Vocabulary};
use crate::text::tokenizer::fallback::{Cut, Fallback};
use crate::text::tokenizer::prefixes::Prefixes;

/// The best way to reach a place in the text, or to go on from it.
#[derive(Clone, Copy)]
struct Best<S> {
    score: S,
    /// The other end of the piece.
    other: usize,
    id: Option<u32>,
}

/// A Unigram model of sentencepiece.
pub struct Unigram {
    /// The pieces that text may be cut into.
    pub prefixes: Prefixes,
    /// The score of each id.
    pub scores: Vec<Score>,
    /// The score of a character without a piece.
    pub unknown: f32,
    /// What becomes of such a character.
    pub fallback: Fallback,
}

/// How likely a piece is.
#[derive(Clone, Copy)]
pub enum Score {
    /// Its logarithm.
    Is(f32),
    /// For pieces that users define, each byte of which is as good as the likeliest piece.
    PerByte(f32),
}

impl Segment for Unigram {
    fn segment(&self, text: &str, _: &Vocabulary) -> Result<Vec<u32>> {
        let mut ends: Vec<Option<Best<f32>>> = vec![None; text.len() + 1];
        ends[0] = Some(Best { score: 0.0, other: 0, id: None });
        for (start, c) in text.char_indices() {
            let Some(Best { score: before, .. }) = ends[start] else { continue };
            let mut reach = |length: usize, score: f32, id: Option<u32>| {
                let best = &mut ends[start + length];
                if best.is_none_or(|best| score > best.score) {
                    *best = Some(Best { score, other: start, id });
                }
            };
            let mut has_character = false;
            for (length, id) in self.prefixes.of(&text[start..]) {
                let score = match self.scores[id as usize] {
                    Score::Is(score) => score,
                    Score::PerByte(most) => (f64::from(length as f32 * most) - 0.1) as f32,
                };
                reach(length, score + before, Some(id));
                has_character |= length == c.len_utf8();
            }
            if !has_character {
                reach(c.len_utf8(), self.unknown + before, None);
            }
        }
        let (mut cuts, mut end) = (Vec::new(), text.len());
        while let Some(Best { other: start, id, .. }) = ends[end].filter(|_| end > 0) {
            cuts.push(Cut { start, end, id });
            end = start;
        }
        cuts.reverse();
        self.fallback.ids(text, cuts)
    }
}

/// The Unigram model of Preferred Networks: whole numbers, from the end of the text.
pub struct Backward {
    /// The pieces that text may be cut into.
    pub prefixes: Prefixes,
    /// The score of each id.
    pub scores: Vec<i64>,
    /// The tokens of bytes.
    pub fallback: Fallback,
}

impl Backward {
    const UNKNOWN: i64 = -10_000_000;

    /// The score of a piece as its file writes it; `None` for one that text is never cut into.
    pub fn score(written: f64) -> Option<i64> {
        let score = (written * 1e4).round_ties_even();
        (score.is_finite() && score > 2.0 * Self::UNKNOWN as f64).then_some(score as i64)
    }
}

impl Segment for Backward {
    fn segment(&self, text: &str, _: &Vocabulary) -> Result<Vec<u32>> {
        let mut begins = vec![Best { score: 0, other: 0, id: None }; text.len() + 1];
        for (start, c) in text.char_indices().rev() {
            let pieces = self.prefixes.of(&text[start..]);
            let pieces = pieces.map(|(length, id)| (length, self.scores[id as usize], Some(id)));
            let unknown = (c.len_utf8(), Self::UNKNOWN, None);
            let mut best: Option<Best<i64>> = None;
            for (length, score, id) in [unknown].into_iter().chain(pieces) {
                let score = begins[start + length].score + score;
                if best.is_none_or(|best| score >= best.score) {
                    best = Some(Best { score, other: start + length, id });
                }
            }
            begins[start] = best.ok_or("there is always the unknown piece")?;
        }
        let (mut cuts, mut start) = (Vec::new(), 0);
        while start < text.len() {
            let Best { other: end, id, .. } = begins[start];
            cuts.push(Cut { start, end, id });
            start = end;
        }
        self.fallback.ids(text, cuts)
    }
}

/// The longest piece at each place, as RWKV's World vocabulary is read.
pub struct Greedy(pub Prefixes);

impl Segment for Greedy {
    fn segment(&self, text: &str, _: &Vocabulary) -> Result<Vec<u32>> {
        let (mut ids, mut start) = (Vec::new(), 0);
        while start < text.len() {
            let longest = self.0.of(&text[start..]).last();
            let (length, id) = longest.ok_or("the vocabulary lacks a byte")?;
            ids.push(id);
            start += length;
        }
        Ok(ids)
    }
}
