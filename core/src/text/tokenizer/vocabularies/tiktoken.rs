//! tiktoken files: a line has a token in base64 and its rank.
//!
//! Such a file has neither a pattern nor special tokens; both stand in code that the authors of the
//! checkpoint publish beside it (`tokenization_*.py`). This library never runs that code and knows
//! the pattern and the special tokens from the file's name.

use crate::checkpoint::files::Files;
use crate::error::Result;
use crate::text::tokenizer::backend::Normalizer;
use crate::text::tokenizer::config::Config;
use crate::text::tokenizer::vocabularies::byte_level::{
    CL100K, HAN, SINGLE_DIGITS, base64, ranked,
};
use crate::text::tokenizer::vocabularies::pipeline::{Pipeline, damaged};

/// A file with the special tokens of ChatML.
pub fn chatml(file: &str, bytes: &[u8], _: &Config, _: &Files) -> Result<Pipeline> {
    let names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(String::from).into_iter();
    let special = names.chain((0..205).map(|i| format!("<|extra_{i}|>")));
    let pipeline = read(file, bytes, SINGLE_DIGITS, |base| special.zip(base..).collect())?;
    let roles = vec![("eos_token", "<|endoftext|>".to_string())];
    Ok(Pipeline { normalizer: Some(Normalizer::nfc()), roles, ..pipeline })
}

/// A file whose texts begin with `<|startoftext|>`.
pub fn start_of_text(file: &str, bytes: &[u8], _: &Config, _: &Files) -> Result<Pipeline> {
    let names = ["<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>"];
    let special = names.map(String::from).into_iter();
    let special = special.chain((0..205).map(|i| format!("<|extra_{i}|>")));
    let pipeline = read(file, bytes, SINGLE_DIGITS, |base| special.zip(base..).collect())?;
    Ok(Pipeline { normalizer: Some(Normalizer::nfc()), ..pipeline })
}

/// `cl100k_base.tiktoken`, with special tokens for chats.
pub fn cl100k(file: &str, bytes: &[u8], _: &Config, _: &Files) -> Result<Pipeline> {
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
    let pipeline = read(file, bytes, CL100K, |base| special.zip(base..).collect())?;
    let end = "<|endoftext|>".to_string();
    Ok(Pipeline { roles: vec![("bos_token", end.clone()), ("eos_token", end)], ..pipeline })
}

/// `tiktoken.model`; the config names its last 256 ids.
pub fn reserved_tokens(file: &str, bytes: &[u8], config: &Config, _: &Files) -> Result<Pipeline> {
    let listed = config.listed();
    let name = |id: u32| match listed.iter().find(|(listed, _)| *listed == id) {
        Some((_, token)) => token.content.clone(),
        None => format!("<|reserved_token_{id}|>"),
    };
    read(file, bytes, HAN, |base| (base..base + 256).map(|id| (name(id), id)).collect())
}

/// A file whose special tokens are listed in the config.
pub fn plain(file: &str, bytes: &[u8], _: &Config, _: &Files) -> Result<Pipeline> {
    read(file, bytes, CL100K, |_| Vec::new())
}

fn read(
    file: &str,
    bytes: &[u8],
    pattern: &str,
    special: impl FnOnce(u32) -> Vec<(String, u32)>,
) -> Result<Pipeline> {
    let text = std::str::from_utf8(bytes).map_err(|_| damaged(file, "not a tiktoken file"))?;
    let mut tokens = Vec::new();
    for (line, number) in text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty()) {
        let damaged = |reason: &str| damaged(file, format!("line {number}: {reason}"));
        let (token, rank) =
            line.trim().split_once(' ').ok_or_else(|| damaged("not a token and its rank"))?;
        let token = base64(token).ok_or_else(|| damaged("malformed base64"))?;
        let rank = rank.trim().parse().map_err(|_| damaged("the rank is not a number"))?;
        tokens.push((token, rank));
    }
    let base = tokens.len() as u32;
    if let Some((_, rank)) = tokens.iter().find(|(_, rank)| *rank >= base) {
        return Err(damaged(
            file,
            format!("the rank {rank} leaves a gap: the file has {base} tokens"),
        ));
    }
    ranked(file, tokens, pattern, special(base))
}
