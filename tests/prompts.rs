//! Prompts of more than ids, on existing text families: embedded ahead, with rotary positions of
//! their own, with spans that see each other both ways, and with media in the keys of prefix reuse.

use mlx_rs::{Array, ops, transforms::eval};
use mynah::{
    CachePlan, CacheQuantization, Result,
    internals::{
        Cache, DecodeStep, Embedded, EnginePrompt, Input, LanguageModel, Media, MediaRange,
        PrefixCache, PromptPositions, Slot, Wrapper, mlx, prefill, prefill_embedded,
    },
};
use mynah_tests::{Case, Fixture, on_engine};
use std::{collections::HashMap, ops::Range, rc::Rc, sync::Arc};

/// Absolute, on hidden states after the last norm and on logits: passes of other lengths add in
/// another order.
const TOLERANCE: f32 = 1e-4;

fn first(family: &str) -> Case {
    let (_, fixture) = Fixture::all().into_iter().find(|(name, _)| name == family).unwrap();
    fixture.cases.into_iter().next().unwrap()
}

/// Words that mean nothing.
fn words(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| 3 + (i * i * 7 + i * 13) % 90).collect()
}

fn ids(tokens: &[u32]) -> Array {
    Array::from_slice(tokens, &[1, tokens.len() as i32])
}

fn input(tokens: &[u32]) -> Input {
    Input { tokens: tokens.to_vec(), media: Vec::new() }
}

fn compute(cache: &mut Cache) -> Result<()> {
    Ok(eval(cache.arrays().into_iter().map(|array| &*array))?)
}

/// Hidden states of a whole prompt that is computed in chunks of at most `chunk`.
fn chunked(
    model: &dyn LanguageModel,
    prompt: &Embedded,
    cache: &mut Cache,
    chunk: usize,
) -> Result<Vec<f32>> {
    let (mut hidden, mut at) = (Vec::new(), cache.offset as usize);
    while at < prompt.length() {
        let end = prompt.border(at, prompt.length().min(at.saturating_add(chunk)));
        let part = prefill_embedded(model, &prompt.slice(at, end)?, cache)?;
        hidden.extend(mlx::to_vec::<f32>(&part.as_dtype(mlx_rs::Dtype::Float32)?)?);
        compute(cache)?;
        at = end;
    }
    Ok(hidden)
}

