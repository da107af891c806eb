//! A model is loaded as its options say.

use futures_core::Stream;
use mynah::{
    Bound, CacheQuantization, DEMO, Engine, Error, ErrorKind, Event, Files, GenerateOptions,
    Generation, LoadOptions, MemoryPolicy, Message, Model, Overflow, Prompt, Result,
    SessionOptions, Summary, TemplateOptions, inspect,
};
use mynah_tests::{BUSY, block_on};
use std::{
    fs,
    pin::Pin,
    task::{Context, Poll, Waker},
    thread,
};

/// Options under which only the number of tokens ends a text.
fn options(max_tokens: usize) -> GenerateOptions {
    GenerateOptions::default().max_tokens(max_tokens).ignore_end(true)
}

/// The tokens of a stream, and its end.
fn rest(mut stream: Generation) -> (Vec<u32>, Summary) {
    let mut tokens = Vec::new();
    loop {
        match block_on(stream.next()).expect("the end comes before nothing").unwrap() {
            Event::Token(token) => tokens.push(token.id),
            Event::Finished(summary) => return (tokens, summary),
            _ => {}
        }
    }
}

fn generate(model: &Model, prompt: &[u32], max_tokens: usize) -> (Vec<u32>, Summary) {
    rest(model.generate(Prompt::Tokens(prompt.to_vec()), &options(max_tokens)).unwrap())
}

fn load_demo(options: LoadOptions) -> Result<Model> {
    block_on(Model::load(DEMO).options(options)).map_err(Error::into_cause)
}

#[test]
fn a_model_is_loaded_as_the_options_say() {
    let _busy = BUSY.read().unwrap();
    let demo = load_demo(LoadOptions::default()).unwrap();
    let defaults = LoadOptions::default;
    let question = [Message::user("What is 3 + 4?")];

    let short = load_demo(defaults().context(64)).unwrap();
    assert_eq!((short.info().context, demo.info().context), (Some(64), Some(512)));
    let prompt = vec![1; 65];
    let refused = short.generate(Prompt::Tokens(prompt.clone()), &options(1));
    assert!(matches!(refused, Err(Error::ContextOverflow { tokens: 65, limit: 64 })));
    assert_eq!(generate(&short, &prompt[..60], 100).0.len(), 4);
    let long = load_demo(defaults().context(1 << 20)).unwrap();
    assert_eq!(long.info().context, Some(512));
    let none = load_demo(defaults().context(0));
    assert!(matches!(none, Err(Error::Option { option: "context", .. })));

    let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
    let model = load_demo(defaults().chat_template(template)).unwrap();
    let rendered = model.render(&question, &TemplateOptions::default()).unwrap();
    assert_eq!(rendered, "<user>What is 3 + 4?");
    let broken = load_demo(defaults().chat_template("{% if %}")).map_err(Error::into_cause);
    assert!(matches!(broken, Err(Error::ChatTemplate { .. })));

    let whole = answer(&demo, &question);
    let second = demo.tokenizer().unwrap().token(whole[1]).unwrap();
    let model = load_demo(defaults().end_tokens([second])).unwrap();
    assert_eq!(model.end_tokens().len(), demo.end_tokens().len() + 1);
    assert_eq!(answer(&model, &question), whole[..1]);
    let unknown = load_demo(defaults().end_tokens(["no such token"]));
    assert!(matches!(unknown, Err(Error::Option { option: "end_tokens", .. })));

    let warm = load_demo(defaults().prewarm(true)).unwrap();
    assert_eq!(answer(&warm, &question), whole);
}

fn answer(model: &Model, messages: &[Message]) -> Vec<u32> {
    rest(model.generate(messages.to_vec(), &model.default_options()).unwrap()).0
}

#[test]
fn a_panic_inside_ends_what_it_interrupts() {
    let _busy = BUSY.read().unwrap();
    let loaded = block_on(Model::load(DEMO).progress(|_| panic!("a bug")));
    assert!(matches!(loaded, Err(Error::Internal(reason)) if reason == "a bug"));
    assert!(load_demo(LoadOptions::default()).is_ok());
}

