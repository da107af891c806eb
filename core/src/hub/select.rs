//! Which files of a repository a model needs.

use crate::hub::listing::{Listing, RemoteFile};
use crate::{
    checkpoint::{
        adapter,
        file_rules::{FileRules, MODULES, fits},
        weight_files::{INDEX, WeightFiles},
    },
    error::{Error, Result},
};
use serde_json::Value as Json;

const SMALL: &[&str] = &[
    INDEX,
    MODULES,
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "hf_quant_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "quantization_config.json",
    "quantize_config.json",
    "special_tokens_map.json",
    "tekken.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
    "vocab.txt",
];

/// Whether a model or an adapter may need a file of this name.
pub(super) fn may_need(name: &str) -> bool {
    is_small(name) || is_weights(name) || adapter::FILES.contains(&name)
}

/// Whether a file of this name is needed and is not weights.
pub(super) fn is_small(name: &str) -> bool {
    let template = name.strip_prefix("additional_chat_templates/");
    match template {
        Some(template) => !template.contains('/') && template.ends_with(".jinja"),
        None => {
            let ends = [".model", ".tiktoken", ".jsonl"];
            let is_tokenizer = !name.contains('/') && ends.iter().any(|end| name.ends_with(end));
            is_tokenizer || SMALL.contains(&name)
        }
    }
}

/// Whether a file of this name is weights. Names that lead out of the folder count, so that they are
/// refused later and not ignored.
fn is_weights(name: &str) -> bool {
    let is_below = name.contains('/') && !name.contains("..") && !name.starts_with('/');
    name.ends_with(".safetensors") && !is_below
}

/// The files of a model that are not weights.
pub(super) fn small(listing: &Listing) -> Vec<&RemoteFile> {
    listing.files.iter().filter(|file| is_small(&file.name)).collect()
}

/// The files of an adapter.
pub(super) fn adapter(listing: &Listing) -> Vec<&RemoteFile> {
    listing.files.iter().filter(|file| adapter::FILES.contains(&&*file.name)).collect()
}

/// The files that a family needs beside the usual ones, apart from its weights.
pub(super) fn beside<'a>(listing: &'a Listing, rules: &FileRules) -> Vec<&'a RemoteFile> {
    let needed = |name: &str| fits(rules.beside, name) && !fits(rules.weights, name);
    let known = listing.files.iter().filter(|file| !is_small(&file.name));
    known.chain(&listing.others).filter(|file| needed(&file.name)).collect()
}

/// The weights of a family: those that its rules name, or else those of [`usual_weights`].
///
/// # Errors
/// [`Error::Checkpoint`] when there are none, or when a shard that the index names is missing.
pub(super) fn weights<'a>(
    listing: &'a Listing,
    index: Option<&Json>,
    rules: &FileRules,
) -> Result<Vec<&'a RemoteFile>> {
    if rules.weights.is_empty() {
        return usual_weights(listing, index);
    }
    let all = listing.files.iter().chain(&listing.others);
    let files: Vec<_> = all.filter(|file| fits(rules.weights, &file.name)).collect();
    if files.is_empty() {
        let patterns = rules.weights.join(" or ");
        let reason = format!("the repository has no {patterns}");
        return Err(Error::Checkpoint { file: patterns.into(), reason });
    }
    Ok(files)
}

