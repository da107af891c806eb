//! A session computes what is new and nothing else, and answers as if it had computed everything.

use mlx_rs::Array;
use mynah::{
    Bound, Error, Event, FinishReason, GenerateOptions, Generation, Message, Model, ModelMemory,
    Overflow, Prompt, Session, SessionOptions, Speculation, Summary, TemplateOptions, inspect,
};
use mynah_tests::{Fixture, block_on, on_engine};
use serde_json::{Value as Json, json};
use std::{
    collections::BTreeMap,
    env, fs,
    path::Path,
    process::Command,
    slice,
    sync::{Mutex, OnceLock},
    thread,
};
use tempfile::TempDir;

/// One of each kind: positions, windows, convolutions, recurrences.
const FAMILIES: [&str; 4] = ["llama", "gemma3_text", "lfm2", "mamba2"];

/// Absolute, on log-probabilities: passes of other lengths add in another order.
const TOLERANCE: f32 = 1e-4;

/// The context of all models but those without one.
const CONTEXT: usize = 1024;

/// A model of the first case of a family. It reads and writes words, and its template ends each
/// message with one.
struct Fixed {
    model: Model,
    _folder: TempDir,
}

fn write(family: &str, edit: impl FnOnce(&mut Json)) -> TempDir {
    let (_, fixture) = Fixture::all().into_iter().find(|(name, _)| name == family).unwrap();
    let mut case = fixture.cases[0].clone();
    case.config["max_position_embeddings"] = json!(CONTEXT);
    edit(&mut case.config);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_path_buf();
    on_engine(move || case.write(&path)).unwrap();
    let special = ["<end>", "<system>", "<user>", "<assistant>"].map(String::from);
    let words = special.iter().cloned().chain((4..96).map(|i| format!("w{i}")));
    let vocabulary: BTreeMap<_, _> = words.zip(0..).collect();
    let tokenizer = json!({
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<end>"},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "added_tokens": [],
    });
    let template = "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end> {% endfor %}\
                    {% if add_generation_prompt %}<assistant> {% endif %}";
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = json!({"chat_template": template});
    fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    folder
}

fn load(folder: &Path) -> Model {
    block_on(Model::load(folder)).unwrap()
}

/// Models that tests share.
fn models() -> impl Iterator<Item = (&'static str, &'static Model)> {
    static MODELS: OnceLock<Vec<Fixed>> = OnceLock::new();
    let models = MODELS.get_or_init(|| {
        let fixed = |family: &&str| {
            let folder = write(family, |_| {});
            Fixed { model: load(folder.path()), _folder: folder }
        };
        FAMILIES.iter().map(fixed).collect()
    });
    FAMILIES.into_iter().zip(models.iter().map(|fixed| &fixed.model))
}

fn model(family: &str) -> &'static Model {
    models().find(|(name, _)| *name == family).unwrap().1
}

/// Whether a cache of this family can go back to any position.
fn rewinds(family: &str) -> bool {
    family == "llama"
}

/// Options under which only the number of tokens ends a text.
fn options(max_tokens: usize) -> GenerateOptions {
    GenerateOptions::default().max_tokens(max_tokens).ignore_end(true)
}

/// Words that mean nothing, differently for each `seed`.
fn words(seed: u32, count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| 4 + (i * i * 7 + i * 13 + seed * 31) % 92).collect()
}

fn text(seed: u32, count: usize) -> String {
    words(seed, count).iter().map(|id| format!("w{id}")).collect::<Vec<_>>().join(" ")
}

struct Answer {
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    prefills: Vec<usize>,
    summary: Summary,
}

fn next(stream: &mut Generation) -> Option<Event> {
    block_on(stream.next()).transpose().unwrap()
}

/// What is left of a stream.
fn rest(stream: &mut Generation) -> Answer {
    let (mut tokens, mut logprobs, mut prefills) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        match next(stream).expect("the end comes before nothing") {
            Event::Prefill { done, .. } => prefills.push(done),
            Event::Token(token) => {
                tokens.push(token.id);
                logprobs.push(token.logprob);
            }
            Event::Finished(summary) => return Answer { tokens, logprobs, prefills, summary },
            _ => {}
        }
    }
}

fn ask(session: &Session, prompt: impl Into<Prompt>, options: &GenerateOptions) -> Answer {
    rest(&mut session.generate(prompt, options).unwrap())
}