#[test]
fn a_model_remembers_as_it_was_loaded() {
    let _busy = BUSY.read().unwrap();
    let usual = SessionOptions::default();
    let ring = usual.overflow(Overflow::Ring(Bound::new(96, 4).unwrap()));
    let model = load_demo(LoadOptions::default().session(ring)).unwrap();
    assert_eq!(model.session_options(), ring);
    let prompt: Vec<u32> = (0..700).map(|i| i % 300).collect();
    let (alone, summary) = generate(&model, &prompt, 8);
    assert_eq!((alone.len(), summary.prompt_tokens), (8, 700));
    let session = load_demo(LoadOptions::default()).unwrap().session(ring);
    let stream = session.generate(Prompt::Tokens(prompt), &options(8)).unwrap();
    assert_eq!(rest(stream).0, alone);

    let four = usual.quantization(CacheQuantization::new(4, 32, 0).unwrap());
    let model = load_demo(LoadOptions::default().session(four)).unwrap();
    let packed = generate(&model, &[5; 200], 1).1.peak_memory;
    let plain = load_demo(LoadOptions::default()).unwrap();
    let whole = generate(&plain, &[5; 200], 1).1.peak_memory;
    assert_ne!(packed, whole);
}

#[test]
fn a_budget_is_kept_by_remembering_in_fewer_bits() {
    let _alone = BUSY.write().unwrap();
    let load = |bytes| {
        let memory = MemoryPolicy::Budget(bytes);
        load_demo(LoadOptions::default().memory(memory))
    };
    // The engine thread has then freed the models that other tests dropped.
    block_on(Engine::get().unwrap().run(|| Ok(()))).unwrap();
    let active = mynah::memory_use().unwrap().active;
    let roomy = load(active + (64 << 20)).unwrap();
    let usual = SessionOptions::default();
    assert_eq!(roomy.session_options().quantization, usual.quantization);
    let limit = mynah::memory_use().unwrap().limit;
    assert_eq!(limit, Some(active + (64 << 20)));
    let weights = mynah::memory_use().unwrap().active - active;
    block_on(roomy.unload()).unwrap();
    // The cache of 512 positions takes a megabyte in full precision. An embedded model is in memory
    // before it is counted, so there must be room for it twice.
    let tight = load(active + 2 * weights + (64 << 10)).unwrap();
    assert_ne!(tight.session_options().quantization, usual.quantization);
    assert_eq!(generate(&tight, &[1, 2, 3], 3).0.len(), 3);
    assert!(matches!(load(active + 1000), Err(Error::MemoryLimit { .. })));
    // A load that fails gives its limit back.
    let limit = mynah::memory_use().unwrap().limit;
    assert_eq!(limit, Some(active + 2 * weights + (64 << 10)));
    let memory = MemoryPolicy::Unlimited;
    let failing = LoadOptions::default().memory(memory).chat_template("{% if %}");
    assert!(load_demo(failing).is_err());
    assert_eq!(mynah::memory_use().unwrap().limit, limit);
    load_demo(LoadOptions::default().memory(memory)).unwrap();
    assert_eq!(mynah::memory_use().unwrap().limit, None);
}

/// The text of an answer, whichever events carry it.
fn text(mut stream: Generation) -> String {
    let mut text = String::new();
    while let Some(event) = block_on(stream.next()) {
        match event.unwrap() {
            Event::Token(token) => text += &token.text,
            Event::Text(rest) => text += &rest,
            _ => {}
        }
    }
    text
}

