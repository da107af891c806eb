//! Vocabularies that are lists: `vocab.json` with `merges.txt`, `vocab.txt`, the
//! `tokenizer.jsonl` of Preferred Networks, and RWKV's World vocabulary.

use crate::checkpoint::files::Files;
use crate::error::Result;
use crate::text::tokenizer::backend::{Model, Normalizer, Vocabulary};
use crate::text::tokenizer::config::Config;
use crate::text::tokenizer::fallback::Fallback;
use crate::text::tokenizer::lattice::{Backward, Greedy};
use crate::text::tokenizer::parts::{Parts, damaged};
use crate::text::tokenizer::prefixes::Prefixes;
use crate::text::tokenizer::ranks;
use serde_json::Value as Json;
use std::collections::HashMap;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence;
use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, NormalizerWrapper};

const MERGES: &str = "merges.txt";

/// Byte-level BPE in the manner of GPT-2: `vocab.json`, and `merges.txt` beside it.
pub fn pairs(file: &str, bytes: &[u8], config: &Config, files: &Files) -> Result<Parts> {
    let vocabulary: HashMap<String, u32> =
        serde_json::from_slice(bytes).map_err(|e| damaged(file, e.to_string()))?;
    let mut vocabulary = distinct(file, vocabulary)?;
    let merges = files.read(MERGES)?.ok_or_else(|| damaged(MERGES, "there is no such file"))?;
    let text = std::str::from_utf8(&merges).map_err(|_| damaged(MERGES, "not UTF-8"))?;
    let mut pairs = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        if line.starts_with("#version") || line.trim().is_empty() {
            continue;
        }
        let damaged = |reason: String| damaged(MERGES, format!("line {number}: {reason}"));
        let mut pieces = line.split(' ');
        let (Some(left), Some(right), None) = (pieces.next(), pieces.next(), pieces.next()) else {
            return Err(damaged("not two pieces".into()));
        };
        for piece in [left, right, &format!("{left}{right}")] {
            if !vocabulary.contains_key(piece) {
                return Err(damaged(format!("the piece {piece:?} is not in {file}")));
            }
        }
        pairs.push((left.to_string(), right.to_string()));
    }
    for (id, token) in config.listed() {
        vocabulary.insert(token.content, id);
    }
    let words = config.class() == "Qwen2Tokenizer";
    let bpe = BPE::builder().vocab_and_merges(vocabulary.into_iter().collect::<Vocab>(), pairs);
    let bpe = bpe.build().map_err(|e| damaged(file, e.to_string()))?;
    let prefix = config.flag("add_prefix_space").unwrap_or(false);
    let pre_tokenizer = match words {
        true => ranks::split(file, ranks::DIGITS)?,
        false => ByteLevel::new(prefix, true, true).into(),
    };
    let end = "<|endoftext|>".to_string();
    Ok(Parts {
        normalizer: words.then(Normalizer::nfc),
        pre_tokenizer: Some(pre_tokenizer),
        decoder: Some(ByteLevel::default().into()),
        roles: if words {
            vec![("eos_token", end)]
        } else {
            vec![("bos_token", end.clone()), ("eos_token", end)]
        },
        ..Parts::new(Model::Crate(Box::new(bpe.into())))
    })
}

/// Refuses ids that two pieces have.
fn distinct(file: &str, vocabulary: HashMap<String, u32>) -> Result<HashMap<String, u32>> {
    let mut ids: Vec<_> = vocabulary.values().collect();
    ids.sort_unstable();
    match ids.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(damaged(file, format!("two pieces have the id {}", pair[0]))),
        None => Ok(vocabulary),
    }
}

