//! Sequences that decode together give the numbers of those that decode alone, and a verify pass
//! gives those of single steps, whatever of it is taken back.

use mlx_rs::{Array, Dtype, transforms::eval};
use mynah::{
    Bound, CachePlan, Result,
    internals::{Cache, DecodeStep, LanguageModel, mlx, prefill},
};
use mynah_tests::{Case, Fixture, on_engine};
use serde_json::Value as Json;
use std::rc::Rc;

/// Absolute, on log-probabilities.
const TOLERANCE: f32 = 1e-4;
/// The same where keys are rounded to a few bits: the last bit of a product depends on the number of
/// rows that are multiplied at once, and a key on the border between two levels falls to either side.
const TOLERANCE_OF_LEVELS: f32 = 0.1;
const ROWS: usize = 5;
/// Decode steps of a batch.
const STEPS: usize = 12;

type Model = Rc<dyn LanguageModel>;

/// Log-probabilities of all tokens after each position of one row.
type Logprobs = Vec<Vec<f32>>;

/// Log-probabilities of each row and position of logits `[batch, length, vocabulary]`.
fn logprobs(logits: &Array) -> Result<Vec<Logprobs>> {
    let logits = logits.as_dtype(Dtype::Float32)?;
    let values: Vec<f32> = mlx::to_vec(&logits.subtract(logits.logsumexp_axis(-1, true)?)?)?;
    let (length, vocabulary) = (logits.dim(1) as usize, logits.dim(2) as usize);
    let row = |row: &[f32]| row.chunks(vocabulary).map(<[f32]>::to_vec).collect();
    Ok(values.chunks(length * vocabulary).map(row).collect())
}

/// Tokens that a model never gives have no probability at all.
fn apart((a, b): (&f32, &f32)) -> f32 {
    if a == b { 0.0 } else { (a - b).abs() }
}

fn compare(
    what: &str,
    found: &[Vec<f32>],
    expected: &[Vec<f32>],
    tolerance: f32,
) -> Result<(), String> {
    if found.len() != expected.len() {
        return Err(format!("{what}: {} positions instead of {}", found.len(), expected.len()));
    }
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let distances = found.iter().zip(expected).map(apart);
        let worst =
            distances.fold(0.0, |worst: f32, d| if d > worst || d.is_nan() { d } else { worst });
        if worst > tolerance || worst.is_nan() || found.len() != expected.len() {
            return Err(format!("{what}: {worst} apart at position {i}"));
        }
    }
    Ok(())
}

fn text(error: mynah::Error) -> String {
    error.to_string()
}

fn ids(rows: &[&[u32]]) -> Array {
    Array::from_slice(&rows.concat(), &[rows.len() as i32, rows[0].len() as i32])
}

fn settle(cache: &mut Cache) -> Result<()> {
    Ok(eval(cache.arrays().into_iter().map(|array| &*array))?)
}

/// A model, and how the caches of its sequences are kept.
struct Subject {
    model: Model,
    plan: CachePlan,
    step: DecodeStep,
    /// Whether a prefill of everything gives the same numbers as single steps.
    whole: bool,
    tolerance: f32,
}

impl Subject {
    fn new(case: &Case, plan: &CachePlan) -> Result<Self> {
        // Keys that a model rounds to a few bits depend on the last bit before.
        let rounds = case.config["model_type"] == "deepseek_v41";
        let whole = case.steps.is_none() && !rounds && *plan == CachePlan::default();
        let has_levels = rounds || plan.quantization.is_some();
        let tolerance = if has_levels { TOLERANCE_OF_LEVELS } else { TOLERANCE };
        let (model, plan) = (case.model()?, *plan);
        Ok(Subject { model, plan, step: DecodeStep::default(), whole, tolerance })
    }

    /// A cache of these tokens.
    fn prefilled(&self, tokens: &[u32]) -> Result<Cache> {
        let mut cache = self.model.cache(&self.plan);
        prefill(&*self.model, &ids(&[tokens]), &mut cache)?;
        settle(&mut cache)?;
        Ok(cache)
    }

    /// One step over a token of each row.
    fn decode(&mut self, tokens: &[u32], cache: &mut Cache) -> Result<Logprobs> {
        let each: Vec<&[u32]> = tokens.chunks(1).collect();
        let found = logprobs(&self.step.run(&self.model, &ids(&each), cache)?)?;
        settle(cache)?;
        Ok(found.into_iter().flatten().collect())
    }