#[test]
fn a_string_is_a_message_where_there_is_a_chat_template() {
    let _busy = BUSY.read().unwrap();
    const QUESTION: &str = "What is 3 + 4?";
    let model = load_demo(LoadOptions::default()).unwrap();
    let options = model.default_options();
    let message = vec![Message::user(QUESTION)];
    assert_eq!(model.tokens(QUESTION).unwrap(), model.tokens(message).unwrap());
    assert_eq!(text(model.generate(QUESTION, &options).unwrap()).trim(), "3 + 4 = 7.");
    let session = model.session(SessionOptions::default());
    let answer = session.generate(QUESTION.to_string(), &options).unwrap();
    assert_eq!(text(answer).trim(), "3 + 4 = 7.");

    let raw = model.tokens(Prompt::Raw(QUESTION.into())).unwrap();
    assert_eq!(raw, model.tokenizer().unwrap().encode(QUESTION, true).unwrap());
    assert_eq!(block_on(model.score(QUESTION, 1)).unwrap().0, raw);

    let Files::Embedded(files) = DEMO else { panic!("the demo model is embedded") };
    let without = |(name, content): &(&'static str, &'static [u8])| {
        let config = br#"{"tokenizer_class": "PreTrainedTokenizerFast"}"#;
        (*name, if *name == "tokenizer_config.json" { &config[..] } else { content })
    };
    let files: Vec<_> =
        files.iter().filter(|(name, _)| *name != "chat_template.jinja").map(without).collect();
    let untemplated = block_on(Model::load(Files::Embedded(files.leak()))).unwrap();
    assert_eq!(
        untemplated.tokens(QUESTION).unwrap(),
        untemplated.tokens(Prompt::Raw(QUESTION.into())).unwrap()
    );
    let refused = untemplated.tokens(vec![Message::user(QUESTION)]);
    assert!(matches!(refused, Err(Error::NoChatTemplate)));
}

/// Text that no token carries comes before the end, in its place among the events.
#[test]
fn events_of_all_kinds_come_in_one_order() {
    let _busy = BUSY.read().unwrap();
    let model = load_demo(LoadOptions::default()).unwrap();
    // The answer is cut inside the stop text, which therefore was held back until the end.
    let options = model.default_options().stop(["7.!"]).max_tokens(64);
    let mut stream = model.generate("What is 3 + 4?", &options).unwrap();
    let mut kinds = Vec::new();
    let mut context = Context::from_waker(Waker::noop());
    let mut answer = String::new();
    loop {
        // A generation is a stream; an executor would poll it like this.
        match Pin::new(&mut stream).poll_next(&mut context) {
            Poll::Pending => thread::yield_now(),
            Poll::Ready(None) => break,
            Poll::Ready(Some(event)) => kinds.push(match event.unwrap() {
                Event::Prefill { .. } => "prefill",
                Event::Token(token) => {
                    answer += &token.text;
                    "token"
                }
                Event::Text(rest) => {
                    answer += &rest;
                    "text"
                }
                Event::Finished(_) => "finished",
                other => panic!("{other:?}"),
            }),
        }
    }
    kinds.dedup();
    assert_eq!(kinds, ["prefill", "token", "text", "finished"]);
    assert_eq!(answer.trim(), "3 + 4 = 7.");
}

#[test]
fn an_error_names_the_model_and_says_what_can_be_done() {
    let _busy = BUSY.read().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.json");
    let name = folder.path().to_str().unwrap();
    let failed = |text: &str| {
        fs::write(&config, text).unwrap();
        let loaded = block_on(Model::load(folder.path())).err().unwrap();
        (loaded.kind(), loaded.to_string())
    };
    let (kind, message) = failed("{}");
    assert_eq!(kind, ErrorKind::Damaged);
    assert_eq!(message, format!("{name}: config.json: `model_type`: missing"));
    let inspected = block_on(inspect(folder.path(), None)).unwrap_err();
    assert_eq!((inspected.kind(), inspected.to_string()), (kind, message));
    let (kind, message) = failed(r#"{"model_type": "voxtral_realtime"}"#);
    assert_eq!(kind, ErrorKind::Unsupported);
    let expected = "speech recognition models of type `voxtral_realtime`";
    assert!(message.contains(expected), "{message}");
    let (kind, message) = failed(r#"{"model_type": "whisper"}"#);
    assert_eq!(kind, ErrorKind::Unsupported);
    assert!(message.contains("a transcriber (speech to text), not a language model"), "{message}");
    let (kind, message) = failed(r#"{"model_type": "lama"}"#);
    assert_eq!(kind, ErrorKind::Unsupported);
    assert!(message.contains("did you mean llama"), "{message}");
    let nowhere = block_on(Model::load("./nowhere")).err().unwrap();
    assert_eq!(nowhere.kind(), ErrorKind::NotFound);
}