/// Asks a session and somebody who knows nothing; gives the answer and how many tokens of the
/// prompt the session remembered.
fn compare(
    session: &Session,
    prompt: impl Into<Prompt>,
    options: &GenerateOptions,
) -> (Answer, usize) {
    let prompt = prompt.into();
    let expected = rest(&mut session.model().generate(prompt.clone(), options).unwrap());
    let answer = ask(session, prompt, options);
    assert_eq!(answer.tokens, expected.tokens);
    for (a, b) in answer.logprobs.iter().zip(&expected.logprobs) {
        assert!((a - b).abs() < TOLERANCE, "{a} instead of {b}");
    }
    assert_eq!(answer.summary.prompt_tokens, expected.summary.prompt_tokens);
    assert_eq!(answer.summary.finish_reason, expected.summary.finish_reason);
    assert_eq!(expected.summary.cached_tokens, 0);
    assert!(answer.prefills.is_sorted() && answer.prefills[0] > answer.summary.cached_tokens);
    assert_eq!(answer.prefills.last(), Some(&answer.summary.prompt_tokens));
    let cached = answer.summary.cached_tokens;
    (answer, cached)
}

fn tokens(parts: &[&[u32]]) -> Prompt {
    Prompt::Tokens(parts.concat())
}

#[test]
fn handles_may_go_to_any_thread() {
    fn assert_shared<T: Send + Sync>() {}
    assert_shared::<Session>();
    assert_shared::<SessionOptions>();
}

#[test]
fn what_comes_back_is_not_computed_again() {
    for (family, model) in models() {
        let session = model.session(SessionOptions::default());
        let (first, second, third) = (words(1, 60), words(2, 9), words(3, 9));
        let (answer, cached) = compare(&session, tokens(&[&first]), &options(20));
        assert_eq!(cached, 0, "{family}");
        let said = answer.tokens;
        // The last token of an answer has not been through the model.
        assert_eq!(session.tokens_used(), 60 + 19, "{family}");

        // A new turn.
        let turn = tokens(&[&first, &said, &second]);
        let (_, cached) = compare(&session, turn.clone(), &options(20));
        assert_eq!(cached, 60 + 19, "{family}");
        assert_eq!(session.tokens_used(), 60 + 20 + 9 + 19, "{family}");

        // The answer again, and again at length.
        for max_tokens in [1, 0, 40] {
            let (_, cached) = compare(&session, turn.clone(), &options(max_tokens));
            assert_eq!(cached, 60 + 20 + 9 - 1, "{family}");
        }

        // Another last message: the first token that differs is computed, and where the model
        // cannot go back at will, one that the answer before had not seen.
        let edited = tokens(&[&first, &said, &third]);
        let (_, cached) = compare(&session, edited, &options(20));
        assert_eq!(cached, if rewinds(family) { 60 + 20 } else { 60 + 19 }, "{family}");

        // The first answer again.
        let (_, cached) = compare(&session, tokens(&[&first]), &options(20));
        assert_eq!(cached, 60 - 1, "{family}");

        // Another beginning.
        let (_, cached) = compare(&session, tokens(&[&first[..30], &second]), &options(20));
        assert_eq!(cached, if rewinds(family) { 30 } else { 0 }, "{family}");
        let (_, cached) = compare(&session, tokens(&[&third]), &options(20));
        assert_eq!(cached, 0, "{family}");
        block_on(session.clear()).unwrap();
        assert_eq!(session.tokens_used(), 0);
        let (_, cached) = compare(&session, tokens(&[&third]), &options(20));
        assert_eq!(cached, 0, "{family}");
    }
}

/// The token that ends a text has been through the model when it is read.
#[test]
fn the_end_of_an_answer_is_remembered() {
    for (family, model) in models() {
        let first = words(4, 40);
        let said = rest(&mut model.generate(tokens(&[&first]), &options(12)).unwrap()).tokens;
        let end = said[11];
        let length = said.iter().position(|id| *id == end).unwrap();
        let session = model.session(SessionOptions::default());
        let stopping = options(100).end_tokens(vec![end]);
        let (answer, _) = compare(&session, tokens(&[&first]), &stopping);
        assert_eq!(answer.summary.finish_reason, FinishReason::Stop);
        assert_eq!(answer.tokens.len(), length);
        assert_eq!(session.tokens_used(), 40 + length + 1);
        let turn = tokens(&[&first, &said[..=length], &words(5, 5)]);
        let (_, cached) = compare(&session, turn, &options(3));
        assert_eq!(cached, 40 + length + 1, "{family}");
    }
}

