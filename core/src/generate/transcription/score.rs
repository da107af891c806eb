//! The log-probabilities of a given transcript.

use crate::{
    error::{Error, Result},
    generate::{
        score::{Score, score_given},
        transcription::{options::TranscribeOptions, vocabulary::Vocabulary, windows::detect},
    },
    layers::{cache_plan::CachePlan, embedded::Embedded},
    mlx,
    models::{
        decode_step::{prefill, prefill_embedded},
        language::LanguageModel,
        speech::{Output, Transcriber},
    },
};
use mlx_rs::{Array, ops};

/// What is to be scored.
pub(crate) struct Wanted {
    pub tokens: Vec<u32>,
    /// The number of most probable tokens at each place.
    pub top: usize,
}

/// Scores tokens after the model's own prompt for the output of its encoder. Returns the length of the
/// prompt, too.
///
/// # Errors
/// [`Error::TokenOutOfVocabulary`]; [`Error::Option`] for no tokens, and for a model that writes no
/// token after another.
pub(crate) fn score_transcript(
    model: &dyn Transcriber,
    vocabulary: Option<&Vocabulary>,
    encoded: &Array,
    options: &TranscribeOptions,
    wanted: &Wanted,
) -> Result<(usize, Score)> {
    let (decoder, prompt) = match model.output() {
        Output::Windows(decoder) => {
            let vocabulary = vocabulary.ok_or(Error::NoTokenizer)?;
            let language = match &options.language {
                Some(language) => language.clone(),
                None => detect(decoder, vocabulary, encoded)?,
            };
            let mut prompt = vocabulary.prompt(&language, options)?;
            prompt.push(vocabulary.no_timestamps);
            let mut prompt = embed(&*decoder.decoder, &prompt)?;
            prompt.encoded = Some(encoded.clone());
            (&decoder.decoder, prompt)
        }
        Output::Prompted(decoder) => {
            (decoder.decoder(), decoder.prompt(encoded, &options.request())?)
        }
        Output::Labels(_) | Output::Aligner(_) => {
            let reason = "the model finds all tokens at once, so none has a score of its own";
            return Err(Error::option("tokens", reason));
        }
    };
    let (decoder, tokens) = (&**decoder, &wanted.tokens);
    let Some((_, before)) = tokens.split_last() else {
        return Err(Error::option("tokens", "must be at least one"));
    };
    let size = decoder.vocabulary();
    if let Some(id) = tokens.iter().find(|id| **id >= size) {
        return Err(Error::TokenOutOfVocabulary { id: *id, vocabulary: size });
    }
    let length = prompt.length();
    let mut cache = decoder.cache(&CachePlan::new(length + before.len()));
    let hidden = prefill_embedded(decoder, &prompt, &mut cache)?;
    let mut rows = mlx::slice(&hidden, 1, length as i32 - 1, length as i32)?;
    if !before.is_empty() {
        let ids = Array::from_slice(before, &[1, before.len() as i32]);
        rows = ops::concatenate(&[rows, prefill(decoder, &ids, &mut cache)?], 1)?;
    }
    Ok((length, score_given(&decoder.logits(&rows)?, tokens, wanted.top)?))
}

fn embed(decoder: &dyn LanguageModel, ids: &[u32]) -> Result<Embedded> {
    decoder.embed(&Array::from_slice(ids, &[1, ids.len() as i32]))
}
