//! Byte-level BPE whose merges are the ranks of its tokens: tiktoken files and `tekken.json`.
//!
//! Such a file has neither its pattern nor its special tokens, or only those; the rest is code that
//! its authors publish beside it (`tokenization_*.py`), which is never run but known by the file's
//! name.

use crate::checkpoint::files::Files;
use crate::error::Result;
use crate::text::tokenizer::backend::{Model, Normalizer, Vocabulary};
use crate::text::tokenizer::config::Config;
use crate::text::tokenizer::fallback::Fallback;
use crate::text::tokenizer::merge::{Merge, NEVER};
use crate::text::tokenizer::parts::{Parts, damaged};
use crate::text::tokenizer::prefixes::Prefixes;
use serde_json::Value as Json;
use std::collections::HashSet;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior};

/// Words, single digits.
pub const DIGITS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Words, up to three digits: cl100k.
const TRIPLES: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Words by their case, Chinese apart from other scripts.
const HAN: &str = r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Roles between `<|im_start|>` and `<|im_end|>`.
pub fn chat_markup(file: &str, bytes: &[u8], _: &Config, _: &Files) -> Result<Parts> {
    let names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(String::from).into_iter();
    let special = names.chain((0..205).map(|i| format!("<|extra_{i}|>")));
    let parts = tiktoken(file, bytes, DIGITS, |base| special.zip(base..).collect())?;
    let roles = vec![("eos_token", "<|endoftext|>".to_string())];
    Ok(Parts { normalizer: Some(Normalizer::nfc()), roles, ..parts })
}

/// A vocabulary whose texts begin with `<|startoftext|>`.
pub fn start_of_text(file: &str, bytes: &[u8], _: &Config, _: &Files) -> Result<Parts> {
    let names = ["<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>"];
    let special = names.map(String::from).into_iter();
    let special = special.chain((0..205).map(|i| format!("<|extra_{i}|>")));
    let parts = tiktoken(file, bytes, DIGITS, |base| special.zip(base..).collect())?;
    Ok(Parts { normalizer: Some(Normalizer::nfc()), ..parts })
}

/// `cl100k_base.tiktoken`, with the roles of a chat.
pub fn cl100k(file: &str, bytes: &[u8], _: &Config, _: &Files) -> Result<Parts> {
    const NAMES: [&str; 11] = [
        "<|dummy_id_2|>",
        "<|endoftext|>",
        "<|fim_prefix|>",
        "<|fim_middle|>",
        "<|fim_suffix|>",
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "<|dummy_id_0|>",
        "<|dummy_id_1|>",
        "<|end|>",
    ];
    let padding = (3..=11).map(|i| format!("<|dummy_id_{i}|>"));
    let last = std::iter::once("<|endofprompt|>".to_string());
    let more = (12..=86).map(|i| format!("<|dummy_id_{i}|>"));
    let special = NAMES.map(String::from).into_iter().chain(padding).chain(last).chain(more);
    let parts = tiktoken(file, bytes, TRIPLES, |base| special.zip(base..).collect())?;
    let end = "<|endoftext|>".to_string();
    Ok(Parts { roles: vec![("bos_token", end.clone()), ("eos_token", end)], ..parts })
}

/// `tiktoken.model`, whose last 256 ids are named by the config.
pub fn reserved(file: &str, bytes: &[u8], config: &Config, _: &Files) -> Result<Parts> {
    let listed = config.listed();
    let name = |id: u32| match listed.iter().find(|(listed, _)| *listed == id) {
        Some((_, token)) => token.content.clone(),
        None => format!("<|reserved_token_{id}|>"),
    };
    tiktoken(file, bytes, HAN, |base| (base..base + 256).map(|id| (name(id), id)).collect())
}

/// A tiktoken file whose special tokens the config lists, such as a `tokenizer.model` that is none
/// of sentencepiece.
pub fn listed(file: &str, bytes: &[u8], _: &Config, _: &Files) -> Result<Parts> {
    tiktoken(file, bytes, TRIPLES, |_| Vec::new())
}

/// A line for each token: its bytes in base64, and its rank.
fn tiktoken(
    file: &str,
    bytes: &[u8],
    pattern: &str,
    special: impl FnOnce(u32) -> Vec<(String, u32)>,
) -> Result<Parts> {
    let text = std::str::from_utf8(bytes).map_err(|_| damaged(file, "not a tiktoken file"))?;
    let mut tokens = Vec::new();
    for (line, number) in text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty()) {
        let damaged = |reason: &str| damaged(file, format!("line {number}: {reason}"));
        let (token, rank) =
            line.trim().split_once(' ').ok_or_else(|| damaged("no token and rank"))?;
        let token = base64(token).ok_or_else(|| damaged("malformed base64"))?;
        let rank = rank.trim().parse().map_err(|_| damaged("the rank is no number"))?;
        tokens.push((token, rank));
    }
    let base = tokens.len() as u32;
    if let Some((_, rank)) = tokens.iter().find(|(_, rank)| *rank >= base) {
        return Err(damaged(file, format!("the rank {rank} leaves holes among {base} tokens")));
    }
    byte_level(file, tokens, pattern, special(base))
}

