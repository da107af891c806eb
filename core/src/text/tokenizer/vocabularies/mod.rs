//! Vocabularies in other files than `tokenizer.json`: the name of the file decides how it is read. Every
//! reader returns the stages of one pipeline, so that added tokens, decoding and streaming are one
//! path for all of them. The reference of a reader is the library or the code of the authors that the
//! file was made for.

pub(super) mod byte_level;
mod longest_match;
mod pipeline;
mod prefixes;
mod protobuf;
mod ranked_merges;
mod scored_pieces;
mod sentencepiece;
pub(super) mod sentencepiece_normalizer;
mod tekken;
mod tiktoken;
mod unigram;
mod unknown_text;
mod vocab_json;
mod vocab_txt;
mod world;

use crate::checkpoint::files::Files;
use crate::error::Result;
use crate::text::tokenizer::backend::{Backend, Model, Normalizer};
use crate::text::tokenizer::config::Config;
use pipeline::{Pipeline, damaged};
use tokenizers::processors::template::{SpecialToken, TemplateProcessing};

/// A reader of one kind of file.
type Read = fn(&str, &[u8], &Config, &Files) -> Result<Pipeline>;

/// The files that hold a vocabulary. The first one in a checkpoint is used.
const READERS: [(&str, Read); 14] = [
    ("tekken.json", tekken::read),
    ("qwen.tiktoken", tiktoken::chatml),
    ("hy.tiktoken", tiktoken::start_of_text),
    ("cl100k_base.tiktoken", tiktoken::cl100k),
    ("tiktoken.model", tiktoken::reserved_tokens),
    ("tokenizer.jsonl", scored_pieces::read),
    ("rwkv_vocab_v20230424.txt", world::read),
    ("tokenizer.model", sentencepiece_or_tiktoken),
    ("spiece.model", sentencepiece_or_tiktoken),
    ("sentencepiece.bpe.model", sentencepiece_or_tiktoken),
    ("chn_jpn_yue_eng_ko_spectok.bpe.model", sentencepiece_or_tiktoken),
    ("tokenizer.tiktoken", tiktoken::plain),
    ("vocab.json", vocab_json::read),
    ("vocab.txt", vocab_txt::read),
];

/// The largest gap between a vocabulary and the id of an added token.
const MAX_ADDED: usize = 1 << 18;

/// A `tokenizer.model` is a sentencepiece model or a tiktoken file, which is ASCII text.
fn sentencepiece_or_tiktoken(
    file: &str,
    bytes: &[u8],
    config: &Config,
    files: &Files,
) -> Result<Pipeline> {
    let is_text = !bytes.is_empty() && bytes.iter().all(|byte| matches!(byte, b'\n' | b' '..=b'~'));
    if is_text {
        tiktoken::plain(file, bytes, config, files)
    } else {
        sentencepiece::read(file, bytes, config)
    }
}

/// The names of the files that hold a vocabulary.
pub fn files() -> impl Iterator<Item = &'static str> {
    READERS.iter().map(|(file, _)| *file)
}

/// Reads the first vocabulary file in a checkpoint. Returns its name, the pipeline, and the config with
/// the roles of special tokens that it did not name.
pub fn read(files: &Files, config: Config) -> Result<(&'static str, Backend, Config)> {
    let mut config = config.with_added_tokens(files)?;
    for (file, reader) in READERS {
        let Some(bytes) = files.read(file)? else { continue };
        let is_world = file == "vocab.txt" && config.class().to_lowercase().starts_with("rwkv");
        let reader = if is_world { world::read } else { reader };
        let pipeline = reader(file, &bytes, &config, files)?;
        for (role, token) in &pipeline.roles {
            config.set_role(role, token);
        }
        let backend = assemble(file, pipeline, &config)?;
        return Ok((file, backend, config));
    }
    let names: Vec<_> = self::files().collect();
    Err(damaged(
        "tokenizer.json",
        format!("the checkpoint has neither this file nor {}", names.join(", ")),
    ))
}

/// Builds the tokenizer from a pipeline and the config.
fn assemble(file: &str, pipeline: Pipeline, config: &Config) -> Result<Backend> {
    let Pipeline { mut model, normalizer, pre_tokenizer, decoder, mut added, start, end, .. } =
        pipeline;
    if let Model::Pieces(vocabulary, _) = &mut model {
        let listed = config.listed();
        for (id, token) in &listed {
            if *id as usize >= vocabulary.len() + MAX_ADDED {
                let (content, pieces) = (&token.content, vocabulary.len());
                let reason =
                    format!("the token {content:?} has the id {id}, but there are {pieces} pieces");
                return Err(damaged(file, reason));
            }
        }
        for (id, token) in &listed {
            vocabulary.set_piece(&token.content, *id);
        }
    }
    let present: Vec<_> = added.iter().map(|token| token.content.clone()).collect();
    let mut more = config.added(|token| present.iter().any(|content| content == token));
    if matches!(normalizer, Some(Normalizer::Sentencepiece(_))) {
        // sentencepiece finds added tokens first and normalizes only the text between them.
        more.iter_mut().for_each(|token| token.normalized = false);
    }
    added.extend(more);
    let failed = |error: tokenizers::Error| damaged(file, error.to_string());
    let mut backend = Backend::new(model);
    backend.with_normalizer(normalizer).map_err(failed)?;
    backend.with_pre_tokenizer(pre_tokenizer).with_decoder(decoder);
    backend.add_tokens(added).map_err(failed)?;

    let start = match config.flag("add_bos_token") {
        Some(adds) => adds.then_some("bos_token"),
        None => start,
    };
    let end = match config.flag("add_eos_token") {
        Some(adds) => adds.then_some("eos_token"),
        None => end,
    };
    let roles = config.special_tokens();
    let token = |role: Option<&str>| {
        let token = roles.get(role?)?.as_str()?;
        Some((token.to_string(), backend.token_to_id(token)?))
    };
    let (start, end) = (token(start), token(end));
    let (mut template, mut special) = (vec!["$A:0"], Vec::new());
    for (name, token) in [("start", start), ("end", end)] {
        let Some((token, id)) = token else { continue };
        let position = if name == "start" { 0 } else { template.len() };
        template.insert(position, name);
        let token = SpecialToken::new(name.into(), vec![id], vec![token]);
        special.push(token.map_err(failed)?);
    }
    if !special.is_empty() {
        let mut processor = TemplateProcessing::builder();
        processor.try_single(template).map_err(|reason| damaged(file, reason))?;
        let processor = processor.special_tokens(special).build();
        let processor = processor.map_err(|error| damaged(file, error.to_string()))?;
        backend.with_post_processor(Some(processor));
    }
    Ok(backend)
}
