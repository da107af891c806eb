//! The normalizer of sentencepiece models. Follows `normalizer.cc` of sentencepiece.

use crate::text::tokenizer::vocabularies::prefixes::Prefixes;

/// The character that stands for a space in pieces.
pub const SPACE: char = '▁';

/// The normalizer of a sentencepiece model.
pub struct SentencepieceNormalizer {
    /// The replacements of characters.
    pub characters: Option<CharacterMap>,
    /// Pieces that are never changed.
    pub user_defined: Prefixes,
    /// Whether to add a space, so that the first word has the same piece as a later one.
    pub add_dummy_prefix: bool,
    /// Whether to add it at the start of the text only, and not again after each added token.
    pub prefix_once: bool,
    /// Whether to add it at the end instead.
    pub space_is_suffix: bool,
    /// Whether to collapse runs of spaces and to strip the ends.
    pub remove_extra_whitespaces: bool,
    /// Whether to replace spaces by [`SPACE`].
    pub escape_whitespaces: bool,
}

impl SentencepieceNormalizer {
    /// Normalizes a text. `is_start` says that no other text comes before it.
    pub fn normalize(&self, text: &str, is_start: bool) -> String {
        let space = if self.escape_whitespaces { SPACE } else { ' ' };
        let add_space = self.add_dummy_prefix && (is_start || !self.prefix_once);
        let mut out = String::with_capacity(text.len() + text.len() / 4);
        if add_space && !self.space_is_suffix {
            out.push(space);
        }
        let mut after_space = self.remove_extra_whitespaces;
        let mut has_text = !self.remove_extra_whitespaces && !text.is_empty();
        let mut rest = text;
        while !rest.is_empty() {
            let (length, replaced) = self.next_unit(rest);
            let mut written = replaced.unwrap_or(&rest[..length]);
            rest = &rest[length..];
            if after_space {
                written = written.trim_start_matches(' ');
            }
            if !written.is_empty() {
                has_text = true;
                out.extend(written.chars().map(|c| if c == ' ' { space } else { c }));
                after_space = self.remove_extra_whitespaces && written.ends_with(' ');
            }
        }
        if !has_text {
            return String::new();
        }
        if self.remove_extra_whitespaces {
            out.truncate(out.trim_end_matches(space).len());
        }
        if add_space && self.space_is_suffix {
            out.push(space);
        }
        out
    }

    /// The length of the next unit of a text, and its replacement.
    fn next_unit(&self, text: &str) -> (usize, Option<&str>) {
        if let Some(length) = self.user_defined.longest(text) {
            return (length, None);
        }
        if let Some((length, replaced)) = self.characters.as_ref().and_then(|map| map.find(text)) {
            return (length, Some(replaced));
        }
        (text.chars().next().map_or(0, char::len_utf8), None)
    }
}

/// A `precompiled_charsmap`: a double-array trie of the texts to replace, and the replacements.
pub struct CharacterMap {
    units: Vec<u32>,
    replacements: String,
}

impl CharacterMap {
    /// Reads a map.
    ///
    /// # Errors
    /// A message that says that it is damaged.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let damaged = || "`precompiled_charsmap` is damaged".to_string();
        let (size, rest) = bytes.split_first_chunk::<4>().ok_or_else(damaged)?;
        let size = u32::from_le_bytes(*size) as usize;
        let (units, replacements) = rest.split_at_checked(size).ok_or_else(damaged)?;
        let (units, odd) = units.as_chunks::<4>();
        if units.is_empty() || !odd.is_empty() {
            return Err(damaged());
        }
        let units = units.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
        let replacements = String::from_utf8(replacements.to_vec()).map_err(|_| damaged())?;
        Ok(CharacterMap { units, replacements })
    }

    /// The length of the longest prefix of a text that is replaced, and its replacement.
    fn find(&self, text: &str) -> Option<(usize, &str)> {
        let unit = |at: usize| self.units.get(at).copied();
        let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
        let mut found = None;
        let mut at = offset(unit(0)?);
        for (index, byte) in text.bytes().enumerate() {
            at ^= usize::from(byte);
            let Some(node) = unit(at).filter(|node| node & 0x8000_00ff == u32::from(byte)) else {
                break;
            };
            at ^= offset(node);
            if node >> 8 & 1 == 1 {
                found = unit(at).map(|leaf| (index + 1, (leaf & 0x7fff_ffff) as usize));
            }
        }
        let (length, start) = found?;
        let replaced = self.replacements.get(start..)?.split('\0').next()?;
        text.is_char_boundary(length).then_some((length, replaced))
    }
}
