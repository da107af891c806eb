//! Tokenizers: text to token ids and back.
//!
//! Most checkpoints have a `tokenizer.json`, which this file reads. The reference is
//! `TokenizersBackend` of transformers 5, which ignores `add_bos_token` and `add_eos_token` beside
//! that file: its post-processor alone decides. The readers of older files are in [`vocabularies`].

mod backend;
mod config;
mod control;
mod sequence;
mod token_bytes;
mod vocabularies;

use crate::checkpoint::files::Files;
use crate::error::{Error, Result};
use backend::Backend;
pub(super) use config::Config;
pub(crate) use control::ControlTokens;
use serde::Deserialize;
use serde_json::{Map, Value as Json};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    Model as _, Normalizer as _, OffsetReferential, OffsetType, PreTokenizedString,
    PreTokenizer as _, PreTokenizerWrapper, SplitDelimiterBehavior,
};

const TOKENIZER: &str = "tokenizer.json";

/// Turns text into token ids and back. Clones share one vocabulary.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

/// A token that decoding can skip.
#[derive(Clone, Debug)]
pub(crate) struct SpecialToken {
    pub id: u32,
    pub text: String,
}

struct Inner {
    file: &'static str,
    backend: Backend,
    special_tokens: Map<String, Json>,
    vocabulary_size: usize,
}

impl Tokenizer {
    /// Reads `tokenizer.json` or another vocabulary file, and `tokenizer_config.json` if there is
    /// one.
    ///
    /// Without a `tokenizer.json` the first of these files is read: `tekken.json`; `qwen.tiktoken`, `hy.tiktoken`,
    /// `cl100k_base.tiktoken`, `tiktoken.model`, `tokenizer.tiktoken`; the `tokenizer.jsonl` of
    /// Preferred Networks; RWKV's World vocabulary; models of sentencepiece (`tokenizer.model`,
    /// `spiece.model`, `sentencepiece.bpe.model`, `chn_jpn_yue_eng_ko_spectok.bpe.model`); `vocab.json` with `merges.txt`; `vocab.txt`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when there is no vocabulary or it is damaged, [`Error::Config`] when a
    /// config is not a JSON object, [`Error::Io`].
    pub fn load(files: &Files) -> Result<Self> {
        let config = Config::load(files)?;
        let Some(bytes) = files.read(TOKENIZER)? else {
            let (file, backend, config) = vocabularies::read(files, config)?;
            return Ok(Tokenizer::new(file, backend, &config));
        };
        let backend = catch_panics(TOKENIZER, || {
            let mut backend = Backend::from_bytes(&bytes)?;
            if is_byte_level(backend.get_pre_tokenizer())
                && let Some(pattern) = tekken_pattern(files)?
            {
                backend.with_pre_tokenizer(Some(split_by(&pattern)?));
            }
            backend.with_padding(None).with_truncation(None)?;
            let present = backend.get_added_vocabulary().get_vocab().clone();
            backend.add_tokens(config.added(|token| present.contains_key(token)))?;
            Ok(backend)
        })?;
        Ok(Tokenizer::new(TOKENIZER, backend, &config))
    }

