//! Text to token ids and back, as `tokenizer.json` and `tokenizer_config.json` say.
//!
//! The reference is `TokenizersBackend` of transformers 5. It does not honour `add_bos_token` and
//! `add_eos_token` next to a `tokenizer.json`, whose post-processor alone decides; nor do we.

use super::Detokenizer;
use crate::error::{Error, Result};
use crate::files::Files;
use serde_json::{Map, Value as Json};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tokenizers::AddedToken;

const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";

/// Other spellings of a tokenizer, named in the error when `tokenizer.json` is missing.
const UNSUPPORTED: [&str; 8] = [
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tiktoken.model",
    "tekken.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
];

/// Turns text into token ids and back. Clones share one vocabulary.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    backend: tokenizers::Tokenizer,
    special_tokens: Map<String, Json>,
    vocabulary_size: usize,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and `tokenizer_config.json` when there is one.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when `tokenizer.json` is missing or damaged, [`Error::Config`] when a
    /// config is no JSON object, [`Error::Io`].
    pub fn load(files: &Files) -> Result<Self> {
        let Some(bytes) = files.read(TOKENIZER)? else { return Err(missing(files)?) };
        let config = load_config(files)?;
        let backend = contain(|| {
            let mut backend = tokenizers::Tokenizer::from_bytes(&bytes)?;
            backend.with_padding(None).with_truncation(None)?;
            let added = added_tokens(&config, &backend);
            backend.add_tokens(added)?;
            Ok(backend)
        })?;
        let vocabulary_size = backend.get_vocab_size(true);
        let special_tokens = special_tokens(&config);
        Ok(Tokenizer(Arc::new(Inner { backend, special_tokens, vocabulary_size })))
    }

    /// The ids of a text. With `add_special_tokens` the post-processor of `tokenizer.json` adds
    /// its own, such as one for the beginning of the sequence; a rendered chat wants none.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the vocabulary cannot spell the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        contain(|| Ok(self.0.backend.encode_fast(text, add_special_tokens)?.get_ids().to_vec()))
    }

    /// The text of some ids. Ids that are not in the vocabulary have no text.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the decoder of `tokenizer.json` refuses them.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        contain(|| self.0.backend.decode(ids, skip_special_tokens))
    }

    /// Decodes one id after the other.
    pub fn detokenizer(&self, skip_special_tokens: bool) -> Detokenizer {
        Detokenizer::new(self.clone(), skip_special_tokens)
    }

    /// The id of a token as the vocabulary spells it.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.0.backend.token_to_id(token)
    }

    /// The token of an id as the vocabulary spells it, which is not always its text.
    pub fn token(&self, id: u32) -> Option<String> {
        self.0.backend.id_to_token(id)
    }

    /// How many tokens there are, added ones included. Ids may have gaps and be larger.
    pub fn vocabulary_size(&self) -> usize {
        self.0.vocabulary_size
    }

    /// Whether decoding can skip this id.
    pub fn is_special(&self, id: u32) -> bool {
        self.token(id).is_some_and(|t| self.0.backend.get_added_vocabulary().is_special_token(&t))
    }

    /// The tokens that `tokenizer_config.json` gives a role: `bos_token`, `eos_token`,
    /// `pad_token`, and any other key of that form. Chat templates see them under these names.
    pub fn special_tokens(&self) -> &Map<String, Json> {
        &self.0.special_tokens
    }

    /// The token of one role, such as `bos_token`.
    pub fn special_token(&self, role: &str) -> Option<&str> {
        self.0.special_tokens.get(role)?.as_str()
    }

    /// The token that begins a sequence.
    pub fn bos_token(&self) -> Option<&str> {
        self.special_token("bos_token")
    }

    /// The token that ends a sequence.
    pub fn eos_token(&self) -> Option<&str> {
        self.special_token("eos_token")
    }

    /// The id of [`eos_token`](Self::eos_token). Generation may have more ends than this one.
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

/// Runs the `tokenizers` crate, which panics on some inputs that it does not expect.
fn contain<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    let reason = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            text.unwrap_or("the tokenizer panicked").to_string()
        }
    };
    Err(Error::Tokenizer { file: TOKENIZER.into(), reason })
}

fn missing(files: &Files) -> Result<Error> {
    let mut reason = String::from("there is no such file");
    let mut separator = "; not supported instead: ";
    for name in UNSUPPORTED {
        if files.read(name)?.is_some() {
            reason = reason + separator + name;
            separator = ", ";
        }
    }
    Ok(Error::Tokenizer { file: TOKENIZER.into(), reason })
}

