//! Every family gives the reference's numbers, however a sequence is cut into steps, from every
//! layout of its checkpoints.

use crate::pictures;
use mlx_rs::{Array, Dtype, ops, transforms::eval};
use mynah::{
    Bound, CachePlan, Error, Files, Result,
    internals::{Cache, DecodeStep, Kind, LanguageModel, Scope, families, mlx, prefill},
};
use mynah_tests::{Case, Fixture, kind_of, on_engine};
use std::{
    collections::{HashMap, HashSet},
    rc::Rc,
};

/// Absolute, on log-probabilities.
pub const TOLERANCE: f32 = 1e-4;
/// In half precision, where the expected numbers are those of the same weights in float32: of the
/// reference's own distance from these. Another order of operations rounds as much, but otherwise.
const SPREADS: f32 = 2.0;

/// How far log-probabilities of a case may be from the reference's.
fn tolerance(case: &Case) -> f32 {
    if !case.is_half() {
        return TOLERANCE;
    }
    (SPREADS * spread(case)).max(TOLERANCE)
}

fn spread(case: &Case) -> f32 {
    case.spread.expect("a case in half precision has one: run `python scripts/fixtures --spread`")
}

pub fn build(scope: &Scope) -> Result<Rc<dyn LanguageModel>> {
    let model = families::build(scope)?;
    scope.finish(|_| {})?;
    Ok(model)
}

pub fn empty(model: &Rc<dyn LanguageModel>) -> Cache {
    model.cache(&CachePlan::default())
}

pub fn ids(tokens: &[u32]) -> Array {
    Array::from_slice(tokens, &[1, tokens.len() as i32])
}

/// Log-probabilities `[1, length, probes]` of the probes after each position of logits
/// `[1, length, vocabulary]`.
pub fn probe(case: &Case, logits: &Array) -> Result<Array> {
    let logits = logits.as_dtype(Dtype::Float32)?;
    let logprobs = logits.subtract(logits.logsumexp_axis(-1, true)?)?;
    let probes = Array::from_slice(&case.probes, &[case.probes.len() as i32]);
    Ok(logprobs.take_axis(probes, -1)?)
}

/// A model with its compiled decode step, which is traced once for all sequences.
pub struct Stepped {
    pub model: Rc<dyn LanguageModel>,
    pub step: DecodeStep,
}

impl Stepped {
    pub fn new(model: Rc<dyn LanguageModel>) -> Stepped {
        Stepped { model, step: DecodeStep::default() }
    }
}

/// Computes `tokens` in prefill chunks of these lengths, then token by token.
pub fn run(
    case: &Case,
    model: &mut Stepped,
    cache: &mut Cache,
    tokens: &[u32],
    chunks: &[usize],
) -> Result<Vec<Vec<f32>>> {
    let Stepped { model, step } = model;
    let (mut rows, mut at) = (Vec::new(), 0);
    for &length in chunks {
        let end = tokens.len().min(at + length);
        let hidden = prefill(&**model, &ids(&tokens[at..end]), cache)?;
        rows.push(probe(case, &model.logits(&hidden)?)?);
        at = end;
    }
    for token in &tokens[at..] {
        rows.push(probe(case, &step.run(model, &ids(&[*token]), cache)?)?);
    }
    // Computed at once: to wait for each step takes longer than the step.
    let values: Vec<f32> = mlx::to_vec(&ops::concatenate(&rows, 1)?)?;
    eval(cache.arrays().into_iter().map(|array| &*array))?;
    Ok(values.chunks(case.probes.len()).map(<[f32]>::to_vec).collect())
}

/// Rows that are expected from a position on, and how near.
pub struct Expected<'a> {
    pub rows: &'a [Vec<f32>],
    pub from: usize,
    pub tolerance: f32,
}

impl Expected<'_> {
    /// Compares the rows of every position.
    pub fn compare(&self, rows: &[Vec<f32>]) -> Result<(), String> {
        if rows.len() != self.rows.len() {
            return Err(format!("{} rows, not {}", rows.len(), self.rows.len()));
        }
        (self.from..).zip(rows.iter().zip(self.rows)).try_for_each(|(position, (row, expected))| {
            compare_row(row, expected, self.tolerance)
                .map_err(|failure| format!("{failure} at position {position}"))
        })
    }
}

fn compare_row(row: &[f32], expected: &[f32], tolerance: f32) -> Result<(), String> {
    if row.len() != expected.len() {
        return Err(format!("{} numbers instead of {}", row.len(), expected.len()));
    }
    row.iter().zip(expected).try_for_each(|(found, expected)| {
        let distance = (found - expected).abs();
        if distance > tolerance || distance.is_nan() {
            return Err(format!("{found} instead of {expected}"));
        }
        Ok(())
    })
}