    /// What one sequence alone gives after each position from `start` on.
    fn alone(&mut self, tokens: &[u32], start: usize) -> Result<Logprobs> {
        if self.whole {
            let mut cache = self.model.cache(&self.plan);
            let hidden = prefill(&*self.model, &ids(&[tokens]), &mut cache)?;
            let rows = logprobs(&self.model.logits(&hidden)?)?;
            return Ok(rows.concat().split_off(start));
        }
        let mut cache = self.prefilled(&tokens[..start])?;
        let steps = tokens[start..].iter().map(|token| self.decode(&[*token], &mut cache));
        Ok(steps.collect::<Result<Vec<_>>>()?.concat())
    }
}

/// A sequence, of which the first `start` tokens are prefilled.
struct Row {
    tokens: Vec<u32>,
    start: usize,
    found: Logprobs,
}

/// Rows of different tokens and lengths; `earliest` tokens at least are prefilled.
fn rows(case: &Case, earliest: usize, count: usize) -> Vec<Row> {
    let most = case.tokens.len() - STEPS - 1;
    let least = earliest.max(3).min(most - ROWS);
    let row = |i: usize| {
        let mut tokens = case.tokens.clone();
        tokens.rotate_left(i * 5 % case.tokens.len());
        let start = least + (most - least) * (i % ROWS) / (ROWS - 1);
        tokens.truncate(start + STEPS + 1);
        Row { tokens, start, found: Vec::new() }
    };
    (0..count).map(row).collect()
}

fn batch_of(
    batch: &[usize],
    rows: &mut [Row],
    subject: &mut Subject,
    cache: &mut Cache,
) -> Result<()> {
    let next = |row: &usize| rows[*row].tokens[rows[*row].start + rows[*row].found.len()];
    let tokens: Vec<u32> = batch.iter().map(next).collect();
    let found = subject.decode(&tokens, cache)?;
    batch.iter().zip(found).for_each(|(row, found)| rows[*row].found.push(found));
    Ok(())
}

/// Five rows decode together; in the middle one leaves and another enters.
fn check_rows(case: &Case, plan: &CachePlan, earliest: usize) -> Result<Result<(), String>> {
    let mut subject = Subject::new(case, plan)?;
    let mut rows = rows(case, earliest, ROWS + 1);
    let cache = |row: &Row| subject.prefilled(&row.tokens[..row.start]);
    let mut caches: Vec<Cache> = rows.iter().map(cache).collect::<Result<_>>()?;
    let late = caches.pop().expect("there is one more");
    let mut together = Cache::join(caches)?;
    let mut batch: Vec<usize> = (0..ROWS).collect();
    for _ in 0..STEPS / 2 {
        batch_of(&batch, &mut rows, &mut subject, &mut together)?;
    }
    let mut alone = together.part(2)?;
    let mut together = Cache::join(vec![together.select(&[0, 1, 3, 4])?, late])?;
    batch.remove(2);
    batch.push(ROWS);
    for _ in 0..STEPS / 2 {
        batch_of(&batch, &mut rows, &mut subject, &mut together)?;
        batch_of(&[2], &mut rows, &mut subject, &mut alone)?;
    }
    for (place, row) in batch.iter().enumerate().step_by(2) {
        batch_of(&[*row], &mut rows, &mut subject, &mut together.part(place)?)?;
    }
    // Single steps take their time; the row that leaves and the one that enters are among these.
    let checked: &[usize] = if subject.whole { &[0, 1, 2, 3, 4, 5] } else { &[0, 2, 5] };
    for i in checked {
        let row = &rows[*i];
        let end = row.start + row.found.len();
        let expected = subject.alone(&row.tokens[..end], row.start)?;
        let what = format!("row {i} from {} with {plan:?}", row.start);
        if let Err(difference) = compare(&what, &row.found, &expected, subject.tolerance) {
            return Ok(Err(difference));
        }
    }
    Ok(Ok(()))
}

/// A speculating sequence: what it gives must be what single steps give.
struct Draft<'a> {
    subject: &'a mut Subject,
    tokens: &'a [u32],
    expected: &'a [Vec<f32>],
    cache: Cache,
}