#[test]
fn a_long_history_has_places_to_come_back_to() {
    for (family, model) in models() {
        let session = model.session(SessionOptions::default());
        let long = words(6, 700);
        let chunked = options(4).prefill_chunk(128);
        compare(&session, tokens(&[&long]), &chunked);
        let (_, cached) = compare(&session, tokens(&[&long[..650], &words(7, 9)]), &chunked);
        assert_eq!(cached, if rewinds(family) { 650 } else { 512 }, "{family}");

        drop(session);
        let nowhere = SessionOptions::default().checkpoint_bytes(0);
        let session = model.session(nowhere);
        compare(&session, tokens(&[&long]), &chunked);
        let (_, cached) = compare(&session, tokens(&[&long]), &chunked);
        assert_eq!(cached, if rewinds(family) { 699 } else { 0 }, "{family}");
    }
}

fn chat(messages: &[Message]) -> Prompt {
    Prompt::Chat(messages.to_vec(), TemplateOptions::default())
}

#[test]
fn a_conversation_goes_on_where_it_was() {
    for (family, model) in models() {
        let session = model.session(SessionOptions::default());
        let mut messages = vec![Message::system(&text(10, 20)), Message::user(&text(11, 6))];
        // `<system> … <end> <user> … <end> <assistant>`
        let (answer, cached) = compare(&session, chat(&messages), &options(10));
        assert_eq!((cached, answer.summary.prompt_tokens), (0, 22 + 8 + 1), "{family}");
        let said = model.tokenizer().unwrap().decode(&answer.tokens, false).unwrap();

        messages.extend([Message::assistant(&said), Message::user(&text(12, 6))]);
        let (answer, cached) = compare(&session, chat(&messages), &options(10));
        assert_eq!((cached, answer.summary.prompt_tokens), (31 + 9, 31 + 11 + 8 + 1), "{family}");

        // The answer again: only the header of the answer is computed.
        let (_, cached) = compare(&session, chat(&messages), &options(10));
        assert_eq!(cached, 50, "{family}");

        // A template that leaves the last answer out, as templates do with thoughts.
        messages[2] = Message::assistant("");
        let (_, cached) = compare(&session, chat(&messages), &options(10));
        assert_eq!(cached, if rewinds(family) { 31 } else { 30 }, "{family}");

        // Other instructions end the memory at once.
        messages[0] = Message::system(&text(13, 20));
        let (_, cached) = compare(&session, chat(&messages), &options(2));
        assert_eq!(cached, usize::from(rewinds(family)), "{family}");
    }
}

#[test]
fn instructions_are_computed_once_for_all_sessions() {
    for (family, model) in models() {
        let system = Message::system(&text(14, 100));
        let ask_about = |seed| chat(&[system.clone(), Message::user(&text(seed, 8))]);
        let first = model.session(SessionOptions::default());
        let (_, cached) = compare(&first, ask_about(15), &options(200));
        assert_eq!(cached, 0, "{family}");
        // `<system> … <end> <user>`
        let second = model.session(SessionOptions::default());
        let (_, cached) = compare(&second, ask_about(16), &options(20));
        assert_eq!(cached, 103, "{family}");
        // The first one has what it had.
        let (_, cached) = compare(&first, ask_about(15), &options(20));
        assert_eq!(cached, 103 + 9, "{family}");
        // Nor does it have to exist any more.
        drop(first);
        let third = model.session(SessionOptions::default());
        let (_, cached) = compare(&third, ask_about(17), &options(20));
        assert_eq!(cached, 103, "{family}");
        // Keys and values of another kind are no use.
        let bound = Bound::new(90, 4).unwrap();
        let other = SessionOptions::default().overflow(Overflow::Ring(bound));
        let other = model.session(other);
        assert_eq!(ask(&other, ask_about(17), &options(2)).summary.cached_tokens, 0, "{family}");
    }
}

#[test]
fn a_model_tells_what_it_takes() {
    for family in FAMILIES {
        let folder = write(family, |_| {});
        let model = load(folder.path());
        let memory = || block_on(model.memory()).unwrap();
        let inspection = block_on(inspect(folder.path(), None)).unwrap();
        let weights = inspection.memory.unwrap().weights as usize;
        assert_eq!(memory(), ModelMemory { weights, caches: 0 }, "{family}");
        let sessions = [(); 2].map(|()| model.session(SessionOptions::default()));
        ask(&sessions[0], tokens(&[&words(40, 20)]), &options(2));
        let one = memory().caches;
        assert!(one > 0, "{family}");
        ask(&sessions[1], tokens(&[&words(41, 20)]), &options(2));
        assert_eq!(memory(), ModelMemory { weights, caches: 2 * one }, "{family}");
        drop(sessions);
        assert_eq!(memory().caches, 0, "{family}");
        block_on(model.unload()).unwrap();
        assert!(matches!(block_on(model.memory()), Err(Error::Unloaded)));
    }
}

