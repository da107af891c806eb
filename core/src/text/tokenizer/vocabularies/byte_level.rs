//! What byte-level vocabularies share: GPT-2's alphabet for bytes, the patterns that split text, and
//! BPE whose merges are the ranks of its tokens.

use crate::error::Result;
use crate::text::tokenizer::backend::{Model, Vocabulary};
use crate::text::tokenizer::vocabularies::pipeline::{Pipeline, damaged};
use crate::text::tokenizer::vocabularies::prefixes::Prefixes;
use crate::text::tokenizer::vocabularies::ranked_merges::{NEVER_MERGED, RankedMerges};
use crate::text::tokenizer::vocabularies::unknown_text::UnknownText;
use std::collections::HashSet;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior};

/// Splits words and single digits.
pub const SINGLE_DIGITS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Splits words and groups of up to three digits: the pattern of cl100k.
pub const CL100K: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Splits words by their case, and Chinese from other scripts.
pub const HAN: &str = r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The pipeline of a byte-level vocabulary whose ids are the ranks of the merges. The ids of tokens and
/// special tokens together are a range from 0.
pub fn ranked(
    file: &str,
    tokens: Vec<(Vec<u8>, u32)>,
    pattern: &str,
    special: Vec<(String, u32)>,
) -> Result<Pipeline> {
    let damaged = |reason: String| damaged(file, reason);
    let alphabet = alphabet();
    let mut vocabulary = Vocabulary::default();
    let mut ranks = vec![NEVER_MERGED; tokens.len() + special.len()];
    for (token, id) in &tokens {
        let piece: String = token.iter().map(|byte| alphabet[usize::from(*byte)]).collect();
        vocabulary.insert(&piece, *id).map_err(damaged)?;
        ranks[*id as usize] = *id;
    }
    for (token, id) in &special {
        vocabulary.insert(token, *id).map_err(damaged)?;
    }
    for (byte, c) in alphabet.iter().enumerate() {
        if vocabulary.id(c.encode_utf8(&mut [0; 4])).is_none() {
            return Err(damaged(format!("no token for the byte {byte:#04x}")));
        }
    }
    let merge = RankedMerges {
        ranks,
        ignore_merges: true,
        user_defined: Prefixes::default(),
        unused: HashSet::new(),
        unknown_text: UnknownText::None,
    };
    let added = special.into_iter().map(|(token, _)| AddedToken::from(token, true));
    Ok(Pipeline {
        added: added.map(|token| token.normalized(false)).collect(),
        pre_tokenizer: Some(split(file, pattern)?),
        decoder: Some(ByteLevel::default().into()),
        ..Pipeline::new(Model::Pieces(vocabulary, Box::new(merge)))
    })
}

/// Splits text by a pattern and maps its bytes to the byte alphabet.
pub fn split(file: &str, pattern: &str) -> Result<PreTokenizerWrapper> {
    let pattern = SplitPattern::Regex(pattern.into());
    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
    let split = split
        .map_err(|e| damaged(file, format!("the pattern is not a regular expression: {e}")))?;
    let bytes = ByteLevel::new(false, true, false);
    Ok(Sequence::new(vec![split.into(), bytes.into()]).into())
}

/// The characters that stand for the 256 bytes since GPT-2.
pub fn alphabet() -> [char; 256] {
    let mut other = 256_u32..;
    std::array::from_fn(|byte| match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(byte as u8),
        _ => other.next().and_then(char::from_u32).unwrap_or_default(),
    })
}

/// Decodes base64 with padding; `None` if it is malformed.
pub fn base64(text: &str) -> Option<Vec<u8>> {
    let text = text.as_bytes();
    let padding = text.iter().rev().take(2).take_while(|c| **c == b'=').count();
    if text.is_empty() || !text.len().is_multiple_of(4) {
        return None;
    }
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0);
    for c in &text[..text.len() - padding] {
        let digit = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(digit);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    (bits & ((1 << count) - 1) == 0).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_strict() {
        assert_eq!(base64("aGk=").unwrap(), b"hi");
        assert_eq!(base64("aA==").unwrap(), b"h");
        assert_eq!(base64("/+8A").unwrap(), [0xff, 0xef, 0]);
        for text in ["", "aGk", "aG=k", "aGk ", "aG-=", "aGl=", "===="] {
            assert_eq!(base64(text), None, "{text}");
        }
    }
}