impl Draft<'_> {
    /// Verifies `length` tokens of which the first `accepted` are those of the sequence, keeps these,
    /// and goes on with a single step.
    fn round(&mut self, length: usize, accepted: usize) -> Result<Result<(), String>> {
        let at = self.cache.offset as usize;
        let mut drafted = self.tokens[at..at + accepted].to_vec();
        drafted.extend(self.tokens.iter().rev().skip(at % 7).take(length - accepted));
        let Subject { model, step, .. } = &mut *self.subject;
        let logits = step.verify(model, &ids(&[&drafted]), &mut self.cache)?;
        let found = logprobs(&logits)?.concat();
        self.cache.accept(accepted as i32)?;
        settle(&mut self.cache)?;
        assert_eq!(self.cache.offset as usize, at + accepted);
        let what = format!("{accepted} of {length} at {at} with {:?}", self.subject.plan);
        let expected = &self.expected[at..at + accepted];
        if let Err(difference) =
            compare(&what, &found[..accepted], expected, self.subject.tolerance)
        {
            return Ok(Err(difference));
        }
        let (next, after) = (at + accepted, format!("{what}, the step after"));
        let found = self.subject.decode(&self.tokens[next..=next], &mut self.cache)?;
        let expected = &self.expected[next..=next];
        Ok(compare(&after, &found, expected, self.subject.tolerance))
    }
}

/// Rounds of drafted and accepted tokens, and how many tokens they need.
const SHORT: [(usize, usize); 9] =
    [(1, 0), (5, 4), (2, 1), (5, 0), (1, 1), (2, 2), (5, 1), (2, 0), (5, 5)];
const LONG: [(usize, usize); 3] = [(16, 0), (16, 15), (16, 1)];
const ALL: [(usize, usize); 1] = [(16, 16)];

fn check_verify(case: &Case, plan: &CachePlan, first: usize) -> Result<Result<(), String>> {
    let mut subject = Subject::new(case, plan)?;
    let mut expected = subject.alone(&case.tokens, first)?;
    expected.splice(0..0, vec![Vec::new(); first]);
    for rounds in [&SHORT[..], &LONG, &ALL] {
        let needed: usize = rounds.iter().map(|(_, accepted)| accepted + 1).sum();
        let start = (case.tokens.len() - needed).max(first);
        if start + needed > case.tokens.len() {
            continue;
        }
        let cache = match subject.whole {
            true => subject.prefilled(&case.tokens[..start])?,
            false => {
                let mut cache = subject.prefilled(&case.tokens[..first])?;
                for token in &case.tokens[first..start] {
                    subject.decode(&[*token], &mut cache)?;
                }
                cache
            }
        };
        let (tokens, expected) = (&case.tokens[..], &expected[..]);
        let mut draft = Draft { subject: &mut subject, tokens, expected, cache };
        for (length, accepted) in rounds {
            if let Err(difference) = draft.round(*length, *accepted)? {
                return Ok(Err(difference));
            }
        }
    }
    Ok(Ok(()))
}

/// Each row of a batch keeps as many tokens as fit it.
fn check_verify_rows(case: &Case, plan: &CachePlan, earliest: usize) -> Result<Result<(), String>> {
    let mut subject = Subject::new(case, plan)?;
    let mut rows = rows(case, earliest, 3);
    let cache = |row: &Row| subject.prefilled(&row.tokens[..row.start]);
    let mut together = Cache::join(rows.iter().map(cache).collect::<Result<_>>()?)?;
    for counts in [[0, 3, 5], [4, 1, 0]] {
        let drafted: Vec<&[u32]> = rows
            .iter()
            .map(|row| row.start + row.found.len())
            .zip(&rows)
            .map(|(at, row)| &row.tokens[at..at + 5])
            .collect();
        let logits = subject.step.verify(&subject.model, &ids(&drafted), &mut together)?;
        let found = logprobs(&logits)?;
        together.accept_rows(&counts)?;
        settle(&mut together)?;
        for ((row, found), count) in rows.iter_mut().zip(found).zip(counts) {
            row.found.extend(found.into_iter().take(count as usize));
        }
        batch_of(&[0, 1, 2], &mut rows, &mut subject, &mut together)?;
    }
    for (i, row) in rows.iter().enumerate() {
        let end = row.start + row.found.len();
        let expected = subject.alone(&row.tokens[..end], row.start)?;
        let what = format!("row {i} from {} with {plan:?}", row.start);
        if let Err(difference) = compare(&what, &row.found, &expected, subject.tolerance) {
            return Ok(Err(difference));
        }
    }
    Ok(Ok(()))
}

type Check = fn(&Case, &CachePlan, usize) -> Result<Result<(), String>>;