fn compare(case: &Case, what: &str, rows: &[Vec<f32>], expected: &Expected) -> Result<(), String> {
    let Expected { rows: expected, from, tolerance } = *expected;
    let length = case.tokens.len();
    if from + rows.len() != length || expected.len() != length.div_ceil(case.every) {
        return Err(format!(
            "{what}: {} rows from position {from} on and {} expected ones for {length} tokens",
            rows.len(),
            expected.len()
        ));
    }
    let given = (from..).zip(rows).filter(|(position, _)| position.is_multiple_of(case.every));
    let far = given.filter_map(|(position, row)| {
        let failure = compare_row(row, &expected[position / case.every], tolerance).err()?;
        Some(format!("{what}: {failure} at position {position}"))
    });
    // In half precision a router may choose another expert where two have nearly the same score.
    let other_experts = case.is_half() && case.config.to_string().contains("experts");
    let excused = if other_experts { rows.len().div_ceil(10 * case.every) } else { 0 };
    far.into_iter().nth(excused).map_or(Ok(()), Err)
}

fn check(case: &Case) -> Result<(), String> {
    let text = |error: mynah::Error| error.to_string();
    let tolerance = tolerance(case);
    let folder = tempfile::tempdir().unwrap();
    case.write(folder.path()).map_err(text)?;
    let scope = Scope::open(&Files::from(folder.path()), &case.config).map_err(text)?;
    let model = build(&case.with_lora(scope).map_err(text)?).map_err(text)?;
    let mut model = Stepped::new(model);
    let length = case.tokens.len();
    let stepwise = case.steps.as_ref().unwrap_or(&case.logprobs);
    let mut schedules =
        vec![("prefill", vec![length], &case.logprobs), ("steps", vec![1], stepwise)];
    if case.steps.is_none() {
        schedules.push(("chunks", std::iter::repeat_n(5, length.div_ceil(5)).collect(), stepwise));
        schedules.push(("uneven chunks, then steps", vec![1, 9, 2, 4], stepwise));
    }
    for (what, chunks, expected) in schedules {
        let mut cache = empty(&model.model);
        let rows = run(case, &mut model, &mut cache, &case.tokens, &chunks).map_err(text)?;
        compare(case, what, &rows, &Expected { rows: expected, from: 0, tolerance })?;
        let before = cache.offset;
        if case.steps.is_none() && cache.rewind(3) {
            let rest = &case.tokens[length - 3..];
            let rows = run(case, &mut model, &mut cache, rest, &[]).map_err(text)?;
            let expected = Expected { rows: stepwise, from: length - 3, tolerance };
            compare(case, &format!("{what}, rewound"), &rows, &expected)?;
        } else if cache.offset != before {
            return Err(format!("{what}: a cache that cannot rewind has moved"));
        }
    }
    Ok(())
}

/// Runs a check on the engine's thread for those of these cases that the environment asks for.
fn check_all(
    cases: impl Fn(Vec<Case>) -> Vec<Case>,
    check: impl Fn(&Case) -> Result<(), String> + Copy + Send + 'static,
) {
    check_each(Fixture::all(), cases, check);
}

