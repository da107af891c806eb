//! Draft tokens by n-gram lookup: what followed an earlier occurrence of the last tokens, in the prompt
//! or in the answer ([prompt lookup decoding](https://github.com/apoorvumang/prompt-lookup-decoding)).

use std::collections::HashMap;

/// The length of the n-grams that are looked up.
const LENGTH: usize = 3;

/// The longest agreement that is counted.
const LONGEST: usize = 32;

/// The tokens of a sequence and the places of its n-grams.
#[derive(Default)]
pub(crate) struct Lookup {
    tokens: Vec<u32>,
    /// Where the tokens after the latest occurrence of an n-gram begin.
    places: HashMap<[u32; LENGTH], usize>,
    source: Option<Source>,
}

/// The earlier place that the sequence seems to repeat.
#[derive(Clone, Copy)]
struct Source {
    /// The position of the token that the next one would repeat.
    next: usize,
    /// How many of the last tokens are equal to those before `next`.
    agreement: usize,
}

impl Lookup {
    /// The number of tokens of the sequence.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Adds a token. Returns whether it is the one that was expected, if one was.
    pub fn push(&mut self, id: u32) -> Option<bool> {
        let outcome = self.source.map(|source| self.tokens[source.next] == id);
        self.source = self.source.filter(|_| outcome == Some(true)).map(|source| Source {
            next: source.next + 1,
            agreement: (source.agreement + 1).min(LONGEST),
        });
        if let Some(last) = self.tokens.last_chunk() {
            self.places.insert(*last, self.tokens.len());
        }
        self.tokens.push(id);
        if let Some(last) = self.tokens.last_chunk()
            && let Some(next) = self.places.get(last).copied()
        {
            // A place that has agreed for longer is more likely to go on.
            let known = self.source.map_or(0, |source| source.agreement);
            let agreement = self.agreement(next);
            if agreement > known {
                self.source = Some(Source { next, agreement });
            }
        }
        outcome
    }

    /// How many tokens before `next` are those at the end.
    fn agreement(&self, next: usize) -> usize {
        let pairs = self.tokens[..next].iter().rev().zip(self.tokens.iter().rev());
        pairs.take(LONGEST).take_while(|(a, b)| a == b).count()
    }

    /// How many of the last tokens the place has that [`Lookup::draft`] copies; none without a place.
    pub fn agrees(&self) -> Option<usize> {
        self.source.map(|source| source.agreement)
    }

    /// The next `count` tokens, if the sequence goes on as at the place that it repeats. A period that is
    /// shorter is repeated.
    pub fn draft(&self, count: usize) -> Vec<u32> {
        let Some(Source { next, .. }) = self.source else { return Vec::new() };
        let mut draft: Vec<u32> = Vec::with_capacity(count);
        for at in next..next + count {
            draft.push(match self.tokens.get(at) {
                Some(id) => *id,
                None => draft[at - self.tokens.len()],
            });
        }
        draft
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(tokens: &[u32]) -> Lookup {
        let mut lookup = Lookup::default();
        for id in tokens {
            lookup.push(*id);
        }
        lookup
    }

    #[test]
    fn a_draft_goes_on_as_the_latest_occurrence_and_repeats_a_period() {
        assert_eq!(lookup(&[1, 2, 3, 4]).agrees(), None);
        assert!(lookup(&[1, 2, 3, 4]).draft(3).is_empty());
        let quoted = lookup(&[1, 2, 3, 4, 5, 6, 9, 1, 2, 3]);
        assert_eq!((quoted.agrees(), quoted.draft(3)), (Some(3), vec![4, 5, 6]));
        let latest = lookup(&[1, 2, 3, 4, 0, 1, 2, 3, 5, 9, 1, 2, 3]);
        assert_eq!(latest.draft(2), [5, 9]);
        assert_eq!(lookup(&[7, 7, 7, 7]).draft(5), [7; 5]);
        assert_eq!(lookup(&[4, 5, 6, 4, 5, 6]).draft(7), [4, 5, 6, 4, 5, 6, 4]);
    }

    #[test]
    fn a_place_that_has_agreed_for_longer_stays_the_source() {
        // The first quotation has `2, 3, 4` twice; behind the second one it differs.
        let text = [9, 1, 2, 3, 4, 5, 6, 8, 2, 3, 4, 7, 8];
        let mut lookup = lookup(&text);
        [1, 2].into_iter().for_each(|id| assert_eq!(lookup.push(id), None));
        assert_eq!(lookup.push(3), None);
        assert_eq!(lookup.agrees(), Some(3));
        assert_eq!((lookup.push(4), lookup.draft(2)), (Some(true), vec![5, 6]));
        assert_eq!((lookup.push(0), lookup.agrees()), (Some(false), None));
    }
}
