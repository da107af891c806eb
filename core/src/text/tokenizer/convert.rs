//! Vocabularies in other files than `tokenizer.json`, as one pipeline: which file there is decides.

use crate::checkpoint::files::Files;
use crate::error::Result;
use crate::text::tokenizer::backend::{Backend, Model, Normalizer};
use crate::text::tokenizer::config::Config;
use crate::text::tokenizer::parts::{Parts, damaged};
use crate::text::tokenizer::{lists, ranks, sentencepiece};
use tokenizers::processors::template::{SpecialToken, TemplateProcessing};

/// Reads one kind of file.
type Read = fn(&str, &[u8], &Config, &Files) -> Result<Parts>;

/// The files that hold a vocabulary; the first that is there counts.
const KINDS: [(&str, Read); 13] = [
    ("tekken.json", ranks::tekken),
    ("qwen.tiktoken", ranks::chat_markup),
    ("hy.tiktoken", ranks::start_of_text),
    ("cl100k_base.tiktoken", ranks::cl100k),
    ("tiktoken.model", ranks::reserved),
    ("tokenizer.jsonl", lists::scored),
    ("rwkv_vocab_v20230424.txt", lists::world),
    ("tokenizer.model", model),
    ("spiece.model", model),
    ("sentencepiece.bpe.model", model),
    ("tokenizer.tiktoken", ranks::listed),
    ("vocab.json", lists::pairs),
    ("vocab.txt", lists::lines),
];

/// How far beyond a vocabulary the id of an added token may lie.
const MOST_ADDED: usize = 1 << 18;

/// A `tokenizer.model` is one of sentencepiece, or else a tiktoken file, whose text is ASCII.
fn model(file: &str, bytes: &[u8], config: &Config, files: &Files) -> Result<Parts> {
    let is_text = !bytes.is_empty() && bytes.iter().all(|byte| matches!(byte, b'\n' | b' '..=b'~'));
    if is_text {
        ranks::listed(file, bytes, config, files)
    } else {
        sentencepiece::read(file, bytes, config)
    }
}

/// The names of the files that hold a vocabulary.
pub fn files() -> impl Iterator<Item = &'static str> {
    KINDS.iter().map(|(file, _)| *file)
}

/// Reads whatever vocabulary there is, and gives the config the roles that it lacks.
pub fn convert(files: &Files, config: Config) -> Result<(&'static str, Backend, Config)> {
    let mut config = config.with_added_tokens(files)?;
    for (file, read) in KINDS {
        let Some(bytes) = files.read(file)? else { continue };
        let world = file == "vocab.txt" && config.class().to_lowercase().starts_with("rwkv");
        let read = if world { lists::world } else { read };
        let parts = read(file, &bytes, &config, files)?;
        for (role, token) in &parts.roles {
            config.set_role(role, token);
        }
        let backend = assemble(file, parts, &config)?;
        return Ok((file, backend, config));
    }
    let names: Vec<_> = self::files().collect();
    Err(damaged("tokenizer.json", format!("there is no such file, nor {}", names.join(", "))))
}

fn assemble(file: &str, parts: Parts, config: &Config) -> Result<Backend> {
    let Parts { mut model, normalizer, pre_tokenizer, decoder, mut added, begin, end, .. } = parts;
    if let Model::Pieces(vocabulary, _) = &mut model {
        let listed = config.listed();
        for (id, token) in &listed {
            if *id as usize >= vocabulary.len() + MOST_ADDED {
                let reason = format!("the token {:?} has the id {id}", token.content);
                let reason = format!("{reason}, the vocabulary {} pieces", vocabulary.len());
                return Err(damaged(file, reason));
            }
        }
        for (id, token) in &listed {
            vocabulary.name(&token.content, *id);
        }
    }
    let present: Vec<_> = added.iter().map(|token| token.content.clone()).collect();
    let mut more = config.added(|token| present.iter().any(|content| content == token));
    if matches!(normalizer, Some(Normalizer::Sentencepiece(_))) {
        // Its references look for added tokens before they give it the rest of the text.
        more.iter_mut().for_each(|token| token.normalized = false);
    }
    added.extend(more);
    let failed = |error: tokenizers::Error| damaged(file, error.to_string());
    let mut backend = Backend::new(model);
    backend.with_normalizer(normalizer).map_err(failed)?;
    backend.with_pre_tokenizer(pre_tokenizer).with_decoder(decoder);
    backend.add_tokens(added).map_err(failed)?;

    let begin = match config.flag("add_bos_token") {
        Some(adds) => adds.then_some("bos_token"),
        None => begin,
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
    let (begin, end) = (token(begin), token(end));
    let (mut template, mut special) = (vec!["$A:0"], Vec::new());
    for (name, token) in [("begin", begin), ("end", end)] {
        let Some((token, id)) = token else { continue };
        let at = if name == "begin" { 0 } else { template.len() };
        template.insert(at, name);
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