/// Logits after each of `tokens`, one compiled step a token.
fn steps(model: &Rc<dyn LanguageModel>, tokens: &[u32], cache: &mut Cache) -> Result<Vec<f32>> {
    let (mut decode, mut logits) = (DecodeStep::default(), Vec::new());
    for token in tokens {
        let row = decode.run(model, &ids(&[*token]), cache)?;
        logits.extend(mlx::to_vec::<f32>(&row.as_dtype(mlx_rs::Dtype::Float32)?)?);
    }
    Ok(logits)
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn an_embedded_prompt_equals_ids() {
    on_engine(|| {
        for (family, fixture) in Fixture::all() {
            let case = &fixture.cases[0];
            if case.is_half() {
                continue;
            }
            let (model, tokens) = (case.model()?, &case.tokens[..case.tokens.len().min(24)]);
            let prompt = model.prompt(&input(tokens))?;
            assert_eq!(prompt.tokens()?, tokens, "{family}");
            let mut cache = model.cache(&CachePlan::default());
            let whole = prefill(&*model, &ids(tokens), &mut cache)?;
            let whole = mlx::to_vec::<f32>(&whole.as_dtype(mlx_rs::Dtype::Float32)?)?;
            let mut other = model.cache(&CachePlan::default());
            assert_eq!(chunked(&*model, &prompt, &mut other, usize::MAX)?, whole, "{family}");

            // Slices equal chunks that are embedded one by one.
            let (mut by_ids, mut by_slices) =
                (model.cache(&CachePlan::default()), model.cache(&CachePlan::default()));
            let mut expected = Vec::new();
            for chunk in tokens.chunks(7) {
                let part = prefill(&*model, &ids(chunk), &mut by_ids)?;
                expected.extend(mlx::to_vec::<f32>(&part.as_dtype(mlx_rs::Dtype::Float32)?)?);
                compute(&mut by_ids)?;
            }
            let found = chunked(&*model, &prompt, &mut by_slices, 7)?;
            assert_eq!(found, expected, "{family}");
        }
        Ok(())
    })
    .unwrap();
}

/// `prompt` with positions of its own: the same on three axes, `shift` further than in the sequence.
fn shifted(prompt: &Embedded, shift: i32) -> Result<Embedded> {
    let length = prompt.length() as i32;
    let positions = ops::arange::<_, i32>(shift, shift + length, None)?.reshape(&[1, 1, length])?;
    let positions = ops::broadcast_to(&positions, &[3, 1, length])?;
    let rotary = Some(PromptPositions { positions, delta: shift });
    Ok(Embedded { rotary, ..prompt.clone() })
}

#[test]
fn positions_on_equal_axes_are_those_of_plain_rope() {
    on_engine(|| {
        for family in ["llama", "qwen3", "gemma3_text", "glm4", "telechat3"] {
            let model = first(family).model()?;
            let (tokens, continued) = (words(20), words(5));
            let prompt = model.prompt(&input(&tokens))?;
            let mut cache = model.cache(&CachePlan::default());
            let expected = chunked(&*model, &prompt, &mut cache, usize::MAX)?;
            let expected_steps = steps(&model, &continued, &mut cache)?;
            // Attention sees only how far apart positions are.
            for shift in [0, 7] {
                for chunk in [usize::MAX, 6] {
                    let mut cache = model.cache(&CachePlan::default());
                    let shifted = shifted(&prompt, shift)?;
                    let found = chunked(&*model, &shifted, &mut cache, chunk)?;
                    let far = distance(&found, &expected);
                    assert!(far < TOLERANCE, "{family}: {far}");
                    let far = distance(&steps(&model, &continued, &mut cache)?, &expected_steps);
                    assert!(far < TOLERANCE, "{family}: {far}");
                }
            }
            // A delta that is wrong shows.
            let mut cache = model.cache(&CachePlan::default());
            let mut wrong = shifted(&prompt, 7)?;
            wrong.rotary.as_mut().expect("it has positions").delta = 0;
            chunked(&*model, &wrong, &mut cache, usize::MAX)?;
            let far = distance(&steps(&model, &continued, &mut cache)?, &expected_steps);
            assert!(far > 20.0 * TOLERANCE, "{family}: {far}");
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_rotary_delta_is_saved_forked_and_forgotten() {
    on_engine(|| {
        let model = first("llama").model()?;
        let (tokens, continued) = (words(20), words(4));
        let prompt = shifted(&model.prompt(&input(&tokens))?, 7)?;
        let mut cache = model.cache(&CachePlan::default());
        chunked(&*model, &prompt, &mut cache, usize::MAX)?;
        let checkpoint = cache.checkpoint();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache.safetensors");
        cache.save(&path, "model", &HashMap::new())?;
        let (mut loaded, _) = Cache::load(&path, &*model, "model")?;
        let mut fork = cache.fork();
        let expected = steps(&model, &continued, &mut cache)?;
        assert_eq!(steps(&model, &continued, &mut loaded)?, expected);
        assert_eq!(steps(&model, &continued, &mut fork)?, expected);
        assert!(fork.rewind(4));
        assert_eq!(steps(&model, &continued, &mut fork)?, expected);
        assert!(fork.restore(&checkpoint)?);
        assert_eq!(steps(&model, &continued, &mut fork)?, expected);

        // Another prompt from the start has none.
        assert!(fork.rewind(24));
        let mut fresh = model.cache(&CachePlan::default());
        for cache in [&mut fork, &mut fresh] {
            prefill(&*model, &ids(&tokens), cache)?;
            compute(cache)?;
        }
        assert_eq!(steps(&model, &continued, &mut fork)?, steps(&model, &continued, &mut fresh)?);
        Ok(())
    })
    .unwrap();
}

#[test]
fn rows_with_rotary_deltas_of_their_own_decode_together() {
    on_engine(|| {
        for family in ["llama", "gemma3_text"] {
            let model = first(family).model()?;
            let continued = words(4);
            let (mut caches, mut alone, mut expected) = (Vec::new(), Vec::new(), Vec::new());
            // The second row has no rotary positions of its own.
            for (length, shift) in [(20, 7), (9, 0), (14, -3)] {
                let mut prompt = model.prompt(&input(&words(length)))?;
                if shift != 0 {
                    prompt = shifted(&prompt, 7)?;
                    prompt.rotary.as_mut().expect("it has positions").delta = shift;
                }
                let mut cache = model.cache(&CachePlan::default());
                chunked(&*model, &prompt, &mut cache, usize::MAX)?;
                caches.push(cache.fork());
                expected.push(steps(&model, &continued, &mut cache)?);
                alone.push(cache);
            }
            let mut batch = Cache::join(caches)?;
            let (mut decode, mut rows) = (DecodeStep::default(), vec![Vec::new(); 3]);
            for (at, token) in continued.iter().enumerate() {
                let ids = Array::from_slice(&[*token; 3], &[3, 1]);
                // The last two tokens are one verify pass.
                if at == 2 {
                    let pair = [continued[2], continued[3]];
                    let ids = Array::from_slice(&[pair, pair, pair].concat(), &[3, 2]);
                    let logits = decode.verify(&model, &ids, &mut batch)?;
                    batch.accept(2)?;
                    for (row, found) in (0..).zip(&mut rows) {
                        let logits = mlx::slice(&logits, 0, row, row + 1)?;
                        found.extend(mlx::to_vec::<f32>(&logits)?);
                    }
                    break;
                }
                let logits = decode.run(&model, &ids, &mut batch)?;
                for (row, found) in (0..).zip(&mut rows) {
                    let logits = mlx::slice(&logits, 0, row, row + 1)?;
                    found.extend(mlx::to_vec::<f32>(&logits)?);
                }
            }
            for (row, expected) in rows.iter().zip(&expected) {
                let far = distance(row, expected);
                assert!(far < TOLERANCE, "{family}: {far}");
            }
            // A row that leaves the batch goes on with its delta.
            for (row, alone) in alone.iter_mut().enumerate() {
                let found = steps(&model, &continued, &mut batch.part(row)?)?;
                let far = distance(&found, &steps(&model, &continued, alone)?);
                assert!(far < TOLERANCE, "{family}: {far}");
            }
        }
        Ok(())
    })
    .unwrap();
}

fn with_spans(prompt: &Embedded, spans: &[Range<usize>]) -> Embedded {
    Embedded { spans: spans.to_vec(), ..prompt.clone() }
}

#[test]
fn chunks_equal_the_whole_with_spans() {
    on_engine(|| {
        let mut quantized = CachePlan::default();
        quantized.quantization = Some(CacheQuantization::new(8, 32, 0)?);
        let (_, fixture) =
            Fixture::all().into_iter().find(|(name, _)| name == "gemma3_text").unwrap();
        let caches = fixture.cases.into_iter().find(|case| case.name == "caches").unwrap();
        let plain = CachePlan::default();
        for (case, plan) in [
            (first("llama"), plain),
            (first("gemma3_text"), plain),
            (first("gpt2"), plain),
            (caches, quantized),
        ] {
            let model = case.model()?;
            let (tokens, continued) = (words(40), words(5));
            let prompt = model.prompt(&input(&tokens))?;
            let prompt = with_spans(&prompt, &[3..9, 12..33]);
            // What is quantized is so after the first pass, which must be the same.
            let begun = || {
                let mut cache = model.cache(&plan);
                if plan != plain {
                    prefill_embedded(&*model, &prompt.slice(0, 2)?, &mut cache)?;
                }
                Ok::<_, mynah::Error>(cache)
            };
            let mut cache = begun()?;
            let expected = chunked(&*model, &prompt, &mut cache, usize::MAX)?;
            let expected_steps = steps(&model, &continued, &mut cache)?;
            for chunk in [1, 4, 10, 15, 34] {
                let mut cache = begun()?;
                let found = chunked(&*model, &prompt, &mut cache, chunk)?;
                let far = distance(&found, &expected);
                assert!(far < TOLERANCE, "{}, {chunk}: {far}", case.name);
                let far = distance(&steps(&model, &continued, &mut cache)?, &expected_steps);
                assert!(far < TOLERANCE, "{}, {chunk}: {far}", case.name);
            }
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_token_sees_the_whole_span_that_it_is_in_and_no_other_future() {
    on_engine(|| {
        // The window of one of these is shorter than the span.
        for family in ["llama", "gemma3_text"] {
            let model = first(family).model()?;
            let mut tokens = words(40);
            let width = model.embed(&ids(&[1]))?.hidden.dim(2) as usize;
            let mut hidden = |spans: &[Range<usize>], last: u32| {
                tokens[34] = last;
                let prompt = model.prompt(&input(&tokens))?;
                let prompt = with_spans(&prompt, spans);
                let mut cache = model.cache(&CachePlan::default());
                chunked(&*model, &prompt, &mut cache, usize::MAX)
            };
            for (span, seen) in [(5..35, 5..35), (5..34, 34..35), (34..40, 34..40)] {
                let spans = [span.clone()];
                let (one, other) = (hidden(&spans, 4)?, hidden(&spans, 50)?);
                for position in 0..35 {
                    let part = position * width..(position + 1) * width;
                    let far = distance(&one[part.clone()], &other[part]);
                    let sees = seen.contains(&position);
                    assert_eq!(far > 1e-6, sees, "{family}, {span:?}: {far} at {position}");
                }
            }
        }
        Ok(())
    })
    .unwrap();
}

/// The id that stands for a picture.
const PICTURE: u32 = 2;

/// A model of text whose prompts may have pictures, each of one position, which change nothing: only
/// their keys tell prompts from each other.
struct Pictured(Rc<dyn LanguageModel>);

impl Wrapper for Pictured {
    fn inner(&self) -> &dyn LanguageModel {
        &*self.0
    }

    fn prompt(&self, input: &Input) -> Result<Embedded> {
        let places = input.tokens.iter().enumerate().filter(|(_, id)| **id == PICTURE);
        let range = |((at, _), media): ((usize, _), &Media)| MediaRange {
            range: at..at + 1,
            hash: media.hash,
        };
        let media = places.zip(&input.media).map(range).collect();
        Ok(Embedded { media, ..self.0.embed(&ids(&input.tokens))? })
    }
}

fn pictures(hashes: &[u64]) -> Vec<Media> {
    hashes.iter().map(|hash| Media::new(*hash, HashMap::new())).collect()
}

#[test]
fn prompts_with_equal_ids_and_other_media_share_no_prefix() {
    on_engine(|| {
        for family in ["llama", "gemma3_text", "lfm2", "mamba2"] {
            let model: Rc<dyn LanguageModel> = Rc::new(Pictured(first(family).model()?));
            let empty = || PrefixCache::new(model.clone(), CachePlan::default(), 1 << 20);
            let slot = Slot::lasting(empty(), Arc::default());
            let tokens = [&words(30)[..], &[PICTURE], &words(20), &[PICTURE], &words(9)].concat();
            let length = tokens.len();
            let run = |slot: &Slot, others: &[Rc<Slot>], hashes: &[u64]| {
                let prompt = EnginePrompt::new(&*model, tokens.clone(), &pictures(hashes))?;
                let reused = slot.resume(others, &prompt, length)?;
                let mut prefix = slot.prefix_cache.borrow_mut();
                for (from, to) in [(reused, length - 1), (length - 1, length)] {
                    if from < to {
                        let chunk = prompt.chunk(&*model, from, to)?;
                        prefill_embedded(&*model, &chunk, &mut prefix.cache)?;
                        compute(&mut prefix.cache)?;
                        prefix.keys.extend(&prompt.keys[from..to]);
                    }
                }
                Ok::<_, mynah::Error>(reused)
            };
            let can_rewind = model.cache(&CachePlan::default()).rewinds();
            let some = |reused| if can_rewind { reused } else { 0 };
            assert_eq!(run(&slot, &[], &[1, 2])?, 0, "{family}");
            let again = run(&slot, &[], &[1, 2])?;
            assert!(again == some(length - 1), "{family}: {again}");
            // Only what comes before the picture that differs.
            for (hashes, most) in [([1, 3], 51), ([4, 3], 30), ([3, 4], 30), ([1, 2], 30)] {
                let reused = run(&slot, &[], &hashes)?;
                assert!(reused <= most && reused >= some(most), "{family}: {reused}");
            }
            // Nor does another session copy one.
            let other = Slot::lasting(empty(), Arc::default());
            let reused = run(&other, std::slice::from_ref(&slot), &[9, 2])?;
            assert!(reused <= 30, "{family}: {reused}");

            // Nor does a file hide one.
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("session.safetensors");
            slot.prefix_cache.borrow_mut().save(&path, "model")?;
            for (hashes, most) in [([1, 2], length - 1), ([1, 8], 51), ([8, 2], 30)] {
                let mut restored = empty();
                restored.restore(&path, "model")?;
                let prompt = EnginePrompt::new(&*model, tokens.clone(), &pictures(&hashes))?;
                assert_eq!(restored.shared(&prompt), most, "{family}");
            }
        }
        Ok(())
    })
    .unwrap();
}