/// Runs a check on the engine's thread, for those of the families that the environment asks for,
/// with the plans that `plans` gives each case, and how many tokens they must have prefilled; it
/// gets the first case of the family too, where there is one before.
fn check_all(plans: impl Fn(&Case, Option<&Case>) -> Vec<(CachePlan, usize)>, check: Check) {
    let mut failures = Vec::new();
    let only = std::env::var("MYNAH_FAMILY").unwrap_or_default();
    for (family, fixture) in Fixture::all().into_iter().filter(|(name, _)| name.contains(&only)) {
        let first = fixture.cases[0].clone();
        for (i, case) in fixture.cases.into_iter().enumerate() {
            let label = format!("{family}, {}", case.name);
            for (plan, earliest) in plans(&case, (i > 0).then_some(&first)) {
                let case = case.clone();
                let outcome = on_engine(move || check(&case, &plan, earliest)).map_err(text);
                if let Err(failure) = outcome.and_then(|outcome| outcome) {
                    failures.push(format!("{label}: {failure}"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// The plain cache.
fn plain() -> (CachePlan, usize) {
    (CachePlan::default(), 3)
}

/// Whether keys are visible in another way than in the first case of the family, or a step gives
/// other numbers than a prefill. Other cases differ in their weights, in the names and formats of
/// these, or in constants.
fn attends_otherwise(case: &Case, first: &Case) -> bool {
    const WORDS: [&str; 10] = [
        "window",
        "sliding",
        "swa",
        "chunk",
        "index",
        "layer_types",
        "pattern",
        "compress",
        "loops",
        "no_rope",
    ];
    let fields = |case: &Case| -> Vec<(String, Json)> {
        let config = case.config.get("text_config").unwrap_or(&case.config);
        let own = |(name, _): &(&String, &Json)| WORDS.iter().any(|word| name.contains(word));
        let fields = config.as_object().into_iter().flatten().filter(own);
        fields.map(|(name, value)| (name.clone(), value.clone())).collect()
    };
    case.steps.is_some() || fields(case) != fields(first)
}

/// One of each kind of the quantized and bounded caches of a case, and a bounded one.
fn kept(case: &Case) -> Vec<(CachePlan, usize)> {
    let kind = |(plan, start): &(CachePlan, usize)| {
        (plan.quantization.is_some(), plan.bound.is_some(), *start > 0)
    };
    let mut plans: Vec<(CachePlan, usize)> = Vec::new();
    for plan in case.caches.iter().map(|kept| (kept.plan(), kept.start)) {
        if plans.iter().all(|known| kind(known) != kind(&plan)) {
            plans.push(plan);
        }
    }
    if !plans.is_empty() && plans.iter().all(|(plan, _)| plan.bound.is_none()) {
        let mut bounded = CachePlan::default();
        bounded.bound = Some(Bound::new(12, 4).unwrap());
        plans.push((bounded, 3));
    }
    plans
}

#[test]
fn rows_give_the_numbers_of_single_sequences() {
    check_all(
        |case, first| match first {
            Some(first) if case.is_half() || !attends_otherwise(case, first) => vec![],
            _ => vec![plain()],
        },
        check_rows,
    );
}

#[test]
fn rows_of_bounded_and_quantized_caches_too() {
    check_all(|case, _| if case.is_half() { vec![] } else { kept(case) }, check_rows);
}

#[test]
fn a_verify_pass_gives_the_numbers_of_single_steps() {
    check_all(
        |case, first| match first {
            Some(_) if case.is_half() || case.steps.is_none() => vec![],
            _ => vec![plain()],
        },
        check_verify,
    );
}

/// Also where the cache becomes quantized within a pass.
#[test]
fn a_verify_pass_of_bounded_and_quantized_caches_too() {
    let plans = |case: &Case| kept(case).into_iter().map(|(plan, _)| (plan, 3)).collect();
    check_all(|case, _| if case.is_half() { vec![] } else { plans(case) }, check_verify);
}

#[test]
fn each_row_keeps_its_own_number_of_tokens() {
    let asked =
        ["llama", "gemma3_text", "lfm2", "mamba2", "deepseek_v41", "baichuan_m1", "qwen3_5_text"];
    let named = |case: &Case| asked.iter().any(|family| case.config["model_type"] == *family);
    check_all(
        |case, first| match first {
            _ if case.is_half() || !named(case) => vec![],
            None => vec![plain()],
            Some(_) if case.steps.is_some() => vec![plain()],
            Some(_) => kept(case),
        },
        check_verify_rows,
    );
}