/// The weights as [`WeightFiles::choose`] chooses them, before anything is downloaded.
fn usual_weights<'a>(listing: &'a Listing, index: Option<&Json>) -> Result<Vec<&'a RemoteFile>> {
    let all = || listing.files.iter().filter(|file| is_weights(&file.name));
    let present = all().map(|file| file.name.clone()).collect();
    let chosen = WeightFiles::choose(index, &present, |name| name.into())?;
    Ok(all().filter(|file| chosen.names.contains(&file.name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn listing(names: &[&str]) -> Listing {
        let file =
            |name: &&str| RemoteFile { name: name.to_string(), size: 1, hash: "0".repeat(40) };
        let (files, others) = names.iter().map(file).partition(|file| may_need(&file.name));
        Listing { commit: "0".repeat(40), gated: false, files, others }
    }

    fn names(files: Vec<&RemoteFile>) -> Vec<&str> {
        files.into_iter().map(|file| file.name.as_str()).collect()
    }

    #[test]
    fn only_files_that_a_model_needs_are_selected() {
        let needed = [
            "additional_chat_templates/tool_use.jinja",
            "chat_template.jinja",
            "config.json",
            "merges.txt",
            "qwen.tiktoken",
            "spiece.model",
            "tekken.json",
            "tokenizer.json",
            "tokenizer.jsonl",
        ];
        let other = [
            ".gitattributes",
            "README.md",
            "LICENSE.txt",
            "config.json.bak",
            "modeling.py",
            "original/tokenizer.model",
            "onnx/model.onnx",
            "pytorch_model.bin",
            "model.gguf",
            "trainer_state.json",
            "additional_chat_templates/a/b.jinja",
            "tf_model.h5",
            "pytorch_model.bin.index.json",
            "sub/config.json",
        ];
        let all: Vec<_> = needed.iter().chain(&other).copied().collect();
        assert_eq!(names(small(&listing(&all))), needed);
        assert!(usual_weights(&listing(&all), None).is_err());
    }

    #[test]
    fn weights_are_the_shards_of_the_index_or_have_the_usual_name() {
        let one =
            listing(&["consolidated.safetensors", "model.safetensors", "original/a.safetensors"]);
        assert_eq!(names(usual_weights(&one, None).unwrap()), ["model.safetensors"]);
        let other = listing(&["consolidated.safetensors", "adapter.safetensors"]);
        assert!(matches!(usual_weights(&other, None), Err(Error::Checkpoint { .. })));

        let shards = ["model-1.safetensors", "model-2.safetensors", "model-old.safetensors"];
        let index = json!({"weight_map": {
            "a": "model-2.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"
        }});
        assert_eq!(names(usual_weights(&listing(&shards), Some(&index)).unwrap()), shards[..2]);
        let stale = json!({"weight_map": {"a": "model-3.safetensors"}});
        assert_eq!(names(usual_weights(&listing(&shards), Some(&stale)).unwrap()), shards);
        for wrong in [
            json!({}),
            json!({"weight_map": {"a": "model-1.safetensors", "b": "model-3.safetensors"}}),
            json!({"weight_map": {"a": "../model-1.safetensors"}}),
            json!({"weight_map": {"a": 1}}),
        ] {
            let listing = listing(&shards);
            let refused = usual_weights(&listing, Some(&wrong));
            assert!(matches!(refused, Err(Error::Checkpoint { .. })), "{wrong}");
        }
    }

    #[test]
    fn a_family_may_need_other_files() {
        let all = ["config.json", "a-v1.safetensors", "model.safetensors", "notes.txt", "am.mvn"];
        let voices = ["voices/b.safetensors", "voices/c/d.safetensors"];
        let listing = listing(&[&all[..], &voices].concat());
        let rules = FileRules {
            beside: &["am.mvn", "config.json", "voices/*.safetensors"],
            weights: &["a-*.safetensors"],
            matches: None,
        };
        assert_eq!(names(beside(&listing, &rules)), ["am.mvn", "voices/b.safetensors"]);
        assert_eq!(names(weights(&listing, None, &rules).unwrap()), ["a-v1.safetensors"]);
        let usual = &FileRules::USUAL;
        assert!(beside(&listing, usual).is_empty());
        assert_eq!(names(weights(&listing, None, usual).unwrap()), ["model.safetensors"]);
        let other = FileRules { weights: &["b-*.safetensors"], ..rules };
        let refused = weights(&listing, None, &other).err().unwrap().to_string();
        assert!(refused.contains("b-*.safetensors"), "{refused}");
    }
}
