//! `tekken.json`: tokens in base64 after a block of special tokens, and the pattern that splits text.

use crate::checkpoint::files::Files;
use crate::error::Result;
use crate::text::tokenizer::config::Config;
use crate::text::tokenizer::vocabularies::byte_level::{base64, ranked};
use crate::text::tokenizer::vocabularies::pipeline::{Pipeline, damaged};
use serde_json::Value as Json;

/// Reads `tekken.json`.
pub fn read(file: &str, bytes: &[u8], _: &Config, _: &Files) -> Result<Pipeline> {
    /// The special tokens of a file that does not list them.
    const UNLISTED: [&str; 20] = [
        "<unk>",
        "<s>",
        "</s>",
        "[INST]",
        "[/INST]",
        "[AVAILABLE_TOOLS]",
        "[/AVAILABLE_TOOLS]",
        "[TOOL_RESULTS]",
        "[/TOOL_RESULTS]",
        "[TOOL_CALLS]",
        "[IMG]",
        "<pad>",
        "[IMG_BREAK]",
        "[IMG_END]",
        "[PREFIX]",
        "[MIDDLE]",
        "[SUFFIX]",
        "[SYSTEM_PROMPT]",
        "[/SYSTEM_PROMPT]",
        "[TOOL_CONTENT]",
    ];
    let json: Json = serde_json::from_slice(bytes).map_err(|e| damaged(file, e.to_string()))?;
    let config = &json["config"];
    let number = |field: &str| config[field].as_u64().and_then(|n| u32::try_from(n).ok());
    let pattern = config["pattern"].as_str();
    let pattern = pattern.ok_or_else(|| damaged(file, "`config.pattern` is not a string"))?;

    let mut special: Vec<String> = match json.get("special_tokens").and_then(Json::as_array) {
        None => UNLISTED.map(String::from).to_vec(),
        Some(listed) => {
            let mut listed: Vec<_> =
                listed.iter().map(|t| (t["rank"].as_u64(), t["token_str"].as_str())).collect();
            listed.sort_unstable();
            let named = listed
                .iter()
                .zip(0..)
                .map(|((rank, text), i)| text.filter(|_| *rank == Some(i)).map(String::from));
            let named = named.collect::<Option<_>>();
            named.ok_or_else(|| damaged(file, "the ranks of `special_tokens` have holes"))?
        }
    };
    let count = number("default_num_special_tokens").unwrap_or(special.len() as u32);
    let vocabulary =
        json["vocab"].as_array().ok_or_else(|| damaged(file, "`vocab` is not a list"))?;
    if count as usize > special.len() + vocabulary.len() {
        return Err(damaged(file, "`config.default_num_special_tokens` is out of range"));
    }
    special.extend((special.len() as u32..count).map(|i| format!("<SPECIAL_{i}>")));
    let count = special.len() as u32;
    let kept = number("default_vocab_size").map(|size| size.saturating_sub(count) as usize);
    let kept = kept.unwrap_or(vocabulary.len());
    if kept > vocabulary.len() {
        return Err(damaged(file, "`vocab` is shorter than `config.default_vocab_size`"));
    }
    let token = |(entry, rank): (&Json, u32)| {
        let damaged = |reason| damaged(file, format!("`vocab`, entry {rank}: {reason}"));
        if entry["rank"].as_u64() != Some(rank.into()) {
            return Err(damaged("the rank is not its position in the list"));
        }
        let token = entry["token_bytes"].as_str().and_then(base64);
        Ok((token.ok_or_else(|| damaged("malformed base64"))?, count + rank))
    };
    let tokens = vocabulary[..kept].iter().zip(0..).map(token).collect::<Result<_>>()?;
    let special: Vec<_> = special.into_iter().zip(0..).collect();
    let roles = ["unk_token", "bos_token", "eos_token", "pad_token"];
    let roles = roles.into_iter().zip(["<unk>", "<s>", "</s>", "<pad>"]);
    let roles = roles.map(|(role, name)| (role, name.to_string())).collect();
    Ok(Pipeline { roles, ..ranked(file, tokens, pattern, special)? })
}
