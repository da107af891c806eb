//! Text embeddings and rerankers. A checkpoint is told by the modules of sentence-transformers and by
//! its architecture before its `model_type`, which those of generation have too.

mod bert;
mod causal_encoder;
mod cross_encoder;
mod distilbert;
mod embedding_gemma;
mod logit_score;
mod modernbert;
mod rotary_bert;
mod sentence_transformer;
mod text_encoder;

use crate::{
    checkpoint::file_rules::{Contents, FileRules},
    families::{Build, Entry, Recommended, model_type, text, text_encoders::TextEncoderFamily},
};
pub(crate) use logit_score::{judge, judged_text};
use serde_json::Value;

/// The families of embedders and rerankers.
pub const FAMILIES: &[Entry] = &[
    entry(&["cross_encoder"], Build::Reranker(cross_encoder::reranker), Some(is_classifier)),
    entry(&["logit_score"], Build::Reranker(logit_score::reranker), Some(has_logit_score)),
    entry(&["sentence_transformer"], EMBEDDER, Some(is_sentence_model)),
    encoder(&bert::ENCODER),
    encoder(&distilbert::ENCODER),
    encoder(&modernbert::ENCODER),
    encoder(&rotary_bert::NOMIC_BERT),
    entry(rotary_bert::GTE.model_types, EMBEDDER, Some(is_of_gte)),
];

const EMBEDDER: Build = Build::Embedder(sentence_transformer::embedder);

/// The files of sentence-transformers beside the usual ones: its settings, and those of its modules.
const FILES: FileRules = FileRules {
    beside: &[
        "config_sentence_transformers.json",
        "sentence_*_config.json",
        "*/config.json",
        "*/model.safetensors",
    ],
    ..FileRules::USUAL
};

const fn entry(
    model_types: &'static [&'static str],
    build: Build,
    matches: Option<fn(&Contents) -> bool>,
) -> Entry {
    let files = FileRules { matches, ..FILES };
    Entry { model_types, build, recommended: Recommended::NOTHING, files, processor: None }
}

const fn encoder(family: &TextEncoderFamily) -> Entry {
    entry(family.model_types, EMBEDDER, None)
}

/// The `model_type` of a checkpoint's config.
fn type_of<'a>(contents: &Contents<'a>) -> Option<&'a str> {
    contents.config.and_then(|config| model_type(config).ok())
}

/// Whether the checkpoint is one of sequence classification.
fn is_classifier(contents: &Contents) -> bool {
    let architectures = contents.config.and_then(|config| config.get("architectures"));
    let first = architectures.and_then(|list| list.get(0)?.as_str());
    first.is_some_and(|name| name.ends_with("ForSequenceClassification"))
        && type_of(contents)
            .is_some_and(|kind| text_encoder::find(kind).is_some() || text::has(kind))
}

fn has_logit_score(contents: &Contents) -> bool {
    let modules = contents.modules.and_then(Value::as_array).into_iter().flatten();
    let mut kinds = modules.filter_map(|module| module.get("type")?.as_str());
    kinds.any(|kind| kind.ends_with(".LogitScore"))
}

/// Whether the checkpoint is a language model that sentence-transformers saved.
fn is_sentence_model(contents: &Contents) -> bool {
    contents.modules.is_some() && type_of(contents).is_some_and(text::has)
}

/// Whether the checkpoint is one of GTE under its authors' word for it, which says nothing by itself.
fn is_of_gte(contents: &Contents) -> bool {
    type_of(contents) == Some(rotary_bert::AUTHORS_TYPE)
}
