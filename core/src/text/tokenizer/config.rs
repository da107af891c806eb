//! `tokenizer_config.json` and the older files beside it: special tokens, added tokens, flags.

use crate::checkpoint::files::Files;
use crate::error::{Error, Result};
use serde_json::{Map, Value as Json, json};
use tokenizers::AddedToken;

const CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
const ADDED_TOKENS: &str = "added_tokens.json";

/// Files that come with a vocabulary and have none themselves.
pub const COMPANIONS: [&str; 5] =
    [CONFIG, SPECIAL_TOKENS_MAP, ADDED_TOKENS, "merges.txt", "chat_template.jinja"];

const DECODER: &str = "added_tokens_decoder";

/// The fields of `tokenizer_config.json`, extended by those of older files.
pub struct Config(Map<String, Json>);

impl Config {
    /// Reads `tokenizer_config.json` and, if it does not list its tokens, `special_tokens_map.json`.
    pub fn load(files: &Files) -> Result<Self> {
        let mut config = object(files, CONFIG)?;
        if !config.contains_key(DECODER) {
            config.extend(object(files, SPECIAL_TOKENS_MAP)?);
        }
        Ok(Config(config))
    }

    /// Reads `added_tokens.json` too, which is used when there is no `tokenizer.json`.
    pub fn with_added_tokens(mut self, files: &Files) -> Result<Self> {
        if !self.0.contains_key(DECODER) {
            let special: Vec<_> = self.named().map(|token| token.content).collect();
            let tokens = object(files, ADDED_TOKENS)?.into_iter().map(|(token, id)| {
                let special = special.contains(&token);
                (id.to_string(), json!({"content": token, "special": special}))
            });
            let tokens: Map<_, _> = tokens.collect();
            self.0.insert(DECODER.into(), tokens.into());
        }
        Ok(self)
    }

    /// Sets the token of a role, unless the config has the role.
    pub fn set_role(&mut self, role: &str, token: &str) {
        self.0.entry(role).or_insert_with(|| token.into());
    }

    /// Whether a space is added after each added token too, as before transformers 4.31.
    pub fn is_legacy(&self) -> bool {
        self.flag("legacy")
            .unwrap_or(!["LlamaTokenizer", "CodeLlamaTokenizer"].contains(&self.class()))
    }

    /// A field.
    pub fn get(&self, field: &str) -> Option<&Json> {
        self.0.get(field)
    }

    /// A boolean field.
    pub fn flag(&self, field: &str) -> Option<bool> {
        self.0.get(field)?.as_bool()
    }

    /// The name of the tokenizer class in transformers, without `Fast`.
    pub fn class(&self) -> &str {
        let class = self.0.get("tokenizer_class").and_then(Json::as_str).unwrap_or_default();
        class.strip_suffix("Fast").unwrap_or(class)
    }

    /// The tokens with a role, in the order of the config.
    pub fn special_tokens(&self) -> Map<String, Json> {
        let named = self.0.get("extra_special_tokens").and_then(Json::as_object);
        let roles = self.0.iter().filter(|(role, _)| role.ends_with("_token"));
        let tokens = roles.chain(named.into_iter().flatten());
        tokens.filter_map(|(role, token)| Some((role.clone(), content(token)?.into()))).collect()
    }

    /// The added tokens that have an id, sorted by id.
    pub fn listed(&self) -> Vec<(u32, AddedToken)> {
        let decoder = self.0.get(DECODER).and_then(Json::as_object).into_iter().flatten();
        let listed =
            decoder.filter_map(|(id, token)| Some((id.parse().ok()?, added(token, false)?)));
        let mut listed: Vec<(u32, _)> = listed.collect();
        listed.sort_by_key(|(id, _)| *id);
        listed
    }

    /// The tokens to add to a vocabulary or to describe anew: all tokens with ids, and tokens with a
    /// role that are not yet `present`.
    pub fn added(&self, present: impl Fn(&str) -> bool) -> Vec<AddedToken> {
        let mut added: Vec<_> = self.listed().into_iter().map(|(_, token)| token).collect();
        for token in self.named() {
            if !present(&token.content) && added.iter().all(|a| a.content != token.content) {
                added.push(token);
            }
        }
        added
    }

    /// The tokens that have a role, without ids.
    fn named(&self) -> impl Iterator<Item = AddedToken> {
        let roles = self.0.iter().filter(|(role, _)| role.ends_with("_token"));
        let roles = roles.map(|(_, token)| token);
        let extra = ["extra_special_tokens", "additional_special_tokens"].into_iter();
        let extra = extra.filter_map(|key| self.0.get(key)).flat_map(|tokens| match tokens {
            Json::Array(tokens) => tokens.iter().collect(),
            Json::Object(tokens) => tokens.values().collect(),
            _ => Vec::new(),
        });
        roles.chain(extra).filter_map(|token| added(token, true))
    }
}

fn object(files: &Files, name: &str) -> Result<Map<String, Json>> {
    match files.json(name)? {
        None => Ok(Map::new()),
        Some(Json::Object(object)) => Ok(object),
        Some(_) => Err(Error::Config {
            file: name.into(),
            field: String::new(),
            reason: "the file must contain a JSON object".into(),
        }),
    }
}

/// The text of a token, which is a string or an object with a `content`.
fn content(token: &Json) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

fn added(token: &Json, special: bool) -> Option<AddedToken> {
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
}
