//! What the files of a checkpoint and the authors of its family recommend: end tokens, sampling, and
//! the length of the context.

use crate::{
    checkpoint::{config::Json, files::Files},
    error::Result,
    families::{Recommended, Sampling},
    generate::GenerateOptions,
    text::{ChatTemplate, Tokenizer, turn_ends},
};
use std::collections::BTreeSet;

/// The ids that end a text by the config and the generation config.
pub(super) fn configured_ends(config: &Json, generation: Option<&Json>) -> Vec<u32> {
    let mut ids = BTreeSet::new();
    for source in [Some(config), config.get("text_config"), generation].into_iter().flatten() {
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

/// The sampling that `generation_config.json` recommends, or else the family.
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
    let number = |field| generation.get(field).and_then(Json::as_f64);
    let mut options = match generation.get("do_sample").and_then(Json::as_bool) {
        None => family,
        Some(false) => GenerateOptions::default(),
        Some(true) => GenerateOptions {
            temperature: number("temperature").unwrap_or(1.0) as f32,
            top_k: number("top_k").unwrap_or(0.0) as usize,
            top_p: number("top_p").unwrap_or(1.0) as f32,
            min_p: number("min_p").unwrap_or(0.0) as f32,
            typical_p: number("typical_p").unwrap_or(1.0) as f32,
            ..GenerateOptions::default()
        },
    };
    if let Some(tokens) = number("min_new_tokens") {
        options.min_tokens = tokens as usize;
    }
    if let Some(penalty) = number("repetition_penalty") {
        options.repetition_penalty = penalty as f32;
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

/// The longest sequence that a config promises, positions that are stretched included.
pub(super) fn context(config: &Json) -> Option<usize> {
    let text = config.get("text_config").unwrap_or(config);
    let written = text.get("max_position_embeddings").or(text.get("n_positions"))?;
    let written = written.as_f64().filter(|n| *n >= 1.0)?;
    let scaling = text.get("rope_scaling").or(text.get("rope_parameters"));
    let number = |field| scaling.and_then(|scaling| scaling.get(field)).and_then(Json::as_f64);
    let original = number("original_max_position_embeddings").unwrap_or(written);
    Some(written.max(original * number("factor").unwrap_or(1.0)) as usize)
}
