//! What the files of a checkpoint and the authors of its family recommend: end tokens, sampling, and
//! the length of the context.

use crate::{
    checkpoint::files::Files,
    error::Result,
    families::{Recommended, Sampling},
    generate::GenerateOptions,
    text::{ChatTemplate, Tokenizer, turn_ends},
};
use serde_json::Value as Json;
use std::collections::BTreeSet;

/// The config of the language model: of several, the one that this config nests.
pub(super) fn text_config(config: &Json) -> &Json {
    let names = ["text_config", "llm_config"].into_iter();
    let mut nested = names.filter_map(|name| config.get(name));
    nested.find(|nested| nested.is_object()).unwrap_or(config)
}

/// The ids that end a text by the config and the generation config.
pub(super) fn configured_ends(config: &Json, generation: Option<&Json>) -> Vec<u32> {
    let mut ids = BTreeSet::new();
    for source in [Some(config), Some(text_config(config)), generation].into_iter().flatten() {
        let written = source.get("eos_token_id");
        let listed = written.and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
        let all = listed.iter().chain(written).filter_map(Json::as_u64);
        ids.extend(all.filter_map(|id| u32::try_from(id).ok()));
    }
    ids.into_iter().collect()
}

/// And by the tokenizer, the family, and the template, which closes an assistant's turn.
pub(super) fn end_tokens(
    configured: &[u32],
    recommended: &Recommended,
    tokenizer: Option<&Tokenizer>,
    template: Option<&ChatTemplate>,
) -> Vec<u32> {
    let mut ids: BTreeSet<u32> = configured.iter().copied().collect();
    if let Some(tokenizer) = tokenizer {
        ids.extend(tokenizer.eos_token_id());
        ids.extend(recommended.end_tokens.iter().filter_map(|text| tokenizer.token_id(text)));
        ids.extend(template.map(|template| turn_ends(template, tokenizer)).unwrap_or_default());
    }
    ids.into_iter().collect()
}

/// The sampling that `generation_config.json` recommends, or else the family. A value that no request
/// could have is ignored with one line in the log.
pub(super) fn defaults(generation: Option<&Json>, sampling: Sampling) -> GenerateOptions {
    let family = GenerateOptions {
        temperature: sampling.temperature,
        top_k: sampling.top_k,
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        repetition_penalty: sampling.repetition_penalty,
        ..GenerateOptions::default()
    };
    let Some(generation) = generation else { return family };
    let mut options = match generation.get("do_sample").and_then(Json::as_bool) {
        None => family,
        Some(false) => GenerateOptions::default(),
        Some(true) => GenerateOptions::default().temperature(1.0),
    };
    const ALWAYS: &[Field] = &[
        ("min_new_tokens", |options, value| options.min_tokens(value as usize)),
        ("repetition_penalty", |options, value| options.repetition_penalty(value as f32)),
    ];
    const IF_SAMPLING: &[Field] = &[
        ("temperature", |options, value| options.temperature(value as f32)),
        ("top_k", |options, value| options.top_k(value as usize)),
        ("top_p", |options, value| options.top_p(value as f32)),
        ("min_p", |options, value| options.min_p(value as f32)),
        ("typical_p", |options, value| options.typical_p(value as f32)),
    ];
    let samples = generation.get("do_sample").and_then(Json::as_bool) == Some(true);
    let fields = ALWAYS.iter().chain(IF_SAMPLING.iter().filter(|_| samples));
    let mut ignored = Vec::new();
    for (field, set) in fields {
        let Some(value) = generation.get(field).filter(|value| !value.is_null()) else { continue };
        let candidate = value.as_f64().map(|value| set(options.clone(), value));
        match candidate.filter(|candidate| candidate.check(u32::MAX).is_ok()) {
            Some(candidate) => options = candidate,
            None => ignored.push(format!("{field}: {value}")),
        }
    }
    if !ignored.is_empty() {
        tracing::warn!(
            "generation_config.json: {} cannot be used and is ignored",
            ignored.join(", ")
        );
    }
    options
}

/// The format of calls that `tokenizer_config.json` names.
///
/// # Errors
/// Those of [`Files::json`].
pub(super) fn tool_parser_type(files: &Files) -> Result<Option<String>> {
    let config = files.json("tokenizer_config.json")?;
    let name = config.as_ref().and_then(|config| config.get("tool_parser_type"));
    Ok(name.and_then(Json::as_str).map(String::from))
}

