//! The bytes that each token adds to a text.

use super::{Tokenizer, catch_panics, vocabularies::byte_level};
use crate::error::Result;
use std::collections::HashMap;
use tokenizers::{Decoder as _, DecoderWrapper};

/// The token before the one whose bytes are asked for: a decoder treats the first token of a text in
/// its own way.
const BEFORE: &str = "a";

impl Tokenizer {
    /// The bytes that each token adds to a text that has begun, by its id. Empty for ids without a
    /// token, and for special tokens.
    ///
    /// # Errors
    /// [`Error::Tokenizer`](crate::error::Error::Tokenizer) when the decoder fails.
    pub(crate) fn token_bytes(&self) -> Result<Vec<Vec<u8>>> {
        let backend = &self.0.backend;
        catch_panics(self.0.file, || {
            let ids = backend.get_vocab(true).into_values();
            let count = ids.max().map_or(0, |largest| largest as usize + 1);
            let decoding = Decoding::of(backend.get_decoder())?;
            let bytes = |id| match backend.id_to_token(id) {
                Some(token) if !backend.get_added_vocabulary().is_special_token(&token) => {
                    decoding.bytes(&token)
                }
                _ => Ok(Vec::new()),
            };
            (0..count as u32).map(bytes).collect()
        })
    }
}

/// How a decoder turns tokens into text.
struct Decoding<'a> {
    decoder: Option<&'a DecoderWrapper>,
    /// The bytes of the letters of a vocabulary of bytes.
    letters: Option<HashMap<char, u8>>,
    /// Whether `<0x41>` is a byte.
    has_byte_tokens: bool,
}

impl<'a> Decoding<'a> {
    fn of(decoder: Option<&'a DecoderWrapper>) -> tokenizers::Result<Self> {
        let mut decoding = Decoding { decoder, letters: None, has_byte_tokens: false };
        if decoding.text("Ġ")? == " " {
            let letters = byte_level::alphabet().into_iter().zip(0..=u8::MAX);
            decoding.letters = Some(letters.collect());
        }
        decoding.has_byte_tokens = decoding.text("<0x41>")? == "A";
        Ok(decoding)
    }

    fn bytes(&self, token: &str) -> tokenizers::Result<Vec<u8>> {
        if let Some(letters) = &self.letters {
            let bytes: Option<_> = token.chars().map(|c| letters.get(&c).copied()).collect();
            return Ok(bytes.unwrap_or_else(|| token.as_bytes().to_vec()));
        }
        let byte = token.strip_prefix("<0x").and_then(|token| token.strip_suffix('>'));
        if let Some(Ok(byte)) = byte.map(|byte| u8::from_str_radix(byte, 16))
            && self.has_byte_tokens
        {
            return Ok(vec![byte]);
        }
        Ok(self.text(token)?.into_bytes())
    }

    /// What a token adds behind another one.
    fn text(&self, token: &str) -> tokenizers::Result<String> {
        let tokens = vec![BEFORE.to_string(), token.to_string()];
        let text = match self.decoder {
            Some(decoder) => decoder.decode(tokens)?,
            None => tokens.join(" "),
        };
        Ok(text.strip_prefix(BEFORE).unwrap_or(&text).to_string())
    }
}

#[cfg(test)]
mod tests {
    use crate::text::tokenizer::tests::{byte_fallback, byte_level, metaspace, tokenizer};
    use serde_json::json;

    #[test]
    fn tokens_have_the_bytes_that_decoding_adds() {
        let pieces = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
        for (tokenizer, token, bytes) in [
            (byte_level(), "Ġ", &b" "[..]),
            (byte_level(), "Ã", &[0xc3]),
            (byte_level(), "<end>", b""),
            (byte_fallback(), "<0xE4>", &[0xe4]),
            (byte_fallback(), "▁a", b" a"),
            (byte_fallback(), "é", "é".as_bytes()),
            (metaspace(), "▁▁", b"  "),
            (metaspace(), "▁c▁", b" c "),
            (tokenizer(&["un", "##do", "."], pieces), "##do", b"do"),
            (tokenizer(&["un"], json!(null)), "un", b" un"),
        ] {
            let id = tokenizer.token_id(token).unwrap() as usize;
            assert_eq!(tokenizer.token_bytes().unwrap()[id], bytes, "{token}");
        }
    }
}
