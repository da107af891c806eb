//! sentencepiece models (`tokenizer.model`): Unigram or BPE with a normalizer.
//!
//! The reference is the `sentencepiece` library on the text between added tokens. The conversion of
//! transformers loses some of its behaviour: merges of equal rank, extra spaces, user-defined pieces.

use crate::error::Result;
use crate::text::tokenizer::backend::{Model, Normalizer, Segment, Vocabulary};
use crate::text::tokenizer::config::Config;
use crate::text::tokenizer::vocabularies::pipeline::{Pipeline, damaged};
use crate::text::tokenizer::vocabularies::prefixes::Prefixes;
use crate::text::tokenizer::vocabularies::protobuf::{Value, fields};
use crate::text::tokenizer::vocabularies::ranked_merges::{NEVER_MERGED, RankedMerges};
use crate::text::tokenizer::vocabularies::sentencepiece_normalizer::{
    CharacterMap, SPACE, SentencepieceNormalizer,
};
use crate::text::tokenizer::vocabularies::unigram::{Score, Unigram};
use crate::text::tokenizer::vocabularies::unknown_text::UnknownText;
use std::collections::HashSet;
use tokenizers::AddedToken;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence;
use tokenizers::decoders::strip::Strip;
use tokenizers::normalizers::Replace;

const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;
const BYTE: i64 = 6;

const UNIGRAM: i64 = 1;
const BPE: i64 = 2;

struct Piece<'a> {
    text: &'a str,
    score: f32,
    kind: i64,
}