/// A field of `generation_config.json` and the option that it sets.
type Field = (&'static str, fn(GenerateOptions, f64) -> GenerateOptions);

/// The longest sequence that a config promises. A written length above the one before scaling already
/// counts the scaling of rotary positions; a length before scaling is multiplied by its factor.
pub(super) fn context(config: &Json, recommended: &Recommended) -> Option<usize> {
    const ORIGINAL: &str = "original_max_position_embeddings";
    const STRETCHING: [&str; 6] = ["dynamic", "linear", "llama3", "longrope", "su", "yarn"];
    let number = |object: &Json, field| object.get(field).and_then(Json::as_f64);
    let object =
        |config: &Json, field| config.get(field).filter(|value| value.is_object()).cloned();
    let text = text_config(config);
    let written = number(text, "max_position_embeddings").or(number(text, "n_positions"));
    let written = written.filter(|tokens| *tokens >= 1.0)?;
    let scaling = object(text, "rope_scaling").or(object(text, "rope_parameters"));
    let scaling = scaling.unwrap_or_default();
    // Where kinds of layers have scalings of their own, the full ones see the whole sequence.
    let scaling = object(&scaling, "full_attention").unwrap_or(scaling);
    let kind = scaling.get("rope_type").or(scaling.get("type")).and_then(Json::as_str);
    let kind = kind.map(|kind| if kind.ends_with("yarn") { "yarn" } else { kind });
    let original = number(&scaling, ORIGINAL).or(number(text, ORIGINAL)).or(match kind {
        Some("llama3") => Some(8192.0),
        _ => Some(written).filter(|_| !recommended.context_is_scaled),
    });
    let factor =
        number(&scaling, "factor").filter(|_| kind.is_some_and(|k| STRETCHING.contains(&k)));
    let stretched = match (original, factor) {
        (Some(original), Some(factor)) if written <= original => original * factor,
        _ => written,
    };
    Some(written.max(stretched) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_context_is_stretched_once() {
        let context = |max: u32, scaling: Json| {
            let config = json!({"max_position_embeddings": max, "rope_scaling": scaling});
            context(&config, &Recommended::NOTHING)
        };
        let scaled = |kind: &str, factor: f32, original: Option<u32>| json!({"rope_type": kind, "factor": factor, "original_max_position_embeddings": original});
        for (max, scaling, expected) in [
            // The published lengths: Llama 3.2, gpt-oss, DeepSeek V3, Phi 3.5, Qwen 3.
            (131_072, scaled("llama3", 32.0, Some(8192)), 131_072),
            (131_072, scaled("yarn", 32.0, Some(4096)), 131_072),
            (163_840, scaled("yarn", 40.0, Some(4096)), 163_840),
            (131_072, scaled("longrope", 32.0, Some(4096)), 131_072),
            (40_960, json!({"rope_type": "default"}), 40_960),
            // Qwen 2.5 as its card describes, Vicuna 16k, and a llama3 that says no length.
            (32_768, scaled("yarn", 4.0, Some(32_768)), 131_072),
            (4096, json!({"type": "linear", "factor": 4.0}), 16_384),
            (4096, json!({"type": "dynamic", "factor": 2.0}), 8192),
            (131_072, scaled("llama3", 8.0, None), 131_072),
            (65_536, scaled("linear", 4.0, Some(4096)), 65_536),
            (65_536, scaled("dynamic", 4.0, Some(4096)), 65_536),
            (4096, Json::Null, 4096),
        ] {
            assert_eq!(context(max, scaling.clone()), Some(expected), "{max}, {scaling}");
        }
    }

    #[test]
    fn a_context_is_found_where_configs_have_it() {
        let linear = json!({"rope_type": "linear", "factor": 8.0});
        let layers =
            json!({"full_attention": linear, "sliding_attention": {"rope_type": "default"}});
        let text = |scaling: &Json| {
            json!({"text_config": {"max_position_embeddings": 131_072, "rope_parameters": scaling,
                "rope_scaling": null}})
        };
        let scaled = Recommended { context_is_scaled: true, ..Recommended::NOTHING };
        for scaling in [&linear, &layers] {
            assert_eq!(context(&text(scaling), &scaled), Some(131_072));
            assert_eq!(context(&text(scaling), &Recommended::NOTHING), Some(8 * 131_072));
        }
        let outside = json!({"max_position_embeddings": 131_072, "rope_scaling": {"type": "longrope",
            "factor": 32.0}, "original_max_position_embeddings": 4096});
        assert_eq!(context(&outside, &Recommended::NOTHING), Some(131_072));
        assert_eq!(context(&json!({"n_positions": 1024}), &Recommended::NOTHING), Some(1024));
    }

    #[test]
    fn a_recommendation_that_no_request_could_have_is_ignored() {
        let greedy = Sampling::GREEDY;
        let read = |generation: Json| defaults(Some(&generation), greedy);
        for wrong in [
            json!({"top_p": 0}),
            json!({"top_p": 1.5}),
            json!({"temperature": -1}),
            json!({"temperature": "hot"}),
            json!({"min_p": 2}),
            json!({"typical_p": 0.0}),
            json!({"repetition_penalty": 0}),
            json!({"min_new_tokens": 1e9}),
            json!({"repetition_penalty": {"__float__": "NaN"}}),
        ] {
            let mut generation = json!({"do_sample": true, "top_k": 20});
            generation.as_object_mut().unwrap().extend(wrong.as_object().unwrap().clone());
            let expected = GenerateOptions::default().temperature(1.0).top_k(20);
            assert_eq!(read(generation), expected, "{wrong}");
        }
        let all = json!({"do_sample": true, "temperature": 0.6, "top_p": 0.9, "top_k": null});
        assert_eq!(read(all), GenerateOptions::default().temperature(0.6).top_p(0.9));
        let penalty = json!({"top_p": 0.9, "repetition_penalty": 1.1});
        assert_eq!(read(penalty), GenerateOptions::default().repetition_penalty(1.1));
    }
}