#[test]
fn forks_go_their_own_ways() {
    for (family, model) in models() {
        let session = model.session(SessionOptions::default());
        let first = words(20, 50);
        let said = ask(&session, tokens(&[&first]), &options(15)).tokens;
        let fork = block_on(session.fork()).unwrap();
        assert_eq!(fork.tokens_used(), session.tokens_used());
        let turn = |seed| tokens(&[&first, &said, &words(seed, 7)]);
        for (session, seed) in [(&session, 21), (&fork, 22), (&session, 21), (&fork, 22)] {
            let (_, cached) = compare(session, turn(seed), &options(15));
            assert!(cached >= 50 + 14, "{family}: {cached}");
        }
        drop(session);
        let (_, cached) = compare(&fork, tokens(&[&first]), &options(15));
        assert_eq!(cached, 49, "{family}");
    }
}

#[test]
fn what_was_computed_before_a_cancellation_stays() {
    for (family, model) in models() {
        // In the prompt.
        let session = model.session(SessionOptions::default());
        let prompt = words(30, 400);
        let slowly = options(10).prefill_chunk(5);
        let mut stream = session.generate(tokens(&[&prompt]), &slowly).unwrap();
        for _ in 0..3 {
            next(&mut stream);
        }
        stream.cancel();
        let cancelled = rest(&mut stream);
        assert_eq!(cancelled.summary.finish_reason, FinishReason::Cancelled);
        let done = cancelled.prefills.last().copied().unwrap_or(15);
        assert!((15..400).contains(&done), "{family}: {done}");
        assert_eq!(session.tokens_used(), done, "{family}");
        let (answer, cached) = compare(&session, tokens(&[&prompt]), &options(10));
        assert_eq!(cached, done, "{family}");

        // In the answer.
        let mut stream = session.generate(tokens(&[&prompt]), &options(100_000)).unwrap();
        while !matches!(next(&mut stream), Some(Event::Token(_))) {}
        stream.cancel();
        let cancelled = rest(&mut stream);
        let said = [&answer.tokens[..1], &cancelled.tokens].concat();
        assert_eq!(cancelled.summary.generated_tokens, said.len());
        assert_eq!(session.tokens_used(), 400 + said.len());
        let turn = tokens(&[&prompt, &said, &words(31, 5)]);
        let (_, cached) = compare(&session, turn.clone(), &options(5));
        assert_eq!(cached, 400 + said.len(), "{family}");

        // Whoever drops a stream cancels it.
        let mut stream = session.generate(turn.clone(), &options(100_000)).unwrap();
        next(&mut stream);
        drop(stream);
        let (_, cached) = compare(&session, turn, &options(5));
        assert_eq!(cached, 400 + said.len() + 4, "{family}");
    }
}

#[test]
fn requests_to_one_session_wait_for_each_other() {
    let model = model("gemma3_text");
    let session = model.session(SessionOptions::default());
    let first = words(40, 30);
    let said = rest(&mut model.generate(tokens(&[&first]), &options(100)).unwrap()).tokens;
    let second = tokens(&[&first, &said, &words(41, 5)]);
    let expected = rest(&mut model.generate(second.clone(), &options(40)).unwrap()).tokens;

    let mut one = session.generate(tokens(&[&first]), &options(100)).unwrap();
    let mut two = session.generate(second.clone(), &options(40)).unwrap();
    let mut three = session.generate(second, &options(40)).unwrap();
    let cancelled = session.generate(tokens(&[&first]), &options(40)).unwrap();
    cancelled.cancel();
    let fork = session.fork();
    thread::scope(|scope| {
        let fork = scope.spawn(|| block_on(fork).unwrap().tokens_used());
        assert_eq!(rest(&mut one).tokens, said);
        let two = rest(&mut two);
        assert_eq!((two.tokens, two.summary.cached_tokens), (expected.clone(), 129));
        let three = rest(&mut three);
        assert_eq!((three.tokens, three.summary.cached_tokens), (expected, 134));
        let cancelled = rest(&mut { cancelled }).summary;
        assert_eq!(
            (cancelled.finish_reason, cancelled.cached_tokens),
            (FinishReason::Cancelled, 0)
        );
        fork.join().unwrap();
    });
    // One that nobody reads lets the next one in when it is dropped, and so does a session.
    let unread = session.generate(tokens(&[&first]), &options(500)).unwrap();
    let mut waiting = session.generate(tokens(&[&first]), &options(5)).unwrap();
    drop((unread, session));
    assert_eq!(rest(&mut waiting).tokens, said[..5]);
}

