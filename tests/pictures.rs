//! Every family that sees gives the reference's numbers for prompts with pictures, however the prompt
//! is cut into chunks and steps.

use crate::families::{Expected, TOLERANCE, probe};
use mlx_rs::{Array, ops, transforms::eval};
use mynah::{
    CachePlan, Error, Result,
    internals::{DecodeStep, Embedded, LanguageModel, mlx, prefill_embedded},
};
use mynah_tests::{Case, Fixture, Prompt, on_engine};
use std::rc::Rc;

/// Log-probabilities of the probes after each position of a prompt, whose first `prefilled` positions
/// are computed in chunks of at most `chunk`, the others step by step.
pub fn rows(
    case: &Case,
    model: &Rc<dyn LanguageModel>,
    prompt: &Embedded,
    prefilled: usize,
    chunk: usize,
) -> Result<Vec<Vec<f32>>> {
    let (mut cache, mut rows, mut at) = (model.cache(&CachePlan::default()), Vec::new(), 0);
    while at < prefilled {
        let end = prompt.border(at, prefilled.min(at.saturating_add(chunk)));
        let hidden = prefill_embedded(&**model, &prompt.slice(at, end)?, &mut cache)?;
        rows.push(probe(case, &model.logits(&hidden)?)?);
        eval(cache.arrays().into_iter().map(|array| &*array))?;
        at = end;
    }
    let mut step = DecodeStep::default();
    for token in &prompt.tokens()?[at..] {
        let id = Array::from_slice(&[*token], &[1, 1]);
        rows.push(probe(case, &step.run(model, &id, &mut cache)?)?);
    }
    let values: Vec<f32> = mlx::to_vec(&ops::concatenate(&rows, 1)?)?;
    Ok(values.chunks(case.probes.len()).map(<[f32]>::to_vec).collect())
}

fn check(case: &Case, prompt: &Prompt) -> Result<Result<(), String>> {
    let model = case.model()?;
    let embedded = model.prompt(&prompt.input())?;
    let length = embedded.length();
    // A prompt in which all see each other has no steps that continue it.
    let last = embedded.spans.last().map_or(0, |span| span.end);
    for (prefilled, chunk) in [(length, length), (length, 5), (last.max(length - 4), length)] {
        let rows = rows(case, &model, &embedded, prefilled, chunk)?;
        let expected = Expected { rows: &prompt.logprobs, from: 0, tolerance: TOLERANCE };
        if let Err(failure) = expected.compare(&rows) {
            return Ok(Err(format!("{prefilled} in chunks of {chunk}: {failure}")));
        }
    }
    Ok(Ok(()))
}

#[test]
fn pictures_give_the_numbers_of_the_reference() {
    let only = std::env::var("MYNAH_FAMILY").unwrap_or_default();
    let mut failures = Vec::new();
    for (family, fixture) in Fixture::all().into_iter().filter(|(name, _)| name.contains(&only)) {
        for case in fixture.cases {
            for (i, prompt) in case.prompts.clone().into_iter().enumerate() {
                let label = format!("{family}, {}, prompt {i}", case.name);
                let case = case.clone();
                match on_engine(move || check(&case, &prompt)) {
                    Ok(Ok(())) => {}
                    Ok(Err(failure)) => failures.push(format!("{label}: {failure}")),
                    Err(error) => failures.push(format!("{label}: {error}")),
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn fewer_or_more_pictures_than_placeholders_are_an_error() {
    let seeing = Fixture::all().into_iter().filter_map(|(family, fixture)| {
        let case = fixture.cases.into_iter().find(|case| !case.prompts.is_empty())?;
        Some((family, case))
    });
    for (family, case) in seeing {
        let errors = on_engine(move || {
            let model = case.model()?;
            let mut fewer = case.prompts[1].input();
            fewer.media.pop();
            let mut more = case.prompts[0].input();
            more.media.push(more.media[0].clone());
            Ok([fewer, more].map(|input| model.prompt(&input).err()))
        });
        for error in errors.unwrap() {
            assert!(matches!(error, Some(Error::Placeholders { .. })), "{family}: {error:?}");
        }
    }
}