/// `tekken.json`: tokens in base64 after a block of special ones, and the pattern.
pub fn tekken(file: &str, bytes: &[u8], _: &Config, _: &Files) -> Result<Parts> {
    /// The special tokens of files that do not list theirs.
    const UNLISTED: [&str; 20] = [
        "<unk>",
        "<s>",
        "</s>",
        "[INST]",
        "[/INST]",
        "[AVAILABLE_TOOLS]",
        "[/AVAILABLE_TOOLS]",
        "[TOOL_RESULTS]",
        "[/TOOL_RESULTS]",
        "[TOOL_CALLS]",
        "[IMG]",
        "<pad>",
        "[IMG_BREAK]",
        "[IMG_END]",
        "[PREFIX]",
        "[MIDDLE]",
        "[SUFFIX]",
        "[SYSTEM_PROMPT]",
        "[/SYSTEM_PROMPT]",
        "[TOOL_CONTENT]",
    ];
    let json: Json = serde_json::from_slice(bytes).map_err(|e| damaged(file, e.to_string()))?;
    let config = &json["config"];
    let number = |field: &str| config[field].as_u64().and_then(|n| u32::try_from(n).ok());
    let pattern = config["pattern"].as_str();
    let pattern = pattern.ok_or_else(|| damaged(file, "`config.pattern` is no string"))?;

    let mut special: Vec<String> = match json.get("special_tokens").and_then(Json::as_array) {
        None => UNLISTED.map(String::from).to_vec(),
        Some(listed) => {
            let mut listed: Vec<_> =
                listed.iter().map(|t| (t["rank"].as_u64(), t["token_str"].as_str())).collect();
            listed.sort_unstable();
            let named = listed
                .iter()
                .zip(0..)
                .map(|((rank, text), i)| text.filter(|_| *rank == Some(i)).map(String::from));
            let named = named.collect::<Option<_>>();
            named.ok_or_else(|| damaged(file, "the ranks of `special_tokens` have holes"))?
        }
    };
    let count = number("default_num_special_tokens").unwrap_or(special.len() as u32);
    let vocabulary = json["vocab"].as_array().ok_or_else(|| damaged(file, "`vocab` is no list"))?;
    if count as usize > special.len() + vocabulary.len() {
        return Err(damaged(file, "`config.default_num_special_tokens` is out of range"));
    }
    special.extend((special.len() as u32..count).map(|i| format!("<SPECIAL_{i}>")));
    let count = special.len() as u32;
    let kept = number("default_vocab_size").map(|size| size.saturating_sub(count) as usize);
    let kept = kept.unwrap_or(vocabulary.len());
    if kept > vocabulary.len() {
        return Err(damaged(file, "`vocab` is shorter than `config.default_vocab_size`"));
    }
    let token = |(entry, rank): (&Json, u32)| {
        let damaged = |reason| damaged(file, format!("`vocab`, entry {rank}: {reason}"));
        if entry["rank"].as_u64() != Some(rank.into()) {
            return Err(damaged("the rank is not that of its place"));
        }
        let token = entry["token_bytes"].as_str().and_then(base64);
        Ok((token.ok_or_else(|| damaged("malformed base64"))?, count + rank))
    };
    let tokens = vocabulary[..kept].iter().zip(0..).map(token).collect::<Result<_>>()?;
    let special: Vec<_> = special.into_iter().zip(0..).collect();
    let roles = ["unk_token", "bos_token", "eos_token", "pad_token"];
    let roles = roles.into_iter().zip(["<unk>", "<s>", "</s>", "<pad>"]);
    let roles = roles.map(|(role, name)| (role, name.to_string())).collect();
    Ok(Parts { roles, ..byte_level(file, tokens, pattern, special)? })
}

/// The pipeline for tokens of bytes, which their ids rank. The ids of all tokens are a range from 0.
fn byte_level(
    file: &str,
    tokens: Vec<(Vec<u8>, u32)>,
    pattern: &str,
    special: Vec<(String, u32)>,
) -> Result<Parts> {
    let damaged = |reason: String| damaged(file, reason);
    let alphabet = alphabet();
    let mut vocabulary = Vocabulary::default();
    let mut ranks = vec![NEVER; tokens.len() + special.len()];
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
            return Err(damaged(format!("no token spells the byte {byte:#04x}")));
        }
    }
    let merge = Merge {
        ranks,
        whole: true,
        fixed: Prefixes::default(),
        unused: HashSet::new(),
        fallback: Fallback::None,
    };
    let added = special.into_iter().map(|(token, _)| AddedToken::from(token, true));
    Ok(Parts {
        added: added.map(|token| token.normalized(false)).collect(),
        pre_tokenizer: Some(split(file, pattern)?),
        decoder: Some(ByteLevel::default().into()),
        ..Parts::new(Model::Pieces(vocabulary, Box::new(merge)))
    })
}

/// Cuts text by a pattern, and spells its bytes as characters.
pub fn split(file: &str, pattern: &str) -> Result<PreTokenizerWrapper> {
    let pattern = SplitPattern::Regex(pattern.into());
    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
    let split =
        split.map_err(|e| damaged(file, format!("the pattern is no regular expression: {e}")))?;
    let bytes = ByteLevel::new(false, true, false);
    Ok(Sequence::new(vec![split.into(), bytes.into()]).into())
}

/// The characters that spell bytes since GPT-2.
pub fn alphabet() -> [char; 256] {
    let mut other = 256_u32..;
    std::array::from_fn(|byte| match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(byte as u8),
        _ => other.next().and_then(char::from_u32).unwrap_or_default(),
    })
}

/// Strict base64 with padding.
pub(super) fn base64(text: &str) -> Option<Vec<u8>> {
    let text = text.as_bytes();
    let padding = text.iter().rev().take(2).take_while(|c| **c == b'=').count();
    if text.is_empty() || !text.len().is_multiple_of(4) {
        return None;
    }
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0_u32, 0);
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
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    (bits & ((1 << held) - 1) == 0).then_some(out)
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