/// The fields of `trainer_spec` and `normalizer_spec` that matter here.
struct Spec<'a> {
    model_type: i64,
    byte_fallback: bool,
    /// The roles of special pieces and their ids.
    roles: [(&'static str, i64); 4],
    characters: &'a [u8],
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
    escape_whitespaces: bool,
    space_is_suffix: bool,
}

/// Reads a model.
pub fn read(file: &str, bytes: &[u8], config: &Config) -> Result<Pipeline> {
    let message =
        fields(bytes).ok_or_else(|| damaged(file, "not a sentencepiece model, or truncated"))?;
    let (pieces, spec) =
        parse(&message).ok_or_else(|| damaged(file, "not a sentencepiece model"))?;
    if pieces.is_empty() {
        return Err(damaged(file, "the model has no pieces"));
    }
    let mut vocabulary = Vocabulary::default();
    for (piece, id) in pieces.iter().zip(0..) {
        vocabulary.insert(piece.text, id).map_err(|reason| damaged(file, reason))?;
    }
    let unknown = pieces.iter().position(|piece| piece.kind == UNKNOWN);
    let unknown = unknown.ok_or_else(|| damaged(file, "the piece for unknown text is missing"))?;
    let unknown_text = match spec.byte_fallback {
        true => UnknownText::bytes(&vocabulary).map_err(|reason| damaged(file, reason))?,
        false => UnknownText::Unknown(unknown as u32),
    };
    let of = |kinds: &'static [i64]| {
        let ids = pieces.iter().zip(0_u32..);
        ids.filter(|(piece, _)| kinds.contains(&piece.kind)).map(|(piece, id)| (piece.text, id))
    };
    let segment: Box<dyn Segment> = match spec.model_type {
        UNIGRAM => {
            let normal = || pieces.iter().filter(|p| p.kind == NORMAL).map(|p| p.score);
            let (least, most) =
                (normal().fold(f32::MAX, f32::min), normal().fold(f32::MIN_POSITIVE, f32::max));
            let score = |piece: &Piece| match piece.kind {
                USER_DEFINED => Score::PerByte(most),
                _ => Score::LogProbability(piece.score),
            };
            Box::new(Unigram {
                prefixes: Prefixes::new(of(&[NORMAL, USER_DEFINED])),
                scores: pieces.iter().map(score).collect(),
                unknown_score: least - 10.0,
                unknown_text,
            })
        }
        BPE => Box::new(RankedMerges {
            ranks: ranks(&pieces),
            ignore_merges: false,
            user_defined: Prefixes::new(of(&[USER_DEFINED])),
            unused: of(&[UNUSED]).map(|(_, id)| id).collect::<HashSet<_>>(),
            unknown_text,
        }),
        other => {
            return Err(damaged(
                file,
                format!("sentencepiece models of type {other} are not supported"),
            ));
        }
    };
    let characters = Some(spec.characters).filter(|map| !map.is_empty()).map(CharacterMap::read);
    let characters = characters.transpose().map_err(|reason| damaged(file, reason))?;
    let normalizer = SentencepieceNormalizer {
        characters,
        user_defined: Prefixes::new(of(&[USER_DEFINED])),
        add_dummy_prefix: spec.add_dummy_prefix && config.flag("add_prefix_space").unwrap_or(true),
        prefix_once: !config.is_legacy(),
        space_is_suffix: spec.space_is_suffix,
        remove_extra_whitespaces: spec.remove_extra_whitespaces,
        escape_whitespaces: spec.escape_whitespaces,
    };
    let mut decoders =
        vec![replace_space(file)?.into(), ByteFallback::new().into(), Fuse::new().into()];
    if normalizer.add_dummy_prefix || spec.remove_extra_whitespaces {
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    let special = |(text, _)| AddedToken::from(text, true).normalized(false);
    let added = of(&[CONTROL, UNKNOWN]).map(special).collect();
    let role = |(role, id): (&'static str, i64)| {
        Some((role, pieces.get(usize::try_from(id).ok()?)?.text.to_string()))
    };
    Ok(Pipeline {
        added,
        roles: spec.roles.into_iter().filter_map(role).collect(),
        normalizer: Some(Normalizer::Sentencepiece(Box::new(normalizer))),
        decoder: Some(Sequence::new(decoders).into()),
        // The published tokenization code of this class adds no token at the start.
        start: (config.class() != "Ernie4_5_Tokenizer").then_some("bos_token"),
        ..Pipeline::new(Model::Pieces(vocabulary, segment))
    })
}

fn replace_space(file: &str) -> Result<Replace> {
    Replace::new(SPACE.to_string(), " ").map_err(|e| damaged(file, e.to_string()))
}

/// The BPE ranks of the pieces. Pieces of equal score have equal ranks.
fn ranks(pieces: &[Piece]) -> Vec<u32> {
    let is_merged = |piece: &Piece| [NORMAL, USER_DEFINED, UNUSED].contains(&piece.kind);
    let mut scores: Vec<f32> = pieces.iter().filter(|p| is_merged(p)).map(|p| p.score).collect();
    scores.sort_by(|a, b| b.total_cmp(a));
    scores.dedup();
    let rank = |piece: &Piece| match is_merged(piece) {
        true => scores.partition_point(|score| *score > piece.score) as u32,
        false => NEVER_MERGED,
    };
    pieces.iter().map(rank).collect()
}

fn parse<'a>(message: &[(u64, Value<'a>)]) -> Option<(Vec<Piece<'a>>, Spec<'a>)> {
    let mut pieces = Vec::new();
    let mut spec = Spec {
        model_type: UNIGRAM,
        byte_fallback: false,
        roles: [("unk_token", 0), ("bos_token", 1), ("eos_token", 2), ("pad_token", -1)],
        characters: &[],
        add_dummy_prefix: true,
        remove_extra_whitespaces: true,
        escape_whitespaces: true,
        space_is_suffix: false,
    };
    for (number, value) in message {
        match number {
            1 => pieces.push(piece(value.bytes()?)?),
            2 => trainer(value.bytes()?, &mut spec)?,
            3 => normalizer(value.bytes()?, &mut spec)?,
            _ => {}
        }
    }
    Some((pieces, spec))
}

fn piece(message: &[u8]) -> Option<Piece<'_>> {
    let mut piece = Piece { text: "", score: 0.0, kind: NORMAL };
    for (number, value) in fields(message)? {
        match number {
            1 => piece.text = value.text()?,
            2 => piece.score = value.float().filter(|score| !score.is_nan())?,
            3 => piece.kind = value.int().filter(|kind| (NORMAL..=BYTE).contains(kind))?,
            _ => {}
        }
    }
    Some(piece)
}

fn trainer(message: &[u8], spec: &mut Spec) -> Option<()> {
    for (number, value) in fields(message)? {
        match number {
            3 => spec.model_type = value.int()?,
            24 => spec.space_is_suffix = value.bool()?,
            35 => spec.byte_fallback = value.bool()?,
            40..=43 => spec.roles[number as usize - 40].1 = value.int()?,
            _ => {}
        }
    }
    Some(())
}

fn normalizer<'a>(message: &'a [u8], spec: &mut Spec<'a>) -> Option<()> {
    for (number, value) in fields(message)? {
        match number {
            2 => spec.characters = value.bytes()?,
            3 => spec.add_dummy_prefix = value.bool()?,
            4 => spec.remove_extra_whitespaces = value.bool()?,
            5 => spec.escape_whitespaces = value.bool()?,
            _ => {}
        }
    }
    Some(())
}
