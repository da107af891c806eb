//! BERT's file: `vocab.txt` with one WordPiece piece a line, whose number is its id.

use crate::checkpoint::files::Files;
use crate::error::Result;
use crate::text::tokenizer::backend::{Model, Normalizer};
use crate::text::tokenizer::config::Config;
use crate::text::tokenizer::vocabularies::pipeline::{Pipeline, damaged};
use tokenizers::NormalizerWrapper;
use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::models::bpe::Vocab;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;

/// Reads `vocab.txt`.
pub fn read(file: &str, bytes: &[u8], config: &Config, _: &Files) -> Result<Pipeline> {
    let text = std::str::from_utf8(bytes).map_err(|_| damaged(file, "the file is not UTF-8"))?;
    let mut vocabulary = Vocab::default();
    for (piece, id) in text.lines().zip(0..) {
        if vocabulary.insert(piece.trim_end().to_string(), id).is_some() {
            return Err(damaged(
                file,
                format!("line {}: the piece {piece:?} appears twice", id + 1),
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
        return Err(damaged(file, format!("the piece {unknown:?} for unknown text is missing")));
    }
    let model = WordPiece::builder().vocab(vocabulary).unk_token(unknown.into()).build();
    let model = model.map_err(|e| damaged(file, e.to_string()))?;
    let normalizer = BertNormalizer::new(
        true,
        config.flag("tokenize_chinese_chars").unwrap_or(true),
        config.flag("strip_accents"),
        config.flag("do_lower_case").unwrap_or(true),
    );
    Ok(Pipeline {
        normalizer: Some(Normalizer::Crate(NormalizerWrapper::BertNormalizer(normalizer))),
        pre_tokenizer: Some(BertPreTokenizer.into()),
        decoder: Some(WordPieceDecoder::new("##".into(), true).into()),
        roles,
        start: Some("cls_token"),
        end: Some("sep_token"),
        ..Pipeline::new(Model::Crate(Box::new(model.into())))
    })
}
