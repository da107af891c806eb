//! Byte-pair encoding that ranks the merged piece, as tiktoken and sentencepiece do: of all neighbours
//! that form a piece the best-ranked are merged first, the leftmost of equal ranks. The `tokenizers`
//! crate ranks pairs instead, which differs where a piece can be formed by several pairs.

use crate::text::tokenizer::backend::{Result, Segment, Vocabulary};
use crate::text::tokenizer::vocabularies::prefixes::Prefixes;
use crate::text::tokenizer::vocabularies::unknown_text::{TextPiece, UnknownText};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

/// The rank of a piece that no merge forms.
pub const NEVER_MERGED: u32 = u32::MAX;

/// The merges of a BPE vocabulary, ranked by the merged piece.
pub struct RankedMerges {
    /// The rank of each id; the lowest is merged first.
    pub ranks: Vec<u32>,
    /// Whether a text that is a piece is never split.
    pub ignore_merges: bool,
    /// Pieces that are found in the text first and never merged with others.
    pub user_defined: Prefixes,
    /// Pieces that merges may form on the way, and that are split again at the end.
    pub unused: HashSet<u32>,
    /// The tokens of characters without a piece.
    pub unknown_text: UnknownText,
}

/// A piece in a list of neighbours.
struct Symbol {
    start: usize,
    end: usize,
    left: usize,
    right: usize,
    fixed: bool,
}

const NONE: usize = usize::MAX;

impl RankedMerges {
    fn rank(&self, piece: &str, vocabulary: &Vocabulary) -> Option<(u32, u32)> {
        let id = vocabulary.id(piece)?;
        let rank = self.ranks.get(id as usize).copied().filter(|rank| *rank != NEVER_MERGED)?;
        Some((rank, id))
    }

    fn symbols(&self, text: &str) -> Vec<Symbol> {
        let mut symbols = Vec::with_capacity(text.len());
        let mut start = 0;
        while let Some(c) = text[start..].chars().next() {
            let fixed = self.user_defined.longest(&text[start..]);
            let end = start + fixed.unwrap_or(c.len_utf8());
            let (left, right) = (symbols.len().wrapping_sub(1), symbols.len() + 1);
            symbols.push(Symbol { start, end, left, right, fixed: fixed.is_some() });
            start = end;
        }
        if let Some(last) = symbols.last_mut() {
            last.right = NONE;
        }
        symbols
    }
}

impl Segment for RankedMerges {
    fn segment(&self, text: &str, vocabulary: &Vocabulary) -> Result<Vec<u32>> {
        if self.ignore_merges
            && let Some((_, id)) = self.rank(text, vocabulary)
        {
            return Ok(vec![id]);
        }
        let mut symbols = self.symbols(text);
        let mut queue = BinaryHeap::new();
        let mut split_points = HashMap::new();
        let mut push_merge = |symbols: &[Symbol], left: usize, queue: &mut BinaryHeap<_>| {
            let Some(a) = symbols.get(left) else { return };
            let Some(b) = symbols.get(a.right) else { return };
            if a.fixed || b.fixed {
                return;
            }
            if let Some((rank, id)) = self.rank(&text[a.start..b.end], vocabulary) {
                queue.push(Reverse((rank, left, b.end)));
                if self.unused.contains(&id) {
                    split_points.insert(id, b.start - a.start);
                }
            }
        };
        for left in 0..symbols.len() {
            push_merge(&symbols, left, &mut queue);
        }
        while let Some(Reverse((_, left, end))) = queue.pop() {
            let right = symbols[left].right;
            // An entry is stale when either neighbour has been merged since.
            if symbols[left].end == NONE || right == NONE || symbols[right].end != end {
                continue;
            }
            symbols[left].end = end;
            symbols[left].right = symbols[right].right;
            symbols[right].end = NONE;
            if let Some(next) = symbols.get(symbols[left].right).map(|_| symbols[left].right) {
                symbols[next].left = left;
            }
            push_merge(&symbols, symbols[left].left, &mut queue);
            push_merge(&symbols, left, &mut queue);
        }
        let mut pieces = Vec::new();
        let mut at = if symbols.is_empty() { NONE } else { 0 };
        let mut open = Vec::new();
        while let Some(symbol) = symbols.get(at) {
            open.push((symbol.start, symbol.end));
            while let Some((start, end)) = open.pop() {
                let id = vocabulary.id(&text[start..end]);
                let middle =
                    id.filter(|id| self.unused.contains(id)).and_then(|id| split_points.get(&id));
                match middle.map(|length| start + length) {
                    Some(middle) => open.extend([(middle, end), (start, middle)]),
                    None => pieces.push(TextPiece { start, end, id }),
                }
            }
            at = symbol.right;
        }
        self.unknown_text.ids(text, pieces)
    }
}
