//! Streaming detokenization: ids one at a time to text that consists of whole characters.

use crate::error::Result;
use crate::text::Tokenizer;
use std::collections::HashSet;

/// The longest window, in ids. Malformed bytes or tokens without text could otherwise make it grow
/// for ever; a character has far fewer ids.
const MAX_WINDOW: usize = 32;

/// Decodes a stream of ids. The joined pieces equal [`Tokenizer::decode`] of all ids.
///
/// There is one exception: `decode` turns a malformed run of byte tokens (`<0xE5>`) into U+FFFD from
/// its start, but the stream has already emitted the whole characters of the run.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special_tokens: bool,
    /// The special tokens that are never skipped.
    kept: HashSet<u32>,
    /// The last ids. The text of a token depends on the token before it (a leading space is dropped),
    /// so the window starts with `context` ids whose text was already emitted.
    window: Vec<u32>,
    context: usize,
    /// The part of the text of `window` that was emitted.
    emitted: String,
}

impl Detokenizer {
    pub(super) fn new(tokenizer: Tokenizer, skip_special_tokens: bool) -> Self {
        let (window, emitted) = (Vec::new(), String::new());
        let kept = HashSet::new();
        Detokenizer { tokenizer, skip_special_tokens, kept, window, context: 0, emitted }
    }

    /// Never skips these special tokens.
    pub(crate) fn keep(mut self, tokens: &HashSet<u32>) -> Self {
        self.kept.clone_from(tokens);
        self
    }

    /// Continues a text that ends with an id.
    pub(crate) fn after(mut self, id: u32) -> Result<Self> {
        if self.tokenizer.token(id).is_some() {
            self.window.push(id);
            self.context = 1;
            self.emitted = self.decode()?;
        }
        Ok(self)
    }

    /// Adds an id and returns the text that it completes, which is often empty.
    ///
    /// # Errors
    /// [`Error::Tokenizer`](crate::error::Error::Tokenizer) when the decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let is_skipped =
            self.skip_special_tokens && !self.kept.contains(&id) && self.tokenizer.is_special(id);
        if is_skipped || self.tokenizer.token(id).is_none() {
            return Ok(String::new());
        }
        self.window.push(id);
        let mut text = self.decode()?;
        if self.context > 0 && text.ends_with(char::REPLACEMENT_CHARACTER) {
            // A byte token follows whole characters of the same run. The run decodes as malformed
            // until its last character is complete, so the emitted characters leave the window.
            let new = self.tokenizer.decode(&self.window[self.context..], false)?;
            if replaced(&text) > replaced(&new) {
                self.window.drain(..self.context);
                self.context = 0;
                self.emitted.clear();
                text = new;
            }
        }
        let Some(new) = text.strip_prefix(&self.emitted) else { return Ok(String::new()) };
        let (piece, held) = new.split_at(whole_characters(new));
        if !piece.is_empty() && held.is_empty() {
            self.window.drain(..self.context);
            self.context = self.window.len();
            self.emitted = self.decode()?;
        } else if self.window.len() > MAX_WINDOW {
            self.window.drain(..MAX_WINDOW / 2);
            self.context = 0;
            let text = self.decode()?;
            self.emitted = text.strip_suffix(held).unwrap_or(&text).to_string();
        } else {
            self.emitted.push_str(piece);
        }
        Ok(piece.to_string())
    }

    /// Returns the remaining text, with U+FFFD for incomplete characters, and resets the stream.
    ///
    /// # Errors
    /// [`Error::Tokenizer`](crate::error::Error::Tokenizer) when the decoder fails.
    pub fn finish(&mut self) -> Result<String> {
        let text = self.decode()?;
        let rest = text.strip_prefix(&self.emitted).unwrap_or_default().to_string();
        self.window.clear();
        self.context = 0;
        self.emitted.clear();
        Ok(rest)
    }

    fn decode(&self) -> Result<String> {
        // Tokens that are skipped are not in the window.
        self.tokenizer.decode(&self.window, false)
    }
}

/// The length of a text without the U+FFFD at its end that further ids may complete: at most three,
/// because a character has four bytes at most.
fn whole_characters(text: &str) -> usize {
    text.len() - replaced(text).min(3) * char::REPLACEMENT_CHARACTER.len_utf8()
}

/// How many U+FFFD are at the end of a text.
fn replaced(text: &str) -> usize {
    text.chars().rev().take_while(|c| *c == char::REPLACEMENT_CHARACTER).count()
}

