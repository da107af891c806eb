//! The computation of many texts, in batches of similar length.

use crate::{
    engine::{Engine, Turn},
    error::{Error, Result},
    mlx,
    models::text_batch::{TextBatch, Tokens},
};
use mlx_rs::Array;

/// The most texts that are computed at once, where nothing else is said.
pub(super) const DEFAULT_BATCH: usize = 32;
/// The most tokens of a batch of several texts, padding included.
const MOST_TOKENS: usize = 1 << 14;

/// The most tokens of a text: what is wanted, or else what the model reads.
///
/// # Errors
/// [`Error::Option`] for no tokens, and for more than the model reads.
pub(super) fn longest(wanted: Option<usize>, read: Option<usize>) -> Result<Option<usize>> {
    let Some(wanted) = wanted else { return Ok(read) };
    match read {
        _ if wanted == 0 => Err(Error::option("max_length", "a text has at least one token")),
        Some(read) if wanted > read => {
            let reason = format!("{wanted}, and the model reads {read} tokens at most");
            Err(Error::option("max_length", reason))
        }
        _ => Ok(Some(wanted)),
    }
}

/// Runs `run` over batches of the texts on the engine thread, each a turn of it, and returns one row of
/// numbers for each text in their order.
///
/// # Errors
/// [`Error::Option`] for batches of no texts; [`Error::TokenOutOfVocabulary`]; [`Error::NotANumber`];
/// those of `run`.
pub(super) async fn run(
    engine: &'static Engine,
    texts: Vec<Tokens>,
    batch_size: usize,
    vocabulary: impl FnOnce() -> Result<u32> + Send + 'static,
    run: impl Fn(&TextBatch) -> Result<Array> + Send + 'static,
) -> Result<Vec<Vec<f32>>> {
    if batch_size == 0 {
        return Err(Error::option("batch_size", "a batch has at least one text"));
    }
    let mut batches = batches(&texts, batch_size).into_iter();
    let begin = move || {
        let vocabulary = vocabulary()?;
        let outside = texts.iter().flat_map(|text| &text.ids).find(|id| **id >= vocabulary);
        if let Some(&id) = outside {
            return Err(Error::TokenOutOfVocabulary { id, vocabulary });
        }
        let mut rows = vec![Vec::new(); texts.len()];
        Ok(move || {
            let Some(batch) = batches.next() else { return Ok(Some(std::mem::take(&mut rows))) };
            let members: Vec<&Tokens> = batch.iter().map(|index| &texts[*index]).collect();
            let found = mlx::to_vec::<f32>(&run(&TextBatch::new(&members)?)?)?;
            let width = found.len() / batch.len();
            for (&index, row) in batch.iter().zip(found.chunks(width)) {
                if row.iter().any(|x| !x.is_finite()) {
                    return Err(Error::NotANumber { position: index });
                }
                rows[index] = row.to_vec();
            }
            Ok(None)
        })
    };
    engine.run_in_turns(Turn::Ready, begin).await
}

/// The texts of each batch: the longest first, so that a batch has little padding.
fn batches(texts: &[Tokens], batch_size: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..texts.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(texts[*index].ids.len()));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for index in order {
        match batches.last_mut() {
            Some(batch)
                if batch.len() < batch_size
                    && (batch.len() + 1) * texts[batch[0]].ids.len() <= MOST_TOKENS =>
            {
                batch.push(index);
            }
            _ => batches.push(vec![index]),
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_have_texts_of_similar_length() {
        let text = |length| Tokens { ids: vec![1; length], ..Tokens::default() };
        let texts: Vec<_> = [3, 9, 1, 8, 2].map(text).into();
        assert_eq!(batches(&texts, 2), [vec![1, 3], vec![0, 4], vec![2]]);
        let long: Vec<_> = [6000, 6000, 6000, 10].map(text).into();
        assert_eq!(batches(&long, 32), [vec![0, 1], vec![2, 3]]);
        assert!(batches(&[], 2).is_empty());
    }
}
