//! One thread computes for everybody: in turns, no further than asked, and leaving nothing behind.

use mlx_rs::{Array, memory, random, transforms::eval};
use mynah::{
    CachePlan, Canceller, Engine, Error, Event, FinishReason, GenerateOptions, Generation, Model,
    Prompt, Result, SessionOptions, Summary,
    internals::{LanguageModel, Scope, Step, families, mlx, prefill},
    set_memory_limit,
};
use mynah_tests::{BUSY, Fixture, block_on, on_engine};
use serde_json::json;
use std::{
    collections::HashMap,
    fs,
    path::Path,
    rc::Rc,
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};
use tempfile::TempDir;

/// Events that wait for a reader, as the library has it.
const BUFFERED: usize = 32;

fn assert_shared<T: Send + Sync>() {}
fn assert_sent<T: Send>() {}

#[test]
fn handles_may_go_to_any_thread() {
    assert_shared::<Model>();
    assert_shared::<Canceller>();
    assert_shared::<Engine>();
    assert_sent::<Generation>();
    assert_sent::<mynah::Error>();
}

/// The first case of a family with room for so many positions.
fn write(family: &str, context: usize) -> TempDir {
    let (_, fixture) = Fixture::all().into_iter().find(|(name, _)| name == family).unwrap();
    let mut case = fixture.cases[0].clone();
    case.config["max_position_embeddings"] = json!(context);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_path_buf();
    on_engine(move || case.write(&path)).unwrap();
    folder
}

fn load(folder: &Path) -> Model {
    block_on(Model::load(folder)).unwrap()
}

/// A model that tests share.
fn llama() -> &'static Model {
    static MODEL: OnceLock<(TempDir, Model)> = OnceLock::new();
    let init = || {
        let folder = write("llama", 1024);
        let model = load(folder.path());
        (folder, model)
    };
    &MODEL.get_or_init(init).1
}

/// Options under which only the number of tokens ends a text.
fn options(max_tokens: usize) -> GenerateOptions {
    GenerateOptions::default().max_tokens(max_tokens).ignore_end(true)
}

fn start(model: &Model, prompt: &[u32], options: &GenerateOptions) -> Generation {
    model.generate(Prompt::Tokens(prompt.to_vec()), options).unwrap()
}

fn next(stream: &mut Generation) -> Option<Event> {
    block_on(stream.next()).transpose().unwrap()
}

