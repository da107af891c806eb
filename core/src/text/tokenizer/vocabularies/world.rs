//! RWKV's World vocabulary (`rwkv_vocab_v20230424.txt`): a line has an id, a literal of Python and its
//! length in bytes. Text is split greedily into the longest tokens.

use crate::checkpoint::files::Files;
use crate::error::Result;
use crate::text::tokenizer::backend::{Model, Vocabulary};
use crate::text::tokenizer::config::Config;
use crate::text::tokenizer::vocabularies::byte_level;
use crate::text::tokenizer::vocabularies::longest_match::LongestMatch;
use crate::text::tokenizer::vocabularies::pipeline::{Pipeline, damaged};
use crate::text::tokenizer::vocabularies::prefixes::Prefixes;
use tokenizers::AddedToken;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// Reads the vocabulary.
pub fn read(file: &str, bytes: &[u8], _: &Config, _: &Files) -> Result<Pipeline> {
    const END: &str = "<|endoftext|>";
    let text = std::str::from_utf8(bytes).map_err(|_| damaged(file, "the file is not UTF-8"))?;
    let alphabet = byte_level::alphabet();
    let mut vocabulary = Vocabulary::default();
    let mut pieces = Vec::new();
    for (line, number) in text.split('\n').zip(1..).filter(|(line, _)| !line.trim().is_empty()) {
        let damaged = |reason: String| damaged(file, format!("line {number}: {reason}"));
        let parts = line.trim_end().split_once(' ');
        let parts = parts.and_then(|(id, rest)| Some((id, rest.rsplit_once(' ')?)));
        let read = parts.and_then(|(id, (token, length))| {
            let (id, length): (u16, usize) = (id.parse().ok()?, length.parse().ok()?);
            Some((u32::from(id), literal(token.trim()).filter(|token| token.len() == length)?))
        });
        let (id, token) = read.ok_or_else(|| damaged("not an id, a text and its length".into()))?;
        let piece: String = token.iter().map(|byte| alphabet[usize::from(*byte)]).collect();
        vocabulary.insert(&piece, id).map_err(damaged)?;
        pieces.push((piece, id));
    }
    for (byte, c) in alphabet.iter().enumerate() {
        if vocabulary.id(c.encode_utf8(&mut [0; 4])).is_none() {
            return Err(damaged(file, format!("no token for the byte {byte:#04x}")));
        }
    }
    let mut added = Vec::new();
    if vocabulary.piece(0).is_none() {
        vocabulary.set_piece(END, 0);
        added.push(AddedToken::from(END, true).normalized(false));
    }
    if let Some(gap) = vocabulary.first_gap() {
        return Err(damaged(file, format!("no token has the id {gap}")));
    }
    let prefixes = Prefixes::new(pieces.iter().map(|(piece, id)| (piece.as_str(), *id)));
    Ok(Pipeline {
        added,
        roles: vec![("eos_token", END.into())],
        pre_tokenizer: Some(ByteLevel::new(false, true, false).into()),
        decoder: Some(ByteLevel::default().into()),
        ..Pipeline::new(Model::Pieces(vocabulary, Box::new(LongestMatch(prefixes))))
    })
}

/// The bytes of a string or bytes literal, as Python's `repr` writes it.
fn literal(text: &str) -> Option<Vec<u8>> {
    let (is_bytes, quoted) = text.strip_prefix('b').map_or((false, text), |rest| (true, rest));
    let quote = quoted.chars().next().filter(|c| ['\'', '"'].contains(c))?;
    let inside = quoted.get(1..)?.strip_suffix(quote)?;
    let mut out = Vec::new();
    let mut chars = inside.chars();
    while let Some(c) = chars.next() {
        let digits = match c {
            '\\' => match chars.next()? {
                'x' => 2,
                'u' => 4,
                'U' => 8,
                plain => {
                    out.push(match plain {
                        'n' => b'\n',
                        'r' => b'\r',
                        't' => b'\t',
                        '\\' | '\'' | '"' => plain as u8,
                        _ => return None,
                    });
                    continue;
                }
            },
            _ => 0,
        };
        let code = match digits {
            0 if c == quote => return None,
            0 => u32::from(c),
            _ => {
                let rest = chars.as_str();
                chars = rest.get(digits..)?.chars();
                let mut digits = rest[..digits].chars().map(|c| c.to_digit(16));
                digits.try_fold(0, |code, digit| Some(code << 4 | digit?))?
            }
        };
        match is_bytes {
            true => out.push(u8::try_from(code).ok()?),
            false => out.extend(char::from_u32(code)?.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_read_as_in_python() {
        for (text, expected) in [
            (r"'a'", Some(&b"a"[..])),
            (r#""it's""#, Some(b"it's")),
            (r"'\\ \n\t\r\''", Some(b"\\ \n\t\r'")),
            (r"'\x00\xe9'", Some("\0é".as_bytes())),
            (r"b'\xe4\xbd'", Some(b"\xe4\xbd")),
            (r"'\u3000\U0001f600é'", Some("\u{3000}😀é".as_bytes())),
            ("''", Some(b"")),
            ("'", None),
            ("a", None),
            (r"'\x4'", None),
            (r"'\q'", None),
            (r"'\x+1'", None),
            ("'a'b'", None),
            ("b'é\u{100}'", None),
            (r"'\ud800'", None),
            ("", None),
        ] {
            assert_eq!(literal(text).as_deref(), expected, "{text}");
        }
    }
}
