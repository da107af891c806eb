//! Unigram segmentation: the split of a text into pieces with the highest total score. The search of
//! sentencepiece (`EncodeOptimized`) and that of Preferred Networks (their tokenization code) differ
//! in direction and precision, and so in which of two equal splits they take.

use crate::text::tokenizer::backend::{Result, Segment, Vocabulary};
use crate::text::tokenizer::vocabularies::prefixes::Prefixes;
use crate::text::tokenizer::vocabularies::unknown_text::{TextPiece, UnknownText};

/// The best split of the text before a position, or after it.
#[derive(Clone, Copy)]
struct Best<S> {
    score: S,
    /// The other end of the piece at this position.
    other: usize,
    id: Option<u32>,
}

/// The Unigram model of sentencepiece, searched from the start of the text.
pub struct Unigram {
    /// The pieces that text may be split into.
    pub prefixes: Prefixes,
    /// The score of each id.
    pub scores: Vec<Score>,
    /// The score of a character without a piece.
    pub unknown_score: f32,
    /// The tokens of such a character.
    pub unknown_text: UnknownText,
}

/// The score of a piece.
#[derive(Clone, Copy)]
pub enum Score {
    /// A log-probability.
    LogProbability(f32),
    /// For user-defined pieces: each byte has the score of the most likely piece.
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
                    Score::LogProbability(score) => score,
                    Score::PerByte(most) => (f64::from(length as f32 * most) - 0.1) as f32,
                };
                reach(length, score + before, Some(id));
                has_character |= length == c.len_utf8();
            }
            if !has_character {
                reach(c.len_utf8(), self.unknown_score + before, None);
            }
        }
        let (mut pieces, mut end) = (Vec::new(), text.len());
        while let Some(Best { other: start, id, .. }) = ends[end].filter(|_| end > 0) {
            pieces.push(TextPiece { start, end, id });
            end = start;
        }
        pieces.reverse();
        self.unknown_text.ids(text, pieces)
    }
}

/// The Unigram model of Preferred Networks: integer scores, searched from the end of the text.
pub struct BackwardUnigram {
    /// The pieces that text may be split into.
    pub prefixes: Prefixes,
    /// The score of each id.
    pub scores: Vec<i64>,
    /// The tokens of a character without a piece.
    pub unknown_text: UnknownText,
}

impl BackwardUnigram {
    const UNKNOWN_SCORE: i64 = -10_000_000;

    /// The integer score of a piece; `None` for a piece that text is never split into.
    pub fn score(score: f64) -> Option<i64> {
        let score = (score * 1e4).round_ties_even();
        (score.is_finite() && score > 2.0 * Self::UNKNOWN_SCORE as f64).then_some(score as i64)
    }
}

impl Segment for BackwardUnigram {
    fn segment(&self, text: &str, _: &Vocabulary) -> Result<Vec<u32>> {
        let mut begins = vec![Best { score: 0, other: 0, id: None }; text.len() + 1];
        for (start, c) in text.char_indices().rev() {
            let candidates = self.prefixes.of(&text[start..]);
            let candidates =
                candidates.map(|(length, id)| (length, self.scores[id as usize], Some(id)));
            let unknown = (c.len_utf8(), Self::UNKNOWN_SCORE, None);
            let mut best: Option<Best<i64>> = None;
            for (length, score, id) in [unknown].into_iter().chain(candidates) {
                let score = begins[start + length].score + score;
                if best.is_none_or(|best| score >= best.score) {
                    best = Some(Best { score, other: start + length, id });
                }
            }
            begins[start] = best.ok_or("no split reaches the end of the text")?;
        }
        let (mut pieces, mut start) = (Vec::new(), 0);
        while start < text.len() {
            let Best { other: end, id, .. } = begins[start];
            pieces.push(TextPiece { start, end, id });
            start = end;
        }
        self.unknown_text.ids(text, pieces)
    }
}