/// What is left of a stream: how often the prompt went on, the tokens, and the end.
fn rest(stream: &mut Generation) -> (usize, Vec<u32>, Summary) {
    let (mut prefills, mut tokens) = (0, Vec::new());
    loop {
        match next(stream).expect("the end comes before nothing") {
            Event::Prefill { .. } => prefills += 1,
            Event::Token(token) => tokens.push(token.id),
            Event::Finished(summary) => {
                assert_eq!(next(stream), None);
                return (prefills, tokens, summary);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_is_there_is_taken_at_once() {
    let _busy = BUSY.read().unwrap();
    let expected = rest(&mut start(llama(), &[1, 2, 3], &options(100))).1;
    let mut stream = start(llama(), &[1, 2, 3], &options(100));
    turns(2 * BUFFERED);
    assert!(stream.ready(0).is_empty());
    assert_eq!(stream.ready(5).len(), 5);
    // Before anybody could compute more.
    assert!(stream.ready(usize::MAX).len() >= BUFFERED - 5);
    let (mut tokens, mut is_over) = (Vec::new(), false);
    let mut stream = start(llama(), &[1, 2, 3], &options(100));
    while !is_over {
        for event in stream.ready(7) {
            match event.unwrap() {
                Event::Token(token) => tokens.push(token.id),
                Event::Finished(_) => is_over = true,
                _ => {}
            }
        }
    }
    assert_eq!(tokens, expected);
    assert!(stream.ready(7).is_empty());

    let folder = write("llama", 1024);
    let model = load(folder.path());
    let mut stream = start(&model, &[1, 2, 3], &options(100));
    turns(2 * BUFFERED);
    block_on(model.unload()).unwrap();
    assert_eq!(stream.ready(BUFFERED).iter().filter(|event| event.is_ok()).count(), BUFFERED);
    assert!(matches!(block_on(stream.next()), Some(Err(Error::Unloaded))));
    assert!(stream.ready(7).is_empty());
}

fn generate(model: &Model, prompt: &[u32], options: &GenerateOptions) -> Vec<u32> {
    rest(&mut start(model, prompt, options)).1
}

/// Waits until every generation has had so many turns, by having one more.
fn turns(count: usize) {
    generate(llama(), &[1], &options(count));
    on_engine(|| Ok(())).unwrap();
}

#[test]
fn many_threads_get_what_each_would_get_alone() {
    let _busy = BUSY.read().unwrap();
    let other = write("qwen3", 1024);
    let other = load(other.path());
    let work: Vec<(Model, Vec<u32>)> = (0..8u32)
        .map(|i| {
            let model = if i % 2 == 0 { llama() } else { &other };
            (model.clone(), (1..=3 + i).map(|n| n * 7 % 90).collect())
        })
        .collect();
    let alone: Vec<_> = work.iter().map(|(m, prompt)| generate(m, prompt, &options(40))).collect();
    assert!(alone.iter().all(|tokens| tokens.len() == 40));
    let together: Vec<_> = thread::scope(|scope| {
        let mut threads = Vec::new();
        for (model, prompt) in &work {
            threads.push(scope.spawn(move || generate(model, prompt, &options(40))));
        }
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(alone, together);
}

#[test]
fn generations_take_turns() {
    let _busy = BUSY.read().unwrap();
    // Neither can end before somebody reads it.
    let streams = [1, 2].map(|token| start(llama(), &[token], &options(2 * BUFFERED)));
    let log = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for (i, mut stream) in streams.into_iter().enumerate() {
            let log = &log;
            scope.spawn(move || {
                while let Some(event) = next(&mut stream) {
                    log.lock().unwrap().push((i, matches!(event, Event::Finished(_))));
                }
            });
        }
    });
    let log = log.into_inner().unwrap();
    let first_end = log.iter().position(|(_, finished)| *finished).unwrap();
    for i in 0..2 {
        let before = log[..first_end].iter().filter(|(who, _)| *who == i).count();
        assert!(before > BUFFERED / 2, "{i} had {before} events when the first one ended");
    }
}

/// A queue of jobs that is never empty leaves a generation its turns.
#[test]
fn jobs_and_generations_take_turns() {
    let _busy = BUSY.read().unwrap();
    let (done, mut jobs_before_it) = (AtomicBool::new(false), 0);
    thread::scope(|scope| {
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(scope.spawn(|| {
                let mut jobs = 0;
                while !done.load(Ordering::Acquire) && jobs < 200 {
                    block_on(llama().score(Prompt::Tokens(vec![1; 32]), 0)).unwrap();
                    jobs += 1;
                }
                jobs
            }));
        }
        generate(llama(), &[1], &options(20));
        done.store(true, Ordering::Release);
        jobs_before_it = clients.into_iter().map(|client| client.join().unwrap()).sum();
    });
    assert!(jobs_before_it < 200, "{jobs_before_it} jobs came before 20 tokens");
}

#[test]
fn nobody_reads_and_the_device_stops() {
    let _busy = BUSY.read().unwrap();
    let mut stream = start(llama(), &[1], &options(1_000_000));
    turns(3 * BUFFERED);
    stream.cancel();
    turns(2);
    let (prefills, tokens, summary) = rest(&mut stream);
    assert_eq!((prefills, tokens.len()), (1, BUFFERED - 1));
    assert_eq!(summary.generated_tokens, tokens.len());
    assert_eq!(summary.finish_reason, FinishReason::Cancelled);
}

#[test]
fn a_slow_reader_misses_nothing() {
    let _busy = BUSY.read().unwrap();
    let expected = generate(llama(), &[5], &options(100));
    let mut stream = start(llama(), &[5], &options(100));
    turns(2 * BUFFERED);
    assert_eq!(rest(&mut stream).1, expected);
}

#[test]
fn a_cancellation_takes_effect_within_a_step() {
    let _busy = BUSY.read().unwrap();
    let prompt = [3; 400];
    let slowly = options(10).prefill_chunk(1);
    // In the middle of the prompt.
    let mut stream = start(llama(), &prompt, &slowly);
    turns(3 * BUFFERED);
    stream.canceller().cancel();
    let (prefills, tokens, summary) = rest(&mut stream);
    assert_eq!((prefills, tokens.len()), (BUFFERED, 0));
    assert_eq!(summary.finish_reason, FinishReason::Cancelled);
    assert_eq!((summary.prompt_tokens, summary.generated_tokens), (400, 0));
    // Before anything.
    let mut stream = start(llama(), &prompt, &slowly);
    stream.cancel();
    let (prefills, _, summary) = rest(&mut stream);
    assert!(prefills <= 2, "{prefills}");
    assert_eq!(summary.finish_reason, FinishReason::Cancelled);
    // In the middle of a text.
    let mut stream = start(llama(), &[1], &options(1_000_000));
    for _ in 0..5 {
        next(&mut stream);
    }
    stream.cancel();
    let (_, tokens, summary) = rest(&mut stream);
    assert!(tokens.len() <= BUFFERED + 1, "{}", tokens.len());
    assert_eq!(summary.generated_tokens, tokens.len() + 4);
    // After the end, and twice.
    let mut stream = start(llama(), &[1], &options(1));
    rest(&mut stream);
    stream.cancel();
    stream.canceller().cancel();
    assert_eq!(next(&mut stream), None);
}

#[test]
fn seeds_repeat() {
    let _busy = BUSY.read().unwrap();
    let draw = |seed| {
        let options = options(24).temperature(1.5).seed(seed);
        generate(llama(), &[1, 2, 3], &options)
    };
    assert_eq!(draw(Some(1)), draw(Some(1)));
    assert_ne!(draw(Some(1)), draw(Some(2)));
    assert_ne!(draw(None), draw(None));
}

#[test]
fn the_shortest_requests() {
    let _busy = BUSY.read().unwrap();
    let (prefills, tokens, summary) = rest(&mut start(llama(), &[1, 2], &options(0)));
    assert_eq!((prefills, tokens.len(), summary.generated_tokens), (1, 0, 0));
    assert_eq!(summary.finish_reason, FinishReason::Length);
    let (prefills, tokens, summary) = rest(&mut start(llama(), &[1], &options(1)));
    assert_eq!((prefills, tokens.len(), summary.generated_tokens), (1, 1, 1));
    assert_eq!(summary.finish_reason, FinishReason::Length);
    let first = tokens[0];
    let stops = options(5).end_tokens(vec![first]);
    let (_, tokens, summary) = rest(&mut start(llama(), &[1], &stops));
    assert_eq!((tokens.len(), summary.generated_tokens), (0, 0));
    assert_eq!(summary.finish_reason, FinishReason::Stop);
    let (tokens, score) = block_on(llama().score(Prompt::Tokens(vec![1]), 1)).unwrap();
    assert_eq!((tokens, score.logprobs), (vec![1], vec![None]));
    assert_eq!(score.top[0][0].0, first);
}

/// Token by token through caches that grow gives what one pass over the whole text gives.
#[test]
fn long_texts_are_the_likeliest() {
    let _busy = BUSY.read().unwrap();
    let families =
        ["llama", "gemma3_text", "gemma4_text", "gpt_oss", "lfm2", "mamba2", "olmo_hybrid"];
    for family in families {
        let folder = write(family, 1024);
        let model = load(folder.path());
        let prompt: Vec<u32> = (0..60).map(|n| n * 31 % 96).collect();
        let chunked = options(500).prefill_chunk(25);
        let tokens = generate(&model, &prompt, &chunked);
        assert_eq!(tokens.len(), 500);
        let whole = [&prompt[..], &tokens].concat();
        let (_, score) = block_on(model.score(Prompt::Tokens(whole.clone()), 1)).unwrap();
        for (position, token) in whole.iter().enumerate().skip(prompt.len()) {
            let (best, likeliest) = score.top[position - 1][0];
            let logprob = score.logprobs[position].unwrap();
            let close = *token == best || likeliest - logprob < 1e-4;
            assert!(close, "{family}, position {position}: {logprob}, and {best} {likeliest}");
        }
    }
}

/// Writes a model of about 40 MB of random weights.
fn write_large(folder: &Path) -> usize {
    let (width, inner, vocabulary, layers) = (512, 1024, 4096, 4);
    let config = json!({
        "model_type": "llama", "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": 8, "num_key_value_heads": 4,
        "vocab_size": vocabulary, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_string(), vec![vocabulary, width]),
        ("model.norm.weight".to_string(), vec![width]),
    ];
    for layer in 0..layers {
        let mut add = |name: &str, shape: &[i32]| {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        };
        add("input_layernorm", &[width]);
        add("post_attention_layernorm", &[width]);
        add("self_attn.q_proj", &[width, width]);
        add("self_attn.k_proj", &[width / 2, width]);
        add("self_attn.v_proj", &[width / 2, width]);
        add("self_attn.o_proj", &[width, width]);
        add("mlp.gate_proj", &[inner, width]);
        add("mlp.up_proj", &[inner, width]);
        add("mlp.down_proj", &[width, inner]);
    }
    let file = folder.join("model.safetensors");
    on_engine(move || {
        let mut tensors = HashMap::new();
        for (name, shape) in shapes {
            tensors.insert(name, random::normal::<f32>(&shape, 0.0, 0.05, None)?);
        }
        eval(tensors.values())?;
        Array::save_safetensors(&tensors, None, file).unwrap();
        Ok(tensors.values().map(Array::nbytes).sum())
    })
    .unwrap()
}

/// The bytes that arrays hold, once everything that was asked for is done.
fn active() -> usize {
    on_engine(|| Ok(memory::active_memory()?)).unwrap()
}

#[test]
fn the_last_handle_frees_the_memory() {
    let _alone = BUSY.write().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let size = write_large(folder.path());
    assert!(size > 30 << 20);
    // Nothing of a model that was freed may hide what another one takes.
    let slack = size / 50;
    llama();
    let before = active();
    let model = load(folder.path());
    let loaded = active();
    assert!((size..size + slack).contains(&(loaded - before)), "{} for {size}", loaded - before);

    let clone = model.clone();
    drop(model);
    assert_eq!(active(), loaded);
    generate(&clone, &[1, 2, 3], &options(4));
    assert!(active() < loaded + slack, "a generation leaves {}", active() - loaded);
    // A generation that is not over keeps its model.
    let mut stream = start(&clone, &[1], &options(40));
    drop(clone);
    turns(2);
    assert!(active() >= loaded);
    assert_eq!(rest(&mut stream).1.len(), 40);
    assert!(active() < before + slack, "{} stay", active() - before);

    // One that nobody wants any more does not, wherever it is.
    for taken in [0, 1, 2, 5] {
        let model = load(folder.path());
        let slowly = options(1_000_000).prefill_chunk(1);
        let mut stream = start(&model, &[1, 2, 3], &slowly);
        for _ in 0..taken {
            next(&mut stream);
        }
        drop(model);
        drop(stream);
        turns(2);
        assert!(active() < before + slack, "{} stay after {taken}", active() - before);
    }

    // Nor does one that nobody reads.
    let model = load(folder.path());
    let stream = start(&model, &[1], &options(1_000_000));
    turns(2 * BUFFERED);
    drop((model, stream));
    turns(2);
    assert!(active() < before + slack);

    // A model that fails to load leaves nothing.
    fs::write(folder.path().join("tokenizer.json"), "{").unwrap();
    assert!(block_on(Model::load(folder.path())).is_err());
    assert!(active() < before + slack);
}

/// A limit that ends with the test, however it ends.
struct Limit;

impl Limit {
    fn of(bytes: usize) -> Self {
        set_memory_limit(Some(bytes)).unwrap();
        Limit
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        set_memory_limit(None).unwrap();
    }
}

#[test]
fn what_does_not_fit_the_limit_is_refused_and_the_rest_goes_on() {
    let _alone = BUSY.write().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let size = write_large(folder.path());
    llama();
    turns(2);
    let before = active();
    let refused = {
        let _limit = Limit::of(before + size / 2);
        let refused = block_on(Model::load(folder.path())).err();
        assert_eq!(generate(llama(), &[1, 2], &options(3)).len(), 3);
        refused
    };
    match refused {
        Some(Error::MemoryLimit { needed, limit, .. }) => {
            assert!((size..size + size / 50).contains(&needed) && limit == before + size / 2);
        }
        other => panic!("{other:?}"),
    }
    assert!(active() < before + size / 50, "a refused model leaves nothing");

    let model = load(folder.path());
    // The keys and values of 300 positions take more than 2 MB, those of 100 less.
    let _limit = Limit::of(active() + (2 << 20));
    let long = start(&model, &[1; 300], &options(1));
    let refused = |mut stream: Generation| loop {
        match block_on(stream.next()) {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Some(error),
            None => return None,
        }
    };
    assert!(matches!(refused(long), Some(Error::MemoryLimit { .. })));
    assert!(refused(start(&model, &[1; 10], &options(1))).is_none());
}

/// Bytes of this process that are in memory.
#[cfg(target_os = "linux")]
fn resident() -> usize {
    // What was dropped is given back on the engine's thread.
    turns(1);
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[cfg(target_os = "linux")]
#[test]
fn the_memory_of_a_model_goes_back_to_the_system() {
    let _alone = BUSY.write().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let size = write_large(folder.path());
    let mut rounds = Vec::new();
    for _ in 0..4 {
        let before = resident();
        let model = load(folder.path());
        generate(&model, &[1; 40], &options(20));
        let loaded = resident();
        drop(model);
        let after = resident();
        rounds.push((before, loaded, after));
    }
    // The first round makes what the process keeps.
    for (before, loaded, after) in &rounds[1..] {
        assert!(*loaded > before + size * 9 / 10, "{rounds:?}");
        assert!(*after < before + size / 10, "{rounds:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_thousand_generations_and_a_hundred_models_leave_nothing_behind() {
    let _alone = BUSY.write().unwrap();
    let demo = || block_on(Model::load(mynah::DEMO)).unwrap();
    let model = demo();
    let mut after = Vec::new();
    for _ in 0..11 {
        for i in 0..100 {
            let prompt: Vec<u32> = (1..=1 + i % 40).collect();
            generate(&model, &prompt, &options(3));
            if i % 10 == 0 {
                drop(demo());
            }
        }
        after.push((active(), threads(), resident()));
    }
    // The first hundred fill what is kept for the life of the process.
    let [_, first, .., last] = after[..] else { panic!("{after:?}") };
    assert_eq!((first.0, first.1), (last.0, last.1), "{after:?}");
    assert!(last.2 < first.2 + (4 << 20), "{after:?}");
}

/// What else may change: constants of compiled steps, allocations that are larger than asked.
const SLACK: usize = 32 << 10;

/// What a session holds, beyond the model, once it has read a long text.
fn held(model: &Model, options: SessionOptions) -> usize {
    let before = active();
    let session = model.session(options);
    let prompt = Prompt::Tokens((0..3000).map(|n| n * 31 % 96).collect());
    rest(&mut session.generate(prompt, &self::options(1)).unwrap());
    let held = active() - before;
    drop(session);
    assert!(active() < before + SLACK);
    held
}

#[test]
fn a_session_holds_what_it_may_and_is_freed_with_its_last_handle() {
    let _alone = BUSY.write().unwrap();
    for family in ["lfm2", "mamba2", "gemma3_text"] {
        let folder = write(family, 8192);
        let model = load(folder.path());
        let (plain, few) = (SessionOptions::default(), 30_000);
        let nowhere = held(&model, plain.checkpoint_bytes(0));
        let bounded = held(&model, plain.checkpoint_bytes(few));
        assert!(bounded <= nowhere + few + SLACK, "{family}: {nowhere}, {bounded}");
    }
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

#[test]
fn fifty_models_leave_nothing_behind() {
    let _alone = BUSY.write().unwrap();
    llama();
    let folder = write("llama", 1024);
    let mut after = Vec::new();
    for i in 0..50 {
        let model = load(folder.path());
        assert_eq!(generate(&model, &[1, 2, 3], &options(3)).len(), 3);
        block_on(model.score(Prompt::Tokens(vec![1, 2, 3]), 1)).unwrap();
        if i % 5 == 0 {
            let options = options(1000);
            drop(start(&model, &[1], &options));
        }
        drop(model);
        turns(2);
        after.push((active(), threads()));
    }
    // The first rounds fill what is kept for the life of the process.
    let (first, last) = (after[9], after[49]);
    assert_eq!(first, last, "{after:?}");
}

/// How many operations a decode step of the first case of a family has. On the engine's thread.
fn step_nodes(family: &str) -> Result<usize> {
    let (_, fixture) = Fixture::all().into_iter().find(|(name, _)| name == family).unwrap();
    let case = &fixture.cases[0];
    let scope = Scope::new(case.checkpoint()?, &case.config)?;
    let model: Rc<dyn LanguageModel> = families::build(&scope)?;
    scope.finish(|_| {})?;
    let mut cache = model.cache(&CachePlan::default());
    prefill(&*model, &Array::from_slice(&[1u32, 2, 3], &[1, 3]), &mut cache)?;
    cache.reserve(cache.offset + 1)?;
    eval(cache.arrays().into_iter().map(|array| &*array))?;
    let step = Step::decode(Array::from_slice(&[cache.offset], &[1]));
    let embedded = model.embed(&Array::from_slice(&[4u32], &[1, 1]))?;
    let hidden = model.forward(&embedded, &mut cache, &step)?;
    let mut outputs = vec![model.logits(&hidden)?];
    outputs.extend(cache.arrays().into_iter().map(|array| array.clone()));
    mlx::node_count(&outputs)
}

/// Every operation of a step costs the host time, whatever the device does with it. More of them
/// are a regression; far fewer deserve a new number here.
#[test]
fn a_decode_step_has_no_more_operations_than_it_had() {
    let _busy = BUSY.read().unwrap();
    let recorded = [
        ("llama", 277),
        ("qwen3", 321),
        ("mamba2", 176),
        ("qwen3_moe", 360),
        ("deepseek_v3", 636),
        ("gemma3_text", 585),
    ];
    let counted = recorded.map(|(family, _)| on_engine(move || step_nodes(family)).unwrap());
    let fits =
        |(nodes, (_, most)): (&usize, &(_, usize))| *nodes <= *most && nodes * 10 >= most * 9;
    assert!(counted.iter().zip(&recorded).all(fits), "{counted:?}, recorded {recorded:?}");
}

#[test]
fn the_next_logits_are_those_that_scores_come_from() {
    let _busy = BUSY.read().unwrap();
    let prompt: Vec<u32> = (0..600).map(|i| i * 7 % 90).collect();
    let logits = block_on(llama().next_logits(Prompt::Tokens(prompt.clone()))).unwrap();
    assert_eq!(logits.len(), llama().info().vocabulary as usize);
    let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
    let (_, score) = block_on(llama().score(Prompt::Tokens(prompt), logits.len())).unwrap();
    for (id, logprob) in score.top.last().unwrap() {
        let own = f64::from(logits[*id as usize]) - sum.ln();
        assert!((own - f64::from(*logprob)).abs() < 1e-4, "{id}: {own} and {logprob}");
    }
}
