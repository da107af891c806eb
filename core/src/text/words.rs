//! The words of a text, without punctuation.

use crate::error::{Error, Result};
use fancy_regex::Regex;

/// Words of letters, numbers and apostrophes. Each ideograph is a word. What a word does without joins its
/// parts, or in `is_chinese` text parts them.
///
/// # Errors
/// [`Error::Internal`] for a pattern that fails.
pub fn words(text: &str, is_chinese: bool) -> Result<Vec<String>> {
    let wrong = |e: fancy_regex::Error| Error::Internal(format!("the pattern of letters: {e}"));
    let kept = Regex::new(r"[\p{L}\p{N}']").map_err(wrong)?;
    let (mut words, mut word) = (Vec::new(), String::new());
    for c in text.chars() {
        let is_kept = kept.is_match(c.encode_utf8(&mut [0; 4])).map_err(wrong)?;
        let is_ideograph = is_ideograph(c);
        if is_kept && !is_ideograph {
            word.push(c);
        } else if is_ideograph || is_chinese || c.is_whitespace() {
            words.push(std::mem::take(&mut word));
        }
        if is_ideograph {
            words.push(c.into());
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    Ok(words)
}

fn is_ideograph(c: char) -> bool {
    matches!(
        u32::from(c),
        0x4E00..=0x9FFF
            | 0x3400..=0x4DBF
            | 0x20000..=0x2A6DF
            | 0x2A700..=0x2B73F
            | 0x2B740..=0x2B81F
            | 0x2B820..=0x2CEAF
            | 0xF900..=0xFAFF
    )
}