/// WordPiece in the manner of BERT: a piece on each line.
pub fn lines(file: &str, bytes: &[u8], config: &Config, _: &Files) -> Result<Parts> {
    let text = std::str::from_utf8(bytes).map_err(|_| damaged(file, "not UTF-8"))?;
    let mut vocabulary = Vocab::default();
    for (piece, id) in text.lines().zip(0..) {
        if vocabulary.insert(piece.trim_end().to_string(), id).is_some() {
            return Err(damaged(
                file,
                format!("line {}: the piece {piece:?} is there twice", id + 1),
            ));
        }
    }
    let roles = ["unk", "cls", "sep", "pad", "mask"].into_iter();
    let defaults = roles.zip(["unk_token", "cls_token", "sep_token", "pad_token", "mask_token"]);
    let roles: Vec<_> =
        defaults.map(|(name, role)| (role, format!("[{}]", name.to_uppercase()))).collect();
    for (id, token) in config.listed() {
        vocabulary.insert(token.content, id);
    }
    let tokens = config.special_tokens();
    let unknown = tokens.get("unk_token").and_then(|t| t.as_str()).unwrap_or("[UNK]");
    if !vocabulary.contains_key(unknown) {
        return Err(damaged(file, format!("there is no piece {unknown:?} for unknown text")));
    }
    let model = WordPiece::builder().vocab(vocabulary).unk_token(unknown.into()).build();
    let model = model.map_err(|e| damaged(file, e.to_string()))?;
    let normalizer = BertNormalizer::new(
        true,
        config.flag("tokenize_chinese_chars").unwrap_or(true),
        config.flag("strip_accents"),
        config.flag("do_lower_case").unwrap_or(true),
    );
    Ok(Parts {
        normalizer: Some(Normalizer::Crate(NormalizerWrapper::BertNormalizer(normalizer))),
        pre_tokenizer: Some(BertPreTokenizer.into()),
        decoder: Some(WordPieceDecoder::new("##".into(), true).into()),
        roles,
        begin: Some("cls_token"),
        end: Some("sep_token"),
        ..Parts::new(Model::Crate(Box::new(model.into())))
    })
}

/// A Unigram model as a list of piece, score and kind on each line.
pub fn scored(file: &str, bytes: &[u8], _: &Config, _: &Files) -> Result<Parts> {
    let text = std::str::from_utf8(bytes).map_err(|_| damaged(file, "not UTF-8"))?;
    let mut vocabulary = Vocabulary::default();
    let mut pieces = Vec::new();
    let mut scores = Vec::new();
    let mut added = Vec::new();
    for (line, id) in text.lines().zip(0_u32..) {
        let damaged = |reason: String| damaged(file, format!("line {}: {reason}", id + 1));
        let row: Vec<Json> = serde_json::from_str(line).map_err(|e| damaged(e.to_string()))?;
        let (Some(piece), Some(score)) =
            (row.first().and_then(Json::as_str), row.get(1).and_then(Json::as_f64))
        else {
            return Err(damaged("not a list of a piece and its score".into()));
        };
        vocabulary.insert(piece, id).map_err(damaged)?;
        let kind = row.get(2).and_then(Json::as_str);
        let score = Backward::score(score).filter(|_| kind != Some("BYTE"));
        pieces.extend(score.map(|_| (piece.to_string(), id)));
        scores.push(score.unwrap_or_default());
        if matches!(kind, Some("CONTROL" | "UNKNOWN")) {
            added.push(AddedToken::from(piece, true).normalized(false));
        }
    }
    let fallback = Fallback::bytes(&vocabulary).map_err(|reason| damaged(file, reason))?;
    let prefixes = Prefixes::new(pieces.iter().map(|(piece, id)| (piece.as_str(), *id)));
    let role = |(role, name): (&'static str, &str)| (role, format!("<|plamo:{name}|>"));
    let roles =
        [("unk_token", "unk"), ("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "pad")];
    let segment = Backward { prefixes, scores, fallback };
    Ok(Parts {
        added,
        roles: roles.map(role).into(),
        decoder: Some(Sequence::new(vec![ByteFallback::new().into(), Fuse::new().into()]).into()),
        ..Parts::new(Model::Pieces(vocabulary, Box::new(segment)))
    })
}

/// RWKV's World vocabulary: an id, a literal of Python and its length in bytes on each line.
pub fn world(file: &str, bytes: &[u8], _: &Config, _: &Files) -> Result<Parts> {
    const END: &str = "<|endoftext|>";
    let text = std::str::from_utf8(bytes).map_err(|_| damaged(file, "not UTF-8"))?;
    let alphabet = ranks::alphabet();
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
            return Err(damaged(file, format!("no token spells the byte {byte:#04x}")));
        }
    }
    let mut added = Vec::new();
    if vocabulary.piece(0).is_none() {
        vocabulary.name(END, 0);
        added.push(AddedToken::from(END, true).normalized(false));
    }
    if let Some(hole) = vocabulary.hole() {
        return Err(damaged(file, format!("no token has the id {hole}")));
    }
    let prefixes = Prefixes::new(pieces.iter().map(|(piece, id)| (piece.as_str(), *id)));
    Ok(Parts {
        added,
        roles: vec![("eos_token", END.into())],
        pre_tokenizer: Some(ByteLevel::new(false, true, false).into()),
        decoder: Some(ByteLevel::default().into()),
        ..Parts::new(Model::Pieces(vocabulary, Box::new(Greedy(prefixes))))
    })
}

/// The bytes of a string or bytes literal as Python's `repr` writes it.
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
    fn literals_are_those_of_python() {
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