/// As [`check_all`], for the cases of these fixtures.
pub fn check_each(
    fixtures: Vec<(String, Fixture)>,
    cases: impl Fn(Vec<Case>) -> Vec<Case>,
    check: impl Fn(&Case) -> Result<(), String> + Copy + Send + 'static,
) {
    let mut failures = Vec::new();
    let only = std::env::var("MYNAH_FAMILY").unwrap_or_default();
    for (family, fixture) in fixtures.into_iter().filter(|(name, _)| name.contains(&only)) {
        for case in cases(fixture.cases) {
            let label = format!("{family}, {}", case.name);
            match on_engine(move || Ok(check(&case))) {
                Ok(Ok(())) => {}
                Ok(Err(failure)) => failures.push(format!("{label}: {failure}")),
                Err(error) => failures.push(format!("{label}: {error}")),
            }
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn every_family_gives_the_numbers_of_the_reference() {
    check_all(|cases| cases, check);
}

/// The other tests compute without fused kernels on Linux. Applications have them, so one family is
/// compared with them too: this is the one test that waits for MLX's C++ compiler, once a machine.
#[test]
fn fused_kernels_give_the_numbers_of_the_reference() {
    let (_, llama) = Fixture::all().into_iter().find(|(family, _)| family == "llama").unwrap();
    for name in ["default", "bf16"] {
        let case = llama.cases.iter().find(|case| case.name == name).unwrap().clone();
        let checked = on_engine(move || {
            mlx::set_fusing(true);
            let checked = check(&case);
            mlx::set_fusing(!cfg!(target_os = "linux"));
            Ok(checked)
        });
        assert_eq!(checked.unwrap(), Ok(()), "{name}");
    }
}

/// The lengths of pieces that end at `cuts`.
fn pieces(cuts: &[usize]) -> Vec<usize> {
    let starts = std::iter::once(&0).chain(cuts);
    starts.zip(cuts).map(|(start, end)| end - start).collect()
}

fn check_kept(case: &Case) -> Result<(), String> {
    let text = |error: mynah::Error| error.to_string();
    let mut model = Stepped::new(case.model().map_err(text)?);
    for kept in &case.caches {
        let mut schedules = vec![if kept.cuts.is_empty() { vec![1] } else { pieces(&kept.cuts) }];
        // What is rounded away depends on the cuts, in the reference too; a bound alone does not.
        if kept.plan().quantization.is_none() {
            schedules.extend([vec![5; 7], vec![3], vec![30], vec![1, 13, 2, 9]]);
        }
        for chunks in schedules {
            let what = format!("{:?} in pieces of {chunks:?}", kept.plan());
            let mut cache = model.model.cache(&kept.plan());
            let rows = run(case, &mut model, &mut cache, &case.tokens, &chunks).map_err(text)?;
            let tolerance = tolerance(case);
            compare(case, &what, &rows, &Expected { rows: &kept.logprobs, from: 0, tolerance })?;
        }
    }
    Ok(())
}

#[test]
fn bounded_and_quantized_caches_give_the_numbers_of_the_reference() {
    check_all(
        |cases| cases.into_iter().filter(|case| !case.caches.is_empty()).collect(),
        check_kept,
    );
}

/// Logits of `tokens`, which come one by one after what a cache holds.
fn decode(
    step: &mut DecodeStep,
    model: &Rc<dyn LanguageModel>,
    cache: &mut Cache,
    tokens: &[u32],
) -> Result<Vec<u32>> {
    let mut bits = Vec::new();
    for token in tokens {
        let logits = step.run(model, &ids(&[*token]), cache)?;
        bits.extend(mlx::to_vec::<f32>(&logits)?.into_iter().map(f32::to_bits));
        eval(cache.arrays().into_iter().map(|array| &*array))?;
    }
    Ok(bits)
}

/// Whoever comes back to a place goes on from there as if nothing had happened since. What has been
/// quantized since stays so, hence nothing is tried before `earliest`.
fn check_places(case: &Case, plan: &CachePlan, earliest: usize) -> Result<Option<String>> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cache.safetensors");
    let model = case.model()?;
    let mut step = DecodeStep::default();
    let note = HashMap::from([("note".to_string(), "kept".to_string())]);
    let other: Vec<u32> = case.tokens.iter().rev().copied().collect();
    // Before a window is full, and after it has turned.
    for place in [earliest.max(4), 22] {
        let (before, after) = (&case.tokens[..place], &case.tokens[place..place + 3]);
        let mut cache = model.cache(plan);
        let beginning = cache.checkpoint();
        prefill(&*model, &ids(&before[..place - 1]), &mut cache)?;
        decode(&mut step, &model, &mut cache, &before[place - 1..])?;
        let here = cache.checkpoint();
        let mut fork = cache.fork();
        cache.save(&file, "this model", &note)?;
        let expected = decode(&mut step, &model, &mut cache.fork(), after)?;

        decode(&mut step, &model, &mut cache, &other[..8])?;
        let mut found = vec![("fork", decode(&mut step, &model, &mut fork, after)?)];
        for again in ["restored", "restored again"] {
            assert!(cache.restore(&here)?);
            assert_eq!(cache.offset as usize, place);
            found.push((again, decode(&mut step, &model, &mut cache, after)?));
        }
        if cache.rewind(after.len() as i32) {
            found.push(("rewound", decode(&mut step, &model, &mut cache, after)?));
        } else {
            assert!(here.bytes() > 0, "what cannot rewind has something to keep");
        }
        let (mut loaded, metadata) = Cache::load(&file, &*model, "this model")?;
        assert_eq!(metadata, note);
        found.push(("loaded", decode(&mut step, &model, &mut loaded, after)?));
        for (i, from_nothing) in ["emptied", "rewound to nothing"].into_iter().enumerate() {
            assert!(if i == 0 { cache.restore(&beginning)? } else { cache.rewind(cache.offset) });
            prefill(&*model, &ids(&before[..place - 1]), &mut cache)?;
            decode(&mut step, &model, &mut cache, &before[place - 1..])?;
            found.push((from_nothing, decode(&mut step, &model, &mut cache, after)?));
        }
        for (how, bits) in found {
            if bits != expected {
                return Ok(Some(format!("{how} at {place} with {plan:?}")));
            }
        }
    }
    Ok(None)
}

#[test]
fn a_place_is_found_again_bit_for_bit() {
    check_all(
        |cases| {
            let kept = |(i, case): &(usize, Case)| *i == 0 || !case.caches.is_empty();
            cases.into_iter().enumerate().filter(kept).map(|(_, case)| case).collect()
        },
        |case| {
            let plans = match &case.caches[..] {
                [] => vec![(CachePlan::default(), 0), (bounded(), 0)],
                kept => kept.iter().map(|kept| (kept.plan(), kept.start)).collect(),
            };
            for (plan, earliest) in plans {
                let failure = check_places(case, &plan, earliest);
                failure.map_err(|error| error.to_string())?.map_or(Ok(()), Err)?;
            }
            Ok(())
        },
    );
}

fn bounded() -> CachePlan {
    let mut plan = CachePlan::default();
    plan.bound = Some(Bound::new(12, 4).unwrap());
    plan
}

/// MLX multiplies dense experts on the CPU in single precision only, and ends the process otherwise;
/// so does the reference, whose numbers are those of its float32 run and whose spread is that of products
/// in float32 that are rounded afterwards.
#[test]
fn dense_experts_in_half_precision() {
    for (family, fixture) in Fixture::all().into_iter().filter(|(name, _)| name == "qwen3_moe") {
        let case = fixture.cases.into_iter().next().unwrap().in_bfloat16();
        let limit = SPREADS * spread(&case);
        let moved = on_engine(move || {
            let model = case.model()?;
            let mut cache = empty(&model);
            let chunks = [case.tokens.len() / 2];
            let rows = run(&case, &mut Stepped::new(model), &mut cache, &case.tokens, &chunks)?;
            let rows = rows.iter().step_by(case.every);
            assert_eq!(rows.len(), case.logprobs.len());
            let pairs = rows.flatten().zip(case.logprobs.iter().flatten());
            Ok(pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max))
        });
        let moved = moved.unwrap();
        assert!(moved <= limit, "{family}: {moved}, more than {limit}");
    }
}

#[test]
fn every_family_has_a_fixture() {
    let fixtures = Fixture::all();
    let cases = fixtures.iter().flat_map(|(_, fixture)| &fixture.cases);
    let types = cases.filter_map(|case| case.config["model_type"].as_str());
    let names = fixtures.iter().map(|(name, _)| &**name);
    let types: HashSet<_> = types.chain(names).collect();
    let speech = crate::speech::names();
    for family in families::all() {
        let name = family.model_types[0];
        let has_one = match family.build.kind() {
            Kind::Language => family.model_types.iter().any(|name| types.contains(name)),
            Kind::Transcriber => speech.iter().any(|case| case.starts_with(name)),
            // Those of other audio models have a test of their own.
            _ => true,
        };
        assert!(has_one, "{name}");
    }
}

/// A tensor that changes nothing is read and forgotten.
#[test]
fn every_tensor_matters() {
    for (family, fixture) in Fixture::all() {
        let case = fixture.cases.into_iter().next().unwrap();
        let dull = on_engine(move || {
            let tensors = case.checkpoint()?;
            let forward = |tensors: HashMap<String, Array>| {
                let model = build(&case.scope(tensors)?)?;
                let mut cache = empty(&model);
                let chunks = [case.tokens.len()];
                let mut stepped = Stepped::new(model.clone());
                let mut rows = run(&case, &mut stepped, &mut cache, &case.tokens, &chunks)?;
                for prompt in &case.prompts {
                    let prompt = model.prompt(&prompt.input())?;
                    let length = prompt.length();
                    rows.extend(pictures::rows(&case, &model, &prompt, length, length)?);
                }
                Ok::<_, Error>(rows)
            };
            let whole = forward(tensors.clone())?;
            let (mut dull, mut kinds) = (Vec::new(), HashMap::new());
            let mut names: Vec<&String> = tensors.keys().collect();
            names.sort();
            for name in names.into_iter().filter(|name| !case.insensitive.contains(*name)) {
                // Two layers or experts of a kind stand for the others.
                let known = kinds.entry(kind_of(name)).or_insert(0);
                *known += 1;
                if *known > 2 {
                    continue;
                }
                let mut changed = tensors.clone();
                let zeros =
                    tensors[name].multiply(Array::from_int(0).as_dtype(tensors[name].dtype())?)?;
                changed.insert(name.clone(), zeros);
                let rows = match forward(changed) {
                    // Zeros are no signs: the reader looks at the values.
                    Err(Error::Quantization { .. }) if name.ends_with(".signs") => continue,
                    rows => rows?,
                };
                let moved = rows
                    .iter()
                    .flatten()
                    .zip(whole.iter().flatten())
                    .map(|(a, b)| (a - b).abs())
                    .fold(0.0, f32::max);
                if moved < 100.0 * TOLERANCE {
                    dull.push(format!("{name} moves {moved}"));
                }
            }
            Ok(dull)
        });
        assert_eq!(dull.unwrap(), Vec::<String>::new(), "{family}");
    }
}
