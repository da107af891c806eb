//! Greedy segmentation: the longest piece at each position.

use crate::text::tokenizer::backend::{Result, Segment, Vocabulary};
use crate::text::tokenizer::vocabularies::prefixes::Prefixes;

/// Takes the longest piece at each position.
pub struct LongestMatch(pub Prefixes);

impl Segment for LongestMatch {
    fn segment(&self, text: &str, _: &Vocabulary) -> Result<Vec<u32>> {
        let (mut ids, mut start) = (Vec::new(), 0);
        while start < text.len() {
            let longest = self.0.of(&text[start..]).last();
            let (length, id) = longest.ok_or("the vocabulary has no token for a byte")?;
            ids.push(id);
            start += length;
        }
        Ok(ids)
    }
}