#[test]
fn many_threads_talk_in_their_own_sessions() {
    let histories = |thread: u32| {
        let model = models().nth(thread as usize % FAMILIES.len()).unwrap().1;
        let session = model.session(SessionOptions::default());
        let mut history = words(50, 40);
        for turn in 0..3 {
            history.extend(words(51 + thread * 3 + turn, 6));
            let (answer, cached) = compare(&session, tokens(&[&history]), &options(12));
            let known = if turn == 0 { 0 } else { history.len() - 6 - 1 };
            assert!(cached >= known, "thread {thread}, turn {turn}: {cached}");
            history.extend(answer.tokens);
        }
    };
    thread::scope(|scope| (0..8).for_each(|i| drop(scope.spawn(move || histories(i)))));
}

/// A long prompt and somebody who writes take turns.
#[test]
fn a_long_prompt_starves_nobody() {
    let model = model("llama");
    let chunked = options(1).prefill_chunk(8);
    let mut long = model.generate(tokens(&[&words(60, 1000)]), &chunked).unwrap();
    let mut short = model.generate(tokens(&[&words(61, 5)]), &options(60)).unwrap();
    let log = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for (who, stream) in [("long", &mut long), ("short", &mut short)] {
            let log = &log;
            scope.spawn(move || {
                while let Some(event) = next(stream) {
                    log.lock().unwrap().push((who, matches!(event, Event::Finished(_))));
                }
            });
        }
    });
    let log = log.into_inner().unwrap();
    let end = |who| log.iter().position(|entry| *entry == (who, true)).unwrap();
    assert!(end("short") < end("long"));
}

#[test]
fn an_error_leaves_a_session_that_works() {
    let folder = tempfile::tempdir().unwrap();
    let (_, fixture) = Fixture::all().into_iter().find(|(name, _)| name == "llama").unwrap();
    let (case, path) = (fixture.cases[0].clone(), folder.path().to_path_buf());
    on_engine(move || {
        fs::write(path.join("config.json"), case.config.to_string()).unwrap();
        let mut checkpoint = case.checkpoint()?;
        let name = "model.embed_tokens.weight";
        let row = Array::from_slice(&[95u32], &[1]);
        let ids = mlx_rs::ops::arange::<_, u32>(0, 96, None)?.eq(&row)?.expand_dims(1)?;
        let poisoned = mlx_rs::ops::select(&ids, Array::from_f32(f32::NAN), &checkpoint[name])?;
        checkpoint.insert(name.into(), poisoned);
        Array::save_safetensors(&checkpoint, None, path.join("model.safetensors")).unwrap();
        Ok(())
    })
    .unwrap();
    let model = load(folder.path());
    let session = model.session(SessionOptions::default());
    let healthy: Vec<u32> = (10..50).collect();
    compare(&session, tokens(&[&healthy]), &options(10));
    let remembered = session.tokens_used();
    // What is refused at once changes nothing.
    for refused in [Prompt::Tokens(vec![]), Prompt::Tokens(vec![96]), Prompt::Tokens(vec![1; 300])]
    {
        assert!(session.generate(refused, &options(1)).is_err());
    }
    assert!(session.generate(tokens(&[&[1]]), &options(1).top_p(0.0)).is_err());
    assert!(matches!(session.generate("text", &options(1)), Err(Error::NoTokenizer)));
    assert_eq!(session.tokens_used(), remembered);

    let sick = [&healthy[..], &[95, 10]].concat();
    let mut stream = session.generate(tokens(&[&sick]), &options(10)).unwrap();
    let error = loop {
        if let Err(error) = block_on(stream.next()).expect("an error comes before nothing") {
            break error;
        }
    };
    assert!(matches!(error, Error::NotANumber { position: 42 }), "{error}");
    assert!(block_on(stream.next()).is_none());
    assert_eq!(session.tokens_used(), 0);
    compare(&session, tokens(&[&healthy]), &options(10));
}

/// Where the child of the next test finds what it is to go on with.
const SAVED: &str = "MYNAH_TEST_SAVED_SESSION";

/// Options under which the last bits repeat.
fn single_steps(max_tokens: usize) -> GenerateOptions {
    options(max_tokens).speculation(Speculation::Off)
}

fn go_on(session: &Session, prompt: &[u32]) -> Json {
    let Answer { tokens, logprobs, summary, .. } =
        ask(session, tokens(&[prompt]), &single_steps(10));
    let bits: Vec<u32> = logprobs.iter().map(|logprob| logprob.to_bits()).collect();
    json!([tokens, bits, summary.cached_tokens])
}

