//! A model is loaded as its options say.

use mynah::{
    Bound, CacheQuantization, DEMO, Error, Event, GenerateOptions, Generation, LoadOptions,
    MemoryPolicy, Message, Model, Overflow, Prompt, Result, SessionOptions, Summary,
    TemplateOptions,
};
use mynah_tests::{BUSY, block_on};

/// Options under which only the number of tokens ends a text.
fn options(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_tokens, ignore_end: true, ..GenerateOptions::default() }
}

/// The tokens of a stream, and its end.
fn rest(mut stream: Generation) -> (Vec<u32>, Summary) {
    let mut tokens = Vec::new();
    loop {
        match block_on(stream.next()).expect("the end comes before nothing").unwrap() {
            Event::Prefill { .. } => {}
            Event::Token(token) => tokens.push(token.id),
            Event::Finished(summary) => return (tokens, summary),
        }
    }
}

fn generate(model: &Model, prompt: &[u32], max_tokens: usize) -> (Vec<u32>, Summary) {
    rest(model.generate(Prompt::Tokens(prompt.to_vec()), &options(max_tokens)).unwrap())
}

fn load_demo(options: LoadOptions) -> Result<Model> {
    block_on(Model::load_with(DEMO, options, |_| {}))
}

#[test]
fn a_model_is_loaded_as_the_options_say() {
    let _busy = BUSY.read().unwrap();
    let demo = load_demo(LoadOptions::default()).unwrap();
    let defaults = LoadOptions::default;
    let question = [Message::user("What is 3 + 4?")];

    let short = load_demo(LoadOptions { context: Some(64), ..defaults() }).unwrap();
    assert_eq!((short.info().context, demo.info().context), (Some(64), Some(512)));
    let prompt = vec![1; 65];
    let refused = short.generate(Prompt::Tokens(prompt.clone()), &options(1));
    assert!(matches!(refused, Err(Error::ContextOverflow { tokens: 65, limit: 64 })));
    assert_eq!(generate(&short, &prompt[..60], 100).0.len(), 4);
    let long = load_demo(LoadOptions { context: Some(1 << 20), ..defaults() }).unwrap();
    assert_eq!(long.info().context, Some(512));
    let none = load_demo(LoadOptions { context: Some(0), ..defaults() });
    assert!(matches!(none, Err(Error::Option { option: "context", .. })));

    let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
    let chat_template = Some(template.to_string());
    let model = load_demo(LoadOptions { chat_template, ..defaults() }).unwrap();
    let rendered = model.render(&question, &TemplateOptions::default()).unwrap();
    assert_eq!(rendered, "<user>What is 3 + 4?");
    let broken = load_demo(LoadOptions { chat_template: Some("{% if %}".into()), ..defaults() });
    assert!(matches!(broken, Err(Error::ChatTemplate { .. })));

    let whole = answer(&demo, &question);
    let second = demo.tokenizer().unwrap().token(whole[1]).unwrap();
    let model = load_demo(LoadOptions { end_tokens: vec![second], ..defaults() }).unwrap();
    assert_eq!(model.end_tokens().len(), demo.end_tokens().len() + 1);
    assert_eq!(answer(&model, &question), whole[..1]);
    let unknown = load_demo(LoadOptions { end_tokens: vec!["no such token".into()], ..defaults() });
    assert!(matches!(unknown, Err(Error::Option { option: "end_tokens", .. })));

    let warm = load_demo(LoadOptions { prewarm: true, ..defaults() }).unwrap();
    assert_eq!(answer(&warm, &question), whole);
}

fn answer(model: &Model, messages: &[Message]) -> Vec<u32> {
    rest(model.generate(messages.to_vec(), &model.default_options()).unwrap()).0
}

#[test]
fn a_panic_inside_ends_what_it_interrupts() {
    let _busy = BUSY.read().unwrap();
    let loaded = block_on(Model::load(DEMO, |_| panic!("a bug")));
    assert!(matches!(loaded, Err(Error::Internal(reason)) if reason == "a bug"));
    assert!(load_demo(LoadOptions::default()).is_ok());
}

#[test]
fn a_model_remembers_as_it_was_loaded() {
    let _busy = BUSY.read().unwrap();
    let usual = SessionOptions::default();
    let ring = SessionOptions { overflow: Overflow::Ring(Bound::new(96, 4).unwrap()), ..usual };
    let model = load_demo(LoadOptions { session: Some(ring), ..LoadOptions::default() }).unwrap();
    assert_eq!(model.session_options(), ring);
    let prompt: Vec<u32> = (0..700).map(|i| i % 300).collect();
    let (alone, summary) = generate(&model, &prompt, 8);
    assert_eq!((alone.len(), summary.prompt_tokens), (8, 700));
    let session = load_demo(LoadOptions::default()).unwrap().session(ring);
    let stream = session.generate(Prompt::Tokens(prompt), &options(8)).unwrap();
    assert_eq!(rest(stream).0, alone);

    let four =
        SessionOptions { quantization: Some(CacheQuantization::new(4, 32, 0).unwrap()), ..usual };
    let model = load_demo(LoadOptions { session: Some(four), ..LoadOptions::default() }).unwrap();
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
        load_demo(LoadOptions { memory, ..LoadOptions::default() })
    };
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
    let memory = MemoryPolicy::Unlimited;
    load_demo(LoadOptions { memory, ..LoadOptions::default() }).unwrap();
    assert_eq!(mynah::memory_use().unwrap().limit, None);
}