    /// The name of the file that [`load`](Self::load) reads the vocabulary from.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn file(files: &Files) -> Result<Option<&'static str>> {
        for file in std::iter::once(TOKENIZER).chain(vocabularies::files()) {
            if files.read(file)?.is_some() {
                return Ok(Some(file));
            }
        }
        Ok(None)
    }

    /// Whether a checkpoint has a tokenizer or parts of one, so that a missing vocabulary is an error.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn is_expected(files: &Files) -> Result<bool> {
        for file in Self::file(files)?.into_iter().chain(config::COMPANIONS) {
            if files.read(file)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn new(file: &'static str, backend: Backend, config: &Config) -> Self {
        let vocabulary_size = backend.get_vocab_size(true);
        let special_tokens = config.special_tokens();
        Tokenizer(Arc::new(Inner { file, backend, special_tokens, vocabulary_size }))
    }

    /// Encodes a text. `add_special_tokens` adds the tokens that every text of the model has, such as
    /// the token at the start; a rendered chat template contains them already.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the vocabulary has no tokens for the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        catch_panics(self.0.file, || {
            Ok(self.0.backend.encode_fast(text, add_special_tokens)?.get_ids().to_vec())
        })
    }

    /// Encodes a text without looking for added tokens in it.
    fn plain(&self, text: &str) -> Result<Vec<u32>> {
        catch_panics(self.0.file, || {
            let backend = &self.0.backend;
            let mut text = PreTokenizedString::from(text);
            if let Some(normalizer) = backend.get_normalizer() {
                text.normalize(|text| normalizer.normalize(text))?;
            }
            if let Some(pre_tokenizer) = backend.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut text)?;
            }
            let mut ids = Vec::new();
            for (piece, ..) in text.get_splits(OffsetReferential::Normalized, OffsetType::None) {
                ids.extend(backend.get_model().tokenize(piece)?.into_iter().map(|token| token.id));
            }
            Ok(ids)
        })
    }

    /// The number of ids that [`encode`](Self::encode) returns for a text.
    ///
    /// # Errors
    /// Those of [`encode`](Self::encode).
    pub fn count(&self, text: &str, add_special_tokens: bool) -> Result<usize> {
        catch_panics(self.0.file, || {
            Ok(self.0.backend.encode_fast(text, add_special_tokens)?.len())
        })
    }

    /// Decodes ids to text. Ids outside the vocabulary are ignored.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        catch_panics(self.0.file, || self.0.backend.decode(ids, skip_special_tokens))
    }

    /// The id of a token, written as in the vocabulary.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.0.backend.token_to_id(token)
    }

    /// The token of an id, written as in the vocabulary, which may differ from its text.
    pub fn token(&self, id: u32) -> Option<String> {
        self.0.backend.id_to_token(id)
    }

    /// The number of tokens, including added ones. Ids may have gaps, so an id may be larger.
    pub fn vocabulary_size(&self) -> usize {
        self.0.vocabulary_size
    }

    /// The tokens that were added to the vocabulary: id, text, and whether they are special.
    pub(crate) fn added_tokens(&self) -> Vec<(u32, String, bool)> {
        let added = self.0.backend.get_added_vocabulary();
        let mut tokens: Vec<_> = added
            .get_vocab()
            .iter()
            .map(|(text, id)| (*id, text.clone(), added.is_special_token(text)))
            .collect();
        tokens.sort_unstable();
        tokens
    }

    /// All special tokens, whatever their role.
    pub(crate) fn all_special_tokens(&self) -> Vec<SpecialToken> {
        let tokens = self.added_tokens().into_iter().filter(|(.., is_special)| *is_special);
        tokens.map(|(id, text, _)| SpecialToken { id, text }).collect()
    }

    /// Whether the id is a special token, which decoding can skip.
    pub fn is_special(&self, id: u32) -> bool {
        self.token(id).is_some_and(|t| self.0.backend.get_added_vocabulary().is_special_token(&t))
    }

    /// The tokens that have a role in `tokenizer_config.json`: `bos_token`, `eos_token`,
    /// `pad_token`, and any other key of that form. Chat templates see them under these names.
    pub fn special_tokens(&self) -> &Map<String, Json> {
        &self.0.special_tokens
    }

    /// The token of one role, such as `bos_token`.
    pub fn special_token(&self, role: &str) -> Option<&str> {
        self.0.special_tokens.get(role)?.as_str()
    }

    /// The token at the start of a sequence.
    pub fn bos_token(&self) -> Option<&str> {
        self.special_token("bos_token")
    }

    /// The token at the end of a sequence.
    pub fn eos_token(&self) -> Option<&str> {
        self.special_token("eos_token")
    }

    /// The id of [`eos_token`](Self::eos_token). A generation may end at other tokens too.
    pub fn eos_token_id(&self) -> Option<u32> {
        self.token_id(self.eos_token()?)
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let size = self.0.vocabulary_size;
        f.debug_struct("Tokenizer").field("vocabulary_size", &size).finish_non_exhaustive()
    }
}

/// The pattern of the authors' own tokenizer beside a `tokenizer.json`. Some conversions split text by the pattern of
/// another model.
fn tekken_pattern(files: &Files) -> tokenizers::Result<Option<String>> {
    #[derive(Deserialize)]
    struct Tekken {
        config: TekkenConfig,
    }
    #[derive(Deserialize)]
    struct TekkenConfig {
        pattern: String,
    }
    let bytes = files.read("tekken.json").map_err(|error| error.to_string())?;
    let tekken = bytes.map(|bytes| serde_json::from_slice::<Tekken>(&bytes));
    let tekken = tekken.transpose().map_err(|error| format!("tekken.json: {error}"))?;
    Ok(tekken.map(|tekken| tekken.config.pattern))
}

