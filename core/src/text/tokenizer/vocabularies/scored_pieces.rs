//! The `tokenizer.jsonl` of Preferred Networks: a Unigram model with one list of piece, score and kind
//! a line. The reference is the `tokenization_plamo.py` of its authors.

use crate::checkpoint::files::Files;
use crate::error::Result;
use crate::text::tokenizer::backend::{Model, Vocabulary};
use crate::text::tokenizer::config::Config;
use crate::text::tokenizer::vocabularies::pipeline::{Pipeline, damaged};
use crate::text::tokenizer::vocabularies::prefixes::Prefixes;
use crate::text::tokenizer::vocabularies::unigram::BackwardUnigram;
use crate::text::tokenizer::vocabularies::unknown_text::UnknownText;
use serde_json::Value as Json;
use tokenizers::AddedToken;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence;

/// Reads `tokenizer.jsonl`.
pub fn read(file: &str, bytes: &[u8], _: &Config, _: &Files) -> Result<Pipeline> {
    let text = std::str::from_utf8(bytes).map_err(|_| damaged(file, "the file is not UTF-8"))?;
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
        let score = BackwardUnigram::score(score).filter(|_| kind != Some("BYTE"));
        pieces.extend(score.map(|_| (piece.to_string(), id)));
        scores.push(score.unwrap_or_default());
        if matches!(kind, Some("CONTROL" | "UNKNOWN")) {
            added.push(AddedToken::from(piece, true).normalized(false));
        }
    }
    let unknown_text = UnknownText::bytes(&vocabulary).map_err(|reason| damaged(file, reason))?;
    let prefixes = Prefixes::new(pieces.iter().map(|(piece, id)| (piece.as_str(), *id)));
    let role = |(role, name): (&'static str, &str)| (role, format!("<|plamo:{name}|>"));
    let roles =
        [("unk_token", "unk"), ("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "pad")];
    let segment = BackwardUnigram { prefixes, scores, unknown_text };
    Ok(Pipeline {
        added,
        roles: roles.map(role).into(),
        decoder: Some(Sequence::new(vec![ByteFallback::new().into(), Fuse::new().into()]).into()),
        ..Pipeline::new(Model::Pieces(vocabulary, Box::new(segment)))
    })
}