#[test]
fn a_saved_session_goes_on_in_another_process() {
    if let Ok(folder) = env::var(SAVED) {
        let folder = Path::new(&folder);
        let read = |name| fs::read_to_string(folder.join(name)).unwrap();
        let prompt: Vec<u32> = serde_json::from_str(&read("prompt.json")).unwrap();
        let options: Json = serde_json::from_str(&read("options.json")).unwrap();
        let options = session_options(options.as_bool().unwrap());
        let path = folder.join("session/saved.safetensors");
        let session = block_on(load(folder).restore(path, options)).unwrap();
        fs::write(folder.join("answer.json"), go_on(&session, &prompt).to_string()).unwrap();
        return;
    }
    for (family, is_small) in
        FAMILIES.map(|family| (family, false)).into_iter().chain([("llama", true)])
    {
        let folder = write(family, |_| {});
        let model = load(folder.path());
        let session = model.session(session_options(is_small));
        let first = words(70, 90);
        let said = ask(&session, tokens(&[&first]), &options(20)).tokens;
        let prompt = [&first[..], &said, &words(71, 4)].concat();
        fs::create_dir(folder.path().join("session")).unwrap();
        let path = folder.path().join("session/saved.safetensors");
        block_on(session.save(&path)).unwrap();
        fs::write(folder.path().join("prompt.json"), json!(prompt).to_string()).unwrap();
        fs::write(folder.path().join("options.json"), json!(is_small).to_string()).unwrap();
        let name = concat!(module_path!(), "::a_saved_session_goes_on_in_another_process");
        let name = name.split_once("::").unwrap().1;
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", name])
            .env(SAVED, folder.path())
            .output()
            .unwrap();
        assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
        let answer = fs::read_to_string(folder.path().join("answer.json")).unwrap();
        let expected = go_on(&session, &prompt);
        assert_eq!(serde_json::from_str::<Json>(&answer).unwrap(), expected, "{family}");
        assert_eq!(expected[2], 90 + 19, "{family}");
    }
}

#[test]
fn a_restored_session_has_its_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("saved.safetensors");
    for (family, model) in models() {
        let session = model.session(SessionOptions::default());
        let mut messages = vec![Message::system(&text(90, 20)), Message::user(&text(91, 6))];
        for seed in [92, 93] {
            let answer = ask(&session, chat(&messages), &options(10));
            let said = model.tokenizer().unwrap().decode(&answer.tokens, false).unwrap();
            messages.extend([Message::assistant(&said), Message::user(&text(seed, 6))]);
        }
        // The last answer stays, and the message before it is edited or answered again.
        messages.truncate(4);
        let mut edited = messages.clone();
        edited[3] = Message::user(&text(94, 8));
        block_on(session.save(&path)).unwrap();
        // What the session itself would reuse, then without it: sessions share their prefixes.
        let reused = [&messages, &edited].map(|messages| {
            let fork = block_on(session.fork()).unwrap();
            ask(&fork, chat(messages), &options(10)).summary.cached_tokens
        });
        drop(session);
        for (messages, expected) in [messages, edited].iter().zip(reused) {
            // `<system> … <end> <user> … <end> <assistant>`, and the answer but for its last token.
            assert!(expected >= 22 + 8 + 1 + 9, "{family}: {expected}");
            let restored = block_on(model.restore(&path, SessionOptions::default())).unwrap();
            let (_, cached) = compare(&restored, chat(messages), &options(10));
            assert_eq!(cached, expected, "{family}");
        }
    }
}