fn is_byte_level(pre_tokenizer: Option<&PreTokenizerWrapper>) -> bool {
    match pre_tokenizer {
        Some(PreTokenizerWrapper::ByteLevel(_)) => true,
        Some(PreTokenizerWrapper::Sequence(stages)) => {
            stages.as_ref().iter().any(|stage| is_byte_level(Some(stage)))
        }
        _ => false,
    }
}

/// Splits by a pattern and maps bytes to letters.
fn split_by(pattern: &str) -> tokenizers::Result<PreTokenizerWrapper> {
    let pattern = SplitPattern::Regex(pattern.into());
    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?;
    let stages = vec![split.into(), ByteLevel::new(false, false, false).into()];
    Ok(PreTokenizerWrapper::Sequence(Sequence::new(stages)))
}

/// Calls the `tokenizers` crate and turns its panics on unexpected input into errors.
fn catch_panics<T>(file: &str, run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    let reason = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            text.unwrap_or("the tokenizer panicked").to_string()
        }
    };
    Err(Error::Tokenizer { file: file.into(), reason })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::json;

    fn files(files: &[(&'static str, Json)]) -> Files {
        let bytes = |json: &Json| -> &'static [u8] { json.to_string().into_bytes().leak() };
        let files: Vec<_> = files.iter().map(|(name, json)| (*name, bytes(json))).collect();
        Files::Embedded(files.leak())
    }

    /// A `tokenizer.json` without merges, whose tokens have their index as id.
    fn json_of(tokens: &[&str], decoder: Json) -> Json {
        let vocabulary: Map<_, _> =
            tokens.iter().enumerate().map(|(id, token)| (token.to_string(), id.into())).collect();
        json!({
            "version": "1.0",
            "truncation": {"max_length": 1, "stride": 0, "strategy": "LongestFirst",
                           "direction": "Right"},
            "padding": {"strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": null,
                        "pad_id": 0, "pad_type_id": 0, "pad_token": "p"},
            "added_tokens": [{"id": tokens.len(), "content": "<end>", "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
            "normalizer": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                              "use_regex": true},
            "post_processor": null,
            "decoder": decoder,
            "model": {"type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
                "byte_fallback": false, "ignore_merges": false, "vocab": vocabulary, "merges": []},
        })
    }

    /// A tokenizer of bytes with further special tokens.
    pub fn with_added(tokens: &[&str]) -> Tokenizer {
        let mut json = byte_level_json();
        let added = json["added_tokens"].as_array_mut().unwrap();
        for (id, token) in (1000..).zip(tokens) {
            let mut entry = added[0].clone();
            (entry["id"], entry["content"]) = (id.into(), (*token).into());
            added.push(entry);
        }
        Tokenizer::load(&files(&[(TOKENIZER, json)])).unwrap()
    }

    pub fn tokenizer(tokens: &[&str], decoder: Json) -> Tokenizer {
        Tokenizer::load(&files(&[(TOKENIZER, json_of(tokens, decoder))])).unwrap()
    }

    fn byte_level_json() -> Json {
        let mut tokens: Vec<_> = ByteLevel::alphabet().iter().map(|c| c.to_string()).collect();
        tokens.sort();
        let tokens: Vec<_> = tokens.iter().map(String::as_str).collect();
        let decoder = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                             "use_regex": true});
        json_of(&tokens, decoder)
    }

    pub fn byte_level() -> Tokenizer {
        Tokenizer::load(&files(&[(TOKENIZER, byte_level_json())])).unwrap()
    }

    pub fn metaspace() -> Tokenizer {
        let decoder = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always",
                             "split": true});
        tokenizer(&["▁", "▁▁", "▁a", "b", "▁c▁", "é"], decoder)
    }

    /// A vocabulary with byte fallback and `▁` for spaces.
    pub fn byte_fallback() -> Tokenizer {
        let bytes: Vec<_> = (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect();
        let words = ["▁", "▁▁", "▁a", "b", "é"].map(String::from);
        let tokens: Vec<_> = bytes.into_iter().chain(words).collect();
        let tokens: Vec<_> = tokens.iter().map(String::as_str).collect();
        let decoder = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]});
        tokenizer(&tokens, decoder)
    }

    /// The expected ids and texts were computed by the libraries that the vocabularies are made for.
    #[test]
    fn vocabularies_equal_their_reference_libraries() {
        let fixture = fixture();
        let list = |json: &Json| json.as_array().unwrap().clone();
        let mut failures = Vec::new();
        for kind in list(&fixture["kinds"]) {
            let tokenizer = Tokenizer::load(&fixture_files(&kind["files"])).unwrap();
            let texts = [list(&fixture["texts"]), list(&kind["more"])].concat();
            for (text, case) in texts.iter().zip(list(&kind["cases"])) {
                let text = text.as_str().unwrap();
                let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
                let mut check = |what: &str, found: Json, expected: &Json| {
                    if found != *expected {
                        let name = &kind["name"];
                        failures.push(format!("{name} {what} {text:?}:\n{found}\n{expected}"));
                    }
                };
                check("ids", tokenizer.encode(text, false).unwrap().into(), &case["ids"]);
                check("count", tokenizer.count(text, false).unwrap().into(), &ids.len().into());
                if case.get("with_special").is_some() {
                    let found = tokenizer.encode(text, true).unwrap();
                    check("with special", found.into(), &case["with_special"]);
                }
                let decoded = match &case["decoded"] {
                    Json::Bool(_) => json!(text),
                    Json::Null => tokenizer.decode(&ids, false).unwrap().into(),
                    decoded => decoded.clone(),
                };
                check("decoded", tokenizer.decode(&ids, false).unwrap().into(), &decoded);
                for (skip, decoded) in
                    [(false, decoded), (true, tokenizer.decode(&ids, true).unwrap().into())]
                {
                    let mut stream = tokenizer.detokenizer(skip);
                    let pieces: Vec<_> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
                    let text = pieces.concat() + &stream.finish().unwrap();
                    check("streamed", text.into(), &decoded);
                }
            }
        }
        assert!(failures.is_empty(), "{}\n{}", failures.join("\n\n"), failures.len());
    }

    fn fixture() -> Json {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tokenizers.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    /// Truncated or changed files either load or are errors that name the file.
    #[test]
    fn damaged_vocabularies_are_errors() {
        let mut state = 1_u64;
        let mut random = |bound: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as usize % bound
        };
        for kind in fixture()["kinds"].as_array().unwrap() {
            let Files::Embedded(whole) = fixture_files(&kind["files"]) else { unreachable!() };
            for (file, content) in whole.iter().filter(|(file, _)| *file != "tokenizer_config.json")
            {
                for round in 0..60 {
                    let mut content = content.to_vec();
                    match round {
                        0 => content.clear(),
                        1..20 => content.truncate(random(content.len())),
                        _ => {
                            for _ in 0..round / 10 {
                                let at = random(content.len());
                                content[at] = random(256) as u8;
                            }
                        }
                    }
                    let changed = |(name, bytes): &(&'static str, &'static [u8])| {
                        (*name, if name == file { &*content.clone().leak() } else { *bytes })
                    };
                    let files: Vec<_> = whole.iter().map(changed).collect();
                    match Tokenizer::load(&Files::Embedded(files.leak())) {
                        Ok(tokenizer) => {
                            for text in ["", " a ₣ 12\n", "<|end|>\u{fffd}"] {
                                let Ok(ids) = tokenizer.encode(text, true) else { continue };
                                tokenizer.decode(&ids, round % 2 == 0).unwrap();
                            }
                        }
                        Err(Error::Tokenizer { file: named, .. }) => {
                            assert!(whole.iter().any(|(name, _)| *name == named), "{named}");
                        }
                        Err(other) => panic!("{file}: {other}"),
                    }
                }
            }
        }
    }

    #[test]
    fn errors_name_the_fault_of_a_vocabulary() {
        let all: String = (0..=255_u8).map(|b| format!("{} {b}\n", encode_byte(b))).collect();
        let tekken = |vocabulary: &str| {
            format!(
                r#"{{"config": {{"pattern": "."}}, "special_tokens": [], "vocab": {vocabulary}}}"#
            )
        };
        let broken = all.replace("QQ== 65", "QQ= 65");
        let twice = all.clone() + "QQ== 256\n";
        let rank = all.clone() + "QUE= 65\n";
        let hole = all.clone() + "QUE= 300\n";
        let incomplete = all.replace("/w== 255\n", "");
        let wrong_place = tekken(r#"[{"rank": 1, "token_bytes": "QQ=="}]"#);
        let malformed = tekken(r#"[{"rank": 0, "token_bytes": "Q"}]"#);
        for (file, content, expected) in [
            ("qwen.tiktoken", &*broken, "line 66: malformed base64"),
            ("qwen.tiktoken", &twice, "the piece \"A\" appears twice"),
            ("hy.tiktoken", &rank, "two pieces have the id 65"),
            ("tiktoken.model", &hole, "the rank 300 leaves a gap: the file has 257 tokens"),
            ("tiktoken.model", "QQ==\n", "line 1: not a token and its rank"),
            ("tokenizer.model", "QQ== x\n", "line 1: the rank is not a number"),
            ("tokenizer.model", &incomplete, "no token for the byte 0xff"),
            ("tokenizer.model", "\u{1}", "not a sentencepiece model, or truncated"),
            ("tokenizer.model", "\n\u{3}\n\u{1}a", "the piece for unknown text is missing"),
            ("tokenizer.model", "", "the model has no pieces"),
            ("tekken.json", "{}", "`config.pattern` is not a string"),
            (
                "tekken.json",
                &wrong_place,
                "`vocab`, entry 0: the rank is not its position in the list",
            ),
            ("tekken.json", &malformed, "`vocab`, entry 0: malformed base64"),
            ("tokenizer.jsonl", "[1, 2]\n", "line 1: not a list of a piece and its score"),
            ("tokenizer.jsonl", r#"["a", 0]"#, "the byte piece <0x00> is missing"),
            ("rwkv_vocab_v20230424.txt", "1 'a' 2\n", "line 1: not an id, a text and its length"),
            ("rwkv_vocab_v20230424.txt", "1 'a' 1\n", "no token for the byte 0x00"),
            ("vocab.txt", "a\nb\na\n", "line 3: the piece \"a\" appears twice"),
            ("vocab.txt", "a\n", "the piece \"[UNK]\" for unknown text is missing"),
            ("vocab.json", r#"{"a": 0, "b": 0}"#, "two pieces have the id 0"),
        ] {
            let content = content.to_string().into_bytes().leak();
            let files = Files::Embedded(vec![(file, &*content)].leak());
            let message = Tokenizer::load(&files).unwrap_err().to_string();
            assert_eq!(message, format!("{file}: {expected}"));
        }
        let merges = |merges: &'static [u8]| {
            let vocabulary: &'static [u8] = br#"{"a": 0, "b": 1}"#;
            let files = vec![("vocab.json", vocabulary), ("merges.txt", merges)];
            let files = if merges.is_empty() { files[..1].to_vec() } else { files };
            Tokenizer::load(&Files::Embedded(files.leak())).unwrap_err().to_string()
        };
        assert_eq!(merges(b""), "merges.txt: the file is missing; it must stand beside vocab.json");
        assert_eq!(merges(b"a b c"), "merges.txt: line 1: not a pair of pieces");
        let missing = "line 2: the piece \"ab\" is not in vocab.json";
        assert_eq!(merges(b"#version: 0.2\na b"), format!("merges.txt: {missing}"));

        let far = json!({"added_tokens_decoder": {"4000000000": {"content": "<far>"}}});
        let far: &'static [u8] = far.to_string().into_bytes().leak();
        let all: &'static [u8] = all.into_bytes().leak();
        let files =
            Files::Embedded(vec![("hy.tiktoken", all), ("tokenizer_config.json", far)].leak());
        let message = Tokenizer::load(&files).unwrap_err().to_string();
        let expected = "the token \"<far>\" has the id 4000000000, but there are 466 pieces";
        assert_eq!(message, format!("hy.tiktoken: {expected}"));
    }

    fn encode_byte(byte: u8) -> String {
        let digit = |n: u8| {
            let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
            char::from(digits[usize::from(n)])
        };
        format!("{}{}==", digit(byte >> 2), digit((byte & 3) << 4))
    }

    #[test]
    fn added_tokens_json_adds_tokens() {
        let Files::Embedded(whole) = fixture_files(&fixture()["kinds"][13]["files"]) else {
            unreachable!()
        };
        let base = |name: &str| *whole.iter().find(|(file, _)| *file == name).unwrap();
        let more: [(&str, &[u8]); 3] = [
            ("added_tokens.json", br#"{"<turn>": 402, "<call>": 401}"#),
            ("special_tokens_map.json", br#"{"eos_token": {"content": "<turn>"}}"#),
            ("tokenizer_config.json", br#"{"add_bos_token": true, "add_eos_token": true}"#),
        ];
        let files = [vec![base("vocab.json"), base("merges.txt")], more.to_vec()].concat();
        let tokenizer = Tokenizer::load(&Files::Embedded(files.leak())).unwrap();
        let ids = tokenizer.encode("<turn>a<call>", true).unwrap();
        assert_eq!(ids, [400, 402, tokenizer.token_id("a").unwrap(), 401, 402]);
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), "a<call>");
        assert_eq!(tokenizer.eos_token_id(), Some(402));
        assert_eq!(tokenizer.bos_token(), Some("<|endoftext|>"));
    }

    /// The files of one case. Each is text, or base64 in an object.
    fn fixture_files(files: &Json) -> Files {
        let content = |json: &Json| match json.as_str() {
            Some(text) => text.as_bytes().to_vec(),
            None => vocabularies::byte_level::base64(json["base64"].as_str().unwrap()).unwrap(),
        };
        let files = files.as_object().unwrap().iter();
        let leak = |name: &str| -> &'static str { name.to_string().leak() };
        let files = files.map(|(name, json)| (leak(name), &*content(json).leak()));
        Files::Embedded(files.collect::<Vec<_>>().leak())
    }

    #[test]
    fn encoding_neither_pads_nor_truncates() {
        let tokenizer = byte_level();
        let ids = tokenizer.encode("a é<end>", true).unwrap();
        assert_eq!(ids.len(), 5);
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), "a é<end>");
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), "a é");
        assert_eq!(tokenizer.decode(&[99_999], false).unwrap(), "");
        assert!(tokenizer.is_special(256) && !tokenizer.is_special(0));
        assert_eq!(tokenizer.vocabulary_size(), 257);
    }

    #[test]
    fn the_config_adds_tokens_and_roles() {
        let config = json!({
            "added_tokens_decoder": {
                "258": {"content": "<call>", "special": false, "normalized": false},
                "257": {"content": "<turn>", "special": true},
            },
            "eos_token": {"content": "<end>", "__type": "AddedToken"},
            "bos_token": "<begin>", "unk_token": null, "image_token": "<image>",
            "additional_special_tokens": ["<end>", "<extra>"], "add_bos_token": true,
        });
        let loaded = Tokenizer::load(&files(&[
            (TOKENIZER, byte_level_json()),
            ("tokenizer_config.json", config),
        ]))
        .unwrap();
        let ids = loaded.encode("<end><turn><call><begin><image><extra>", true).unwrap();
        assert_eq!(ids, [256, 257, 258, 259, 260, 261]);
        assert_eq!(loaded.decode(&ids, true).unwrap(), "<call>");
        assert_eq!((loaded.bos_token(), loaded.eos_token_id()), (Some("<begin>"), Some(256)));
        assert_eq!(loaded.special_token("image_token"), Some("<image>"));
        assert_eq!(loaded.special_token("unk_token"), None);
    }

    #[test]
    fn a_damaged_tokenizer_json_is_an_error() {
        let reason = |bytes: &[u8]| {
            let file: &'static [u8] = bytes.to_vec().leak();
            let files = Files::Embedded(vec![(TOKENIZER, file)].leak());
            let Err(Error::Tokenizer { file, reason }) = Tokenizer::load(&files) else {
                panic!("loads {}", String::from_utf8_lossy(bytes))
            };
            assert_eq!(file, TOKENIZER);
            reason
        };
        let whole = byte_level_json().to_string();
        for length in [0, 1, 100, whole.len() - 1] {
            reason(&whole.as_bytes()[..length]);
        }
        for json in ["[]", "{}", "null", "\u{fffd}", r#"{"model": {"type": "BPE"}}"#] {
            reason(json.as_bytes());
        }
        reason(&[b'['; 100_000]);
        let mut merges = byte_level_json();
        merges["model"]["merges"] = json!([["a", "nowhere"]]);
        assert!(reason(merges.to_string().as_bytes()).contains("nowhere"));

        let panics = catch_panics::<()>(TOKENIZER, || panic!("odd input"));
        assert!(panics.unwrap_err().to_string().contains("odd input"));

        let nothing = Tokenizer::load(&Files::Embedded(&[])).unwrap_err().to_string();
        assert!(
            nothing.starts_with(
                "tokenizer.json: the checkpoint has neither this file nor tekken.json"
            )
        );
    }
}