impl Tokenizer {
    /// A stream that decodes ids one at a time.
    pub fn detokenizer(&self, skip_special_tokens: bool) -> Detokenizer {
        Detokenizer::new(self.clone(), skip_special_tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tokenizer::tests::{byte_fallback, byte_level, metaspace, tokenizer};
    use serde_json::json;

    /// All pieces of a stream, the last one from `finish`.
    fn pieces(tokenizer: &Tokenizer, ids: &[u32], skip: bool) -> Vec<String> {
        let mut stream = tokenizer.detokenizer(skip);
        let mut pieces: Vec<_> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
        pieces.push(stream.finish().unwrap());
        assert_eq!(stream.finish().unwrap(), "");
        pieces
    }

    fn ids_of(tokenizer: &Tokenizer, tokens: &[&str]) -> Vec<u32> {
        tokens.iter().map(|t| tokenizer.token_id(t).unwrap()).collect()
    }

    /// Pseudo-random numbers below `bound` (xorshift).
    fn random(state: &mut u64, bound: usize) -> usize {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state % bound as u64) as usize
    }

    #[test]
    fn a_character_is_emitted_with_its_last_byte() {
        let tokenizer = byte_level();
        let ids = tokenizer.encode("a😀é", false).unwrap();
        assert_eq!(pieces(&tokenizer, &ids, false), ["a", "", "", "", "😀", "", "é", ""]);
        assert_eq!(pieces(&tokenizer, &ids[..3], false), ["a", "", "", "\u{fffd}"]);

        let tokenizer = byte_fallback();
        let run = ["<0xE4>", "<0xBD>", "<0xA0>", "<0xE5>", "<0xA5>", "<0xBD>", "▁a"];
        let run = ids_of(&tokenizer, &run);
        assert_eq!(pieces(&tokenizer, &run, false), ["", "", "你", "", "", "好", " a", ""]);
        assert_eq!(pieces(&tokenizer, &run[..2], false), ["", "", "\u{fffd}\u{fffd}"]);
    }

    #[test]
    fn a_malformed_run_of_bytes_keeps_the_emitted_characters() {
        let tokenizer = byte_fallback();
        let run = ids_of(&tokenizer, &["<0xE4>", "<0xBD>", "<0xA0>", "<0xE5>", "▁a"]);
        assert_eq!(pieces(&tokenizer, &run, false), ["", "", "你", "", "\u{fffd} a", ""]);
    }

    #[test]
    fn a_space_that_is_a_byte_is_whole_before_other_bytes() {
        let tokenizer = byte_fallback();
        let run = ["▁a", "<0x20>", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "▁a"];
        let run = ids_of(&tokenizer, &run);
        assert_eq!(pieces(&tokenizer, &run, false), ["a", " ", "", "", "", "😀", " a", ""]);
    }

    #[test]
    fn joined_pieces_equal_the_decoded_text() {
        let word_piece = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
        let words = ["un", "##do", "it", ".", "n't", "##s"];
        let tokenizers = [
            byte_level(),
            metaspace(),
            byte_fallback(),
            tokenizer(&words, word_piece),
            tokenizer(&words, json!(null)),
        ];
        let mut state = 1;
        for (kind, tokenizer) in tokenizers.iter().enumerate() {
            let size = tokenizer.vocabulary_size() + 1;
            for round in 0..400 {
                let (mut ids, mut in_run) = (Vec::new(), false);
                for _ in 0..random(&mut state, 80) {
                    let id = random(&mut state, size);
                    let id =
                        if id.is_multiple_of(2) { id } else { size - 1 - id % size.min(9) } as u32;
                    let is_byte = tokenizer.token(id).is_some_and(|t| t.starts_with("<0x"));
                    // Malformed runs of byte tokens are the exception, so only whole characters are
                    // added.
                    if kind != 2 || !is_byte {
                        ids.push(id);
                    } else if !in_run {
                        let text = ["é", "你好", "😀é", "\u{7f}"][random(&mut state, 4)];
                        let byte = |b| tokenizer.token_id(&format!("<0x{b:02X}>")).unwrap();
                        ids.extend(text.bytes().map(byte));
                    }
                    in_run = is_byte;
                }
                let skip = round % 2 == 0;
                let text = tokenizer.decode(&ids, skip).unwrap();
                assert_eq!(pieces(tokenizer, &ids, skip).concat(), text, "{kind} {ids:?}");
            }
        }
    }

    #[test]
    fn the_window_stays_short() {
        for (tokenizer, token) in [(byte_level(), "Ã"), (byte_fallback(), "<0xFF>")] {
            let id = tokenizer.token_id(token).unwrap();
            let mut stream = tokenizer.detokenizer(false);
            let mut text = String::new();
            for _ in 0..1000 {
                text += &stream.push(id).unwrap();
                assert!(stream.window.len() <= MAX_WINDOW);
            }
            assert_eq!(text + &stream.finish().unwrap(), "\u{fffd}".repeat(1000));
        }
    }
}