/// Files of the version before checkpoints were saved.
#[test]
fn an_older_file_is_restored_without_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("saved.safetensors");
    let model = model("llama");
    let session = model.session(SessionOptions::default());
    ask(&session, tokens(&[&words(95, 30)]), &options(5));
    block_on(session.save(&path)).unwrap();
    drop(session);
    let replaced = |saved: Vec<u8>, from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = saved.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        let mut saved = saved;
        saved[at..at + to.len()].copy_from_slice(to.as_bytes());
        saved
    };
    let saved = replaced(fs::read(&path).unwrap(), "mynah.checkpoints", "not of this time.");
    let older = replaced(saved, r#"\"version\":3"#, r#"\"version\":2"#);
    fs::write(&path, &older).unwrap();
    let restored = block_on(model.restore(&path, SessionOptions::default())).unwrap();
    let (_, cached) = compare(&restored, tokens(&[&words(95, 30)]), &options(5));
    assert_eq!(cached, 29);
    fs::write(&path, replaced(older, r#"\"version\":2"#, r#"\"version\":1"#)).unwrap();
    let refused = block_on(model.restore(&path, SessionOptions::default())).err().unwrap();
    assert!(refused.to_string().contains("format version 1"), "{refused}");
}

/// As it comes, or in a ring.
fn session_options(is_small: bool) -> SessionOptions {
    if !is_small {
        return SessionOptions::default();
    }
    SessionOptions::default().overflow(Overflow::Ring(Bound::new(64, 4).unwrap()))
}

#[test]
fn files_that_are_no_session_of_this_model_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("saved.safetensors");
    let (llama, other) = (model("llama"), model("lfm2"));
    let restore = |model: &Model, options| block_on(model.restore(&path, options));
    let reason = |model: &Model, options| match restore(model, options) {
        Err(Error::SavedCache { file, reason }) => {
            assert_eq!(file, path);
            reason
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("a damaged file was read"),
    };
    let plain = SessionOptions::default();
    let session = llama.session(plain);
    assert!(matches!(block_on(session.save(&path)), Err(Error::SavedCache { .. })));
    reason(llama, plain);
    ask(&session, tokens(&[&words(80, 30)]), &options(5));
    assert!(block_on(session.save(folder.path().join("saved.bin"))).is_err());
    assert!(block_on(session.save(folder.path().join("nowhere/saved.safetensors"))).is_err());
    block_on(session.save(&path)).unwrap();
    assert_eq!(restore(llama, plain).unwrap().tokens_used(), 34);
    assert_eq!(reason(other, plain), "was saved by another model");
    assert_eq!(reason(llama, session_options(true)), "was saved under other options");

    let saved = fs::read(&path).unwrap();
    let text = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = saved.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        let mut damaged = saved.clone();
        damaged[at..at + to.len()].copy_from_slice(to.as_bytes());
        damaged
    };
    let first = words(80, 1)[0];
    let listed = |id: &str| format!("mynah.keys\":\"{id},");
    let fewer = text(
        &listed(&first.to_string()),
        &listed(&"7".repeat(first.to_string().len())).replace(",", "7"),
    );
    let damaged = [
        Vec::new(),
        saved[..saved.len() / 2].to_vec(),
        saved[..saved.len() - 1].to_vec(),
        vec![255; 200],
        text("mynah.keys", "mynah.lock"),
        fewer,
        text(&listed(&first.to_string()), &listed(&"x".repeat(first.to_string().len()))),
    ];
    for (i, damaged) in damaged.iter().enumerate() {
        fs::write(&path, damaged).unwrap();
        let reason = reason(llama, plain);
        assert!(!reason.is_empty(), "{i}");
    }
    // The session that was saved knows nothing of this.
    assert_eq!(session.tokens_used(), 34);
    let (_, cached) = compare(&session, tokens(&[&words(80, 30)]), &options(5));
    assert_eq!(cached, 29);
}

#[test]
fn a_full_context_ends_an_answer() {
    let folder = write("llama", |config| config["max_position_embeddings"] = json!(64));
    let model = load(folder.path());
    let session = model.session(SessionOptions::default());
    for (prompt, max_tokens, generated) in
        [(50, usize::MAX, 14), (50, 14, 14), (60, 5, 4), (64, 5, 0)]
    {
        let (answer, _) = compare(&session, tokens(&[&words(90, prompt)]), &options(max_tokens));
        assert_eq!(answer.tokens.len(), generated);
        assert_eq!(answer.summary.finish_reason, FinishReason::Length);
    }
    let refused = |result: Result<Generation, Error>| {
        matches!(result, Err(Error::ContextOverflow { tokens: 65, limit: 64 }))
    };
    let long = tokens(&[&words(90, 65)]);
    assert!(refused(session.generate(long.clone(), &options(1))));
    assert!(refused(model.generate(long.clone(), &options(1))));

    let dropping = SessionOptions::default().overflow(Overflow::DropOldest { reserve: 16 });
    let session = model.session(dropping);
    assert!(refused(session.generate(long, &options(1))));
    // 12 + 8 tokens a turn after 7, and 8 + 1 for the last: one turn fits beside 16 tokens.
    let system = Message::system(&text(91, 5));
    let turns: Vec<_> = (0..5)
        .map(|i| [Message::user(&text(92 + i, 10)), Message::assistant(&text(100 + i, 6))])
        .collect();
    let last = Message::user(&text(110, 6));
    for count in 0..5 {
        let kept = count.min(1);
        let list = |from| {
            [slice::from_ref(&system), &turns[from..count].concat()[..], slice::from_ref(&last)]
                .concat()
        };
        let answer = ask(&session, chat(&list(0)), &options(usize::MAX));
        assert_eq!(answer.summary.dropped_messages, 2 * (count - kept), "{count}");
        assert_eq!(answer.summary.prompt_tokens, 7 + 20 * kept + 9, "{count}");
        let expected = model.generate(chat(&list(count - kept)), &options(usize::MAX)).unwrap();
        assert_eq!(answer.tokens, rest(&mut { expected }).tokens, "{count}");
        assert_eq!(answer.tokens.len(), 64 - answer.summary.prompt_tokens);
    }
    // The last turn may use what is reserved, but no more than there is.
    for (length, fits) in [(46, true), (61, true), (62, false)] {
        let list = [&turns[0][..], &[Message::user(&text(111, length))]].concat();
        match session.generate(chat(&list), &options(3)) {
            Ok(mut stream) => assert!(fits && rest(&mut stream).summary.dropped_messages == 2),
            Err(Error::ContextOverflow { .. }) => assert!(!fits),
            Err(error) => panic!("{error}"),
        }
    }

    // A ring has no end, and remembers like everybody.
    let ring = SessionOptions::default().overflow(Overflow::Ring(Bound::new(32, 4).unwrap()));
    let session = model.session(ring);
    let long = words(120, 100);
    let answer = ask(&session, tokens(&[&long]), &options(50));
    assert_eq!((answer.tokens.len(), session.tokens_used()), (50, 149));
    let turn = tokens(&[&long, &answer.tokens, &words(121, 9)]);
    let (known, fresh) = (ask(&session, turn.clone(), &options(20)), model.session(ring));
    assert_eq!(known.summary.cached_tokens, 149);
    drop(session);
    let anew = ask(&fresh, turn, &options(20));
    assert_eq!((anew.summary.cached_tokens, &anew.tokens), (0, &known.tokens));
}

/// Places to come back to are dropped where they save the fewest tokens.
#[test]
fn a_conversation_of_many_turns_keeps_its_beginning_and_its_end() {
    let model = model("mamba2");
    let session = model.session(SessionOptions::default());
    let mut messages = vec![Message::system(&text(130, 60))];
    let mut lengths = Vec::new();
    for turn in 0..14 {
        messages.push(Message::user(&text(131 + turn, 4)));
        let answer = ask(&session, chat(&messages), &options(3));
        lengths.push(answer.summary.prompt_tokens);
        let said = model.tokenizer().unwrap().decode(&answer.tokens, false).unwrap();
        messages.push(Message::assistant(&said));
    }
    messages.pop();
    let (_, cached) = compare(&session, chat(&messages), &options(3));
    assert_eq!(cached, lengths[13] - 1);
    // In the middle, what has to be computed again is less than a third of the conversation.
    messages.truncate(14);
    let (_, cached) = compare(&session, chat(&messages), &options(3));
    assert!((lengths[2]..lengths[6]).contains(&cached), "{cached} of {lengths:?}");
    let other = model.session(SessionOptions::default());
    let (_, cached) =
        compare(&other, chat(&[messages[0].clone(), Message::user("w9")]), &options(1));
    assert_eq!(cached, 63);
}

#[test]
fn an_answer_goes_on_from_words_that_are_put_in_its_mouth() {
    let model = block_on(Model::load(mynah::DEMO)).unwrap();
    let session = model.session(SessionOptions::default());
    let question = Message::user("What is 3 + 4?");
    let said = |answer: &Answer| {
        let text = model.tokenizer().unwrap().decode(&answer.tokens, true).unwrap();
        text.trim().to_string()
    };
    let whole = ask(&session, chat(slice::from_ref(&question)), &model.default_options());
    assert_eq!(said(&whole), "3 + 4 = 7.");
    let continued = TemplateOptions::default().continue_final_message(true);
    let begun = Prompt::Chat(vec![question, Message::assistant("3 + 4 =")], continued);
    let rest = ask(&session, begun, &model.default_options());
    assert_eq!(said(&rest), "7.");
    assert_eq!(rest.summary.cached_tokens, rest.summary.prompt_tokens - 1);
}

#[test]
fn options_follow_from_a_budget() {
    let model = model("llama");
    // Two layers, keys and values, two heads of 16 elements of 4 bytes.
    let whole = 1024 * 2 * 2 * 2 * 16 * 4;
    let within = |bytes| block_on(model.options_within(1024, bytes));
    let options = within(whole + 1000).unwrap();
    assert_eq!(options, SessionOptions::default().checkpoint_bytes(1000));
    let options = within(whole / 3).unwrap();
    assert_eq!(options.overflow, Overflow::Ring(Bound::new(256, 4).unwrap()));
    assert!(matches!(within(10), Err(Error::MemoryLimit { limit: 10, .. })));
}
