//! Every model type that transformers implements gives its numbers, from checkpoints that it saved
//! itself: its default config with smaller sizes, and one in which every field is another one.

use crate::families::{Stepped, build, check_each, empty, ids, probe, run};
use mynah::{
    Files, Result,
    internals::{Cache, Scope, families, prefill},
};
use mynah_tests::{Case, Fixture, on_engine};
use std::collections::HashMap;

/// Absolute, on log-probabilities: kernels of two libraries add up in another order.
const TOLERANCE: f32 = 1e-4;

/// Compares rows from a position on with those of a case, which has every `every`th.
fn compare(case: &Case, rows: &[Vec<f32>], from: usize) -> Result<(), String> {
    for (position, row) in (from..).zip(rows) {
        if !position.is_multiple_of(case.every) {
            continue;
        }
        for (found, expected) in row.iter().zip(&case.logprobs[position / case.every]) {
            let distance = (found - expected).abs();
            if distance > TOLERANCE || distance.is_nan() {
                return Err(format!("{found} instead of {expected} at position {position}"));
            }
        }
    }
    Ok(())
}

/// The model as an application loads it: from a folder, with no tensor and no field left over.
fn open(case: &Case) -> Result<Stepped> {
    let folder = tempfile::tempdir().unwrap();
    case.write(folder.path())?;
    let scope = Scope::open(&Files::from(folder.path()), &case.config)?;
    let model = build(&scope)?;
    families::ignored_fields(&scope)?;
    Ok(Stepped::new(model))
}

#[test]
fn every_type_gives_the_numbers_of_transformers() {
    let fixtures = Fixture::of_transformers();
    assert!(fixtures.len() > 70, "{} fixtures", fixtures.len());
    check_each(
        fixtures.into_iter().filter(|(name, _)| name != "longrope").collect(),
        |cases| cases,
        |case| {
            let text = |error: mynah::Error| error.to_string();
            let mut model = open(case).map_err(text)?;
            let length = case.tokens.len();
            for (what, chunk) in [("prefill", length), ("prefill and steps", length / 2)] {
                let mut cache = empty(&model.model);
                let rows =
                    run(case, &mut model, &mut cache, &case.tokens, &[chunk]).map_err(text)?;
                compare(case, &rows, 0).map_err(|error| format!("{what}: {error}"))?;
            }
            Ok(())
        },
    );
}

/// LongRoPE: a sequence has the numbers of its length, whether it grows over the original context in
/// steps, in parts of a prompt or in a verify pass, alone or in a batch, and after it comes back.
#[test]
fn a_sequence_that_crosses_the_original_context_has_the_numbers_of_its_length() {
    let fixtures: HashMap<_, _> = Fixture::of_transformers().into_iter().collect();
    let [within, beyond] = &fixtures["longrope"].cases[..] else { panic!("there are two cases") };
    let (within, beyond) = (within.clone(), beyond.clone());
    let crossed = on_engine(move || Ok(check_crossing(&within, &beyond)));
    assert_eq!(crossed.unwrap(), Ok(()));
}

/// `within` has the first tokens of `beyond`, as many as the original context.
fn check_crossing(within: &Case, beyond: &Case) -> Result<(), String> {
    let text = |error: mynah::Error| error.to_string();
    let (tokens, context) = (&beyond.tokens, within.tokens.len());
    assert_eq!(tokens[..context], within.tokens);
    let mut model = open(beyond).map_err(text)?;
    let checked = |what: &str, rows: &[Vec<f32>], from: usize| {
        let short = context.saturating_sub(from).min(rows.len());
        compare(within, &rows[..short], from)
            .and_then(|()| compare(beyond, &rows[short..], from + short))
            .map_err(|error| format!("{what}: {error}"))
    };
    // In steps, in parts of a prompt, and back again.
    let mut cache = empty(&model.model);
    let rows = run(beyond, &mut model, &mut cache, tokens, &[5]).map_err(text)?;
    checked("steps", &rows, 0)?;
    assert!(cache.rewind(tokens.len() as i32 - 4));
    let rest = &tokens[4..context];
    let rows = run(beyond, &mut model, &mut cache, rest, &[2]).map_err(text)?;
    checked("after it came back", &rows, 4)?;
    let here = cache.checkpoint();
    let rest = &tokens[context..];
    let rows = run(beyond, &mut model, &mut cache, rest, &[3]).map_err(text)?;
    checked("in parts of a prompt", &rows, context)?;
    assert!(cache.restore(&here).map_err(text)?);
    let rows = run(beyond, &mut model, &mut cache, rest, &[]).map_err(text)?;
    checked("after a checkpoint", &rows, context)?;

    // From a file.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cache.safetensors");
    assert!(cache.rewind((tokens.len() - context) as i32));
    cache.save(&file, "this model", &HashMap::new()).map_err(text)?;
    let (mut cache, _) = Cache::load(&file, &*model.model, "this model").map_err(text)?;
    let rows = run(beyond, &mut model, &mut cache, rest, &[]).map_err(text)?;
    checked("from a file", &rows, context)?;

    // In a verify pass of which all tokens are accepted.
    let mut cache = empty(&model.model);
    let first = context - 2;
    run(beyond, &mut model, &mut cache, &tokens[..first], &[first]).map_err(text)?;
    let Stepped { model: network, step } = &mut model;
    let drafts = ids(&tokens[first..first + 6]);
    let logits = step.verify(network, &drafts, &mut cache).map_err(text)?;
    let rows: Vec<f32> =
        mynah::internals::mlx::to_vec(&probe(beyond, &logits).map_err(text)?).map_err(text)?;
    let rows: Vec<_> = rows.chunks(beyond.probes.len()).map(<[f32]>::to_vec).collect();
    checked("verify pass", &rows, first)?;
    cache.accept(6).map_err(text)?;
    let rest = &tokens[first + 6..];
    let rows = run(beyond, &mut model, &mut cache, rest, &[]).map_err(text)?;
    checked("after a verify pass", &rows, first + 6)?;

    // In a batch with a row that stays short.
    let mut rows = Vec::new();
    for length in [context - 1, 3] {
        let mut cache = empty(&model.model);
        prefill(&*model.model, &ids(&tokens[..length]), &mut cache).map_err(text)?;
        rows.push(cache);
    }
    let mut batch = Cache::join(rows).map_err(text)?;
    for ahead in 0..6 {
        let next = [tokens[context - 1 + ahead], tokens[3 + ahead]];
        let next = ids(&next).reshape(&[2, 1]).map_err(|error| error.to_string())?;
        let Stepped { model: network, step } = &mut model;
        let logits = step.run(network, &next, &mut batch).map_err(text)?;
        let values: Vec<f32> =
            mynah::internals::mlx::to_vec(&probe(beyond, &logits).map_err(text)?).map_err(text)?;
        let (long, short) = values.split_at(beyond.probes.len());
        checked("long row", &[long.to_vec()], context - 1 + ahead)?;
        checked("short row", &[short.to_vec()], 3 + ahead)?;
    }
    Ok(())
}
