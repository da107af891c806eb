//! GPT-2's files: `vocab.json` with the ids of the pieces and `merges.txt` with the pairs that
//! byte-level BPE merges, in their order.

use crate::checkpoint::files::Files;
use crate::error::Result;
use crate::text::tokenizer::backend::{Model, Normalizer};
use crate::text::tokenizer::config::Config;
use crate::text::tokenizer::vocabularies::byte_level;
use crate::text::tokenizer::vocabularies::pipeline::{Pipeline, damaged};
use std::collections::HashMap;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

const MERGES: &str = "merges.txt";

/// Reads `vocab.json` and the `merges.txt` beside it.
pub fn read(file: &str, bytes: &[u8], config: &Config, files: &Files) -> Result<Pipeline> {
    let vocabulary: HashMap<String, u32> =
        serde_json::from_slice(bytes).map_err(|e| damaged(file, e.to_string()))?;
    let mut vocabulary = distinct(file, vocabulary)?;
    let merges = files
        .read(MERGES)?
        .ok_or_else(|| damaged(MERGES, "the file is missing; it must stand beside vocab.json"))?;
    let text =
        std::str::from_utf8(&merges).map_err(|_| damaged(MERGES, "the file is not UTF-8"))?;
    let mut pairs = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        if line.starts_with("#version") || line.trim().is_empty() {
            continue;
        }
        let damaged = |reason: String| damaged(MERGES, format!("line {number}: {reason}"));
        let mut pieces = line.split(' ');
        let (Some(left), Some(right), None) = (pieces.next(), pieces.next(), pieces.next()) else {
            return Err(damaged("not a pair of pieces".into()));
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
    let splits_digits = config.class() == "Qwen2Tokenizer";
    let bpe = BPE::builder().vocab_and_merges(vocabulary.into_iter().collect::<Vocab>(), pairs);
    let bpe = bpe.build().map_err(|e| damaged(file, e.to_string()))?;
    let prefix = config.flag("add_prefix_space").unwrap_or(false);
    let pre_tokenizer = match splits_digits {
        true => byte_level::split(file, byte_level::SINGLE_DIGITS)?,
        false => ByteLevel::new(prefix, true, true).into(),
    };
    let end = "<|endoftext|>".to_string();
    Ok(Pipeline {
        normalizer: splits_digits.then(Normalizer::nfc),
        pre_tokenizer: Some(pre_tokenizer),
        decoder: Some(ByteLevel::default().into()),
        roles: if splits_digits {
            vec![("eos_token", end)]
        } else {
            vec![("bos_token", end.clone()), ("eos_token", end)]
        },
        ..Pipeline::new(Model::Crate(Box::new(bpe.into())))
    })
}

/// Checks that no two pieces have the same id.
fn distinct(file: &str, vocabulary: HashMap<String, u32>) -> Result<HashMap<String, u32>> {
    let mut ids: Vec<_> = vocabulary.values().collect();
    ids.sort_unstable();
    match ids.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(damaged(file, format!("two pieces have the id {}", pair[0]))),
        None => Ok(vocabulary),
    }
}