/// `tokenizer_config.json`, over which older checkpoints lay a `special_tokens_map.json`.
pub(super) fn load_config(files: &Files) -> Result<Map<String, Json>> {
    let object = |name: &str| match files.json(name)? {
        None => Ok(Map::new()),
        Some(Json::Object(object)) => Ok(object),
        Some(_) => Err(Error::Config {
            file: name.into(),
            field: String::new(),
            reason: "not an object".into(),
        }),
    };
    let mut config = object(CONFIG)?;
    if !config.contains_key("added_tokens_decoder") {
        config.extend(object(SPECIAL_TOKENS_MAP)?);
    }
    Ok(config)
}

/// A token is written as a string or as an object with its `content`.
fn content(token: &Json) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// The tokens with a role, in the order of the config.
pub(super) fn special_tokens(config: &Map<String, Json>) -> Map<String, Json> {
    let named = config.get("extra_special_tokens").and_then(Json::as_object);
    let roles = config.iter().filter(|(role, _)| role.ends_with("_token"));
    let tokens = roles.chain(named.into_iter().flatten());
    tokens.filter_map(|(role, token)| Some((role.clone(), content(token)?.into()))).collect()
}

/// What the config adds to the vocabulary, or describes otherwise than `tokenizer.json` does.
fn added_tokens(config: &Map<String, Json>, backend: &tokenizers::Tokenizer) -> Vec<AddedToken> {
    let flags = |token: &Json, special: bool| {
        let flag = |name, default| token.get(name).and_then(Json::as_bool).unwrap_or(default);
        let special = special || flag("special", false);
        Some(AddedToken {
            content: content(token)?.to_string(),
            single_word: flag("single_word", false),
            lstrip: flag("lstrip", false),
            rstrip: flag("rstrip", false),
            normalized: flag("normalized", !special),
            special,
        })
    };
    let decoder = config.get("added_tokens_decoder").and_then(Json::as_object);
    let mut listed: Vec<_> = decoder
        .into_iter()
        .flatten()
        .filter_map(|(id, token)| Some((id.parse::<u32>().ok()?, flags(token, false)?)))
        .collect();
    listed.sort_by_key(|(id, _)| *id);
    let mut added: Vec<_> = listed.into_iter().map(|(_, token)| token).collect();

    let roles = config.iter().filter(|(role, _)| role.ends_with("_token")).map(|(_, token)| token);
    let extra = ["extra_special_tokens", "additional_special_tokens"].into_iter();
    let extra = extra.filter_map(|key| config.get(key)).flat_map(|tokens| match tokens {
        Json::Array(tokens) => tokens.iter().collect(),
        Json::Object(tokens) => tokens.values().collect(),
        _ => Vec::new(),
    });
    let present = backend.get_added_vocabulary().get_vocab();
    for token in roles.chain(extra).filter_map(|token| flags(token, true)) {
        if !present.contains_key(&token.content) && added.iter().all(|a| a.content != token.content)
        {
            added.push(token);
        }
    }
    added
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::json;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

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

    /// In the manner of Llama 2.
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

    #[test]
    fn neither_pads_nor_truncates() {
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
    fn the_config_adds_tokens_and_names_roles() {
        let config = json!({
            "added_tokens_decoder": {
                "258": {"content": "<call>", "special": false, "normalized": false},
                "257": {"content": "<turn>", "special": true},
            },
            "eos_token": {"content": "<end>", "__type": "AddedToken"},
            "bos_token": "<begin>", "unk_token": null, "image_token": "<image>",
            "additional_special_tokens": ["<end>", "<extra>"], "add_bos_token": true,
        });
        let loaded =
            Tokenizer::load(&files(&[(TOKENIZER, byte_level_json()), (CONFIG, config)])).unwrap();
        let ids = loaded.encode("<end><turn><call><begin><image><extra>", true).unwrap();
        assert_eq!(ids, [256, 257, 258, 259, 260, 261]);
        assert_eq!(loaded.decode(&ids, true).unwrap(), "<call>");
        assert_eq!((loaded.bos_token(), loaded.eos_token_id()), (Some("<begin>"), Some(256)));
        assert_eq!(loaded.special_token("image_token"), Some("<image>"));
        assert_eq!(loaded.special_token("unk_token"), None);
    }

    #[test]
    fn damaged_files_are_errors() {
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

        let panics = contain::<()>(|| panic!("odd input"));
        assert!(panics.unwrap_err().to_string().contains("odd input"));

        let only_model = Files::Embedded(&[("tokenizer.model", b""), ("vocab.json", b"")]);
        let message = Tokenizer::load(&only_model).unwrap_err().to_string();
        let expected = "there is no such file; not supported instead: tokenizer.model, vocab.json";
        assert_eq!(message, format!("tokenizer.json: {expected}"));
    }
}
