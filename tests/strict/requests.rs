//! Tokenizers, prompts and options that cannot be used.

use crate::*;

#[test]
fn a_tokenizer_or_a_template_that_is_damaged() {
    let folder = copy(good());
    put(folder.path(), TOKENIZER, words());
    attempt(folder.path()).unwrap();
    refuse_all(
        folder.path(),
        &[
            ("empty", |f| put(f, TOKENIZER, ""), "Tokenizer", &[TOKENIZER]),
            ("no JSON", |f| put(f, TOKENIZER, "<html>"), "Tokenizer", &[TOKENIZER]),
            ("not text", |f| put(f, TOKENIZER, b"\xff"), "Tokenizer", &[TOKENIZER]),
            (
                "a pointer of git-lfs",
                |f| put(f, TOKENIZER, "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
                "Checkpoint",
                &[TOKENIZER, "git-lfs pointer"],
            ),
            ("truncated", |f| put(f, TOKENIZER, &words()[..100]), "Tokenizer", &[TOKENIZER]),
            ("an object", |f| put(f, TOKENIZER, "{}"), "Tokenizer", &[TOKENIZER]),
            (
                "an unknown model",
                |f| put(f, TOKENIZER, words().replace("WordLevel", "Telepathy")),
                "Tokenizer",
                &[TOKENIZER],
            ),
            (
                "a config that is a list",
                |f| put(f, "tokenizer_config.json", "[]"),
                "Config",
                &["tokenizer_config.json"],
            ),
            (
                "a template that does not parse",
                |f| put(f, "chat_template.jinja", "{% if %}"),
                "ChatTemplate",
                &["line 1"],
            ),
            (
                "generation options that are no JSON",
                |f| put(f, "generation_config.json", "{"),
                "Config",
                &["generation_config.json", "not JSON"],
            ),
        ],
    );
}

#[test]
fn a_sequence_with_more_tokens_than_positions() {
    let folder = write(&case("gpt2", "default"));
    let model = block_on(Model::load(folder.path())).unwrap();
    assert_eq!(model.info().context, Some(64));
    let score = |tokens| block_on(model.score(Prompt::Tokens(vec![1; tokens]), 2));
    refused(score(65), "ContextOverflow", &["65", "64"]);
    score(64).unwrap();
    let pass = |tokens: usize| {
        on_engine(move || {
            let model = case("gpt2", "default").model()?;
            let ids = Array::from_slice(&vec![1u32; tokens], &[1, tokens as i32]);
            prefill(&*model, &ids, &mut model.cache(&CachePlan::default())).map(drop)
        })
    };
    refused(pass(65), "ContextOverflow", &["65", "64"]);
    pass(64).unwrap();
}

#[test]
fn a_prompt_that_cannot_be_continued() {
    let folder = copy(good());
    let load = || block_on(Model::load(folder.path())).unwrap();
    let options = GenerateOptions::default().max_tokens(2);
    let tokens = |tokens: &[u32]| Prompt::Tokens(tokens.to_vec());
    let model = load();
    refused(generate(&model, tokens(&[]), &options), "EmptyPrompt", &[]);
    refused(generate(&model, "", &options), "EmptyPrompt", &[]);
    refused(generate(&model, tokens(&[1, 96]), &options), "TokenOutOfVocabulary", &["96"]);
    refused(generate(&model, tokens(&[u32::MAX]), &options), "TokenOutOfVocabulary", &["96"]);
    let long = [1; 257];
    refused(generate(&model, tokens(&long), &options), "ContextOverflow", &["257", "256"]);
    refused(block_on(model.score(tokens(&long), 1)), "ContextOverflow", &["257", "256"]);
    refused(block_on(model.score(tokens(&[]), 1)), "EmptyPrompt", &[]);
    refused(block_on(model.score(tokens(&[96]), 1)), "TokenOutOfVocabulary", &["96"]);
    refused(generate(&model, "w1 w2", &options), "NoTokenizer", &[TOKENIZER]);
    let talk = || vec![Message::user("w1 w2")];

    put(folder.path(), TOKENIZER, words());
    refused(generate(&load(), talk(), &options), "NoChatTemplate", &[]);
    let template = "{% if messages|length == 1 %}{{ raise_exception('two, please') }}{% endif %}";
    put(folder.path(), "chat_template.jinja", template);
    let model = load();
    generate(&model, Prompt::Raw("w1 w2".into()), &options).unwrap();
    refused(generate(&model, "w1 w2", &options), "ChatTemplate", &["two, please"]);
    refused(generate(&model, talk(), &options), "ChatTemplate", &["two, please"]);
    refused(model.render(&talk(), &TemplateOptions::default()), "ChatTemplate", &["two, please"]);
    put(folder.path(), "chat_template.jinja", "{{ [messages[0], 1 / 0] }}");
    refused(generate(&load(), talk(), &options), "ChatTemplate", &[]);
    put(folder.path(), "chat_template.jinja", "");
    refused(generate(&load(), talk(), &options), "EmptyPrompt", &[]);
}

#[test]
fn a_tokenizer_of_other_files() {
    let folder = copy(good());
    let model = block_on(Model::load(folder.path())).unwrap();
    let other = tempfile::tempdir().unwrap();
    refused(model.with_tokenizer(other.path()), "Tokenizer", &[TOKENIZER]);
    put(other.path(), TOKENIZER, words());
    put(other.path(), "tokenizer_config.json", r#"{"eos_token": "w7"}"#);
    let template = "{% for m in messages %}{{ m.content }} {% endfor %}{{ eos_token }}";
    put(other.path(), "chat_template.jinja", template);

    let equipped = model.with_tokenizer(other.path()).unwrap();
    let configured = model.end_tokens().to_vec();
    assert!(model.tokenizer().is_err() && !configured.contains(&7));
    assert_eq!(equipped.end_tokens(), [configured, vec![7]].concat());
    // The weights stay while any handle does.
    drop(model);
    let talk = || vec![Message::user("w1 w2")];
    let rendered = equipped.render(&talk(), &TemplateOptions::default()).unwrap();
    assert_eq!(rendered, "w1 w2 w7");
    let options = GenerateOptions::default().max_tokens(2);
    generate(&equipped, talk(), &options).unwrap();

    let parts = |kind: &str| -> Vec<Message> {
        let part = json!({"type": kind, "text": "w3"});
        serde_json::from_value(json!([{"role": "user", "content": [part]}])).unwrap()
    };
    generate(&equipped, parts("text"), &options).unwrap();
    refused(generate(&equipped, parts("image"), &options), "UnsupportedPart", &["image"]);
    let stranger = vec![Message::user("w1"), Message::new("narrator", "w2")];
    generate(&equipped, stranger.clone(), &options).unwrap();
    put(other.path(), "chat_template.jinja", "{{ messages[0].content }}");
    let deaf = equipped.with_tokenizer(other.path()).unwrap();
    refused(generate(&deaf, stranger, &options), "UnknownRole", &["narrator"]);

    put(folder.path(), "tokenizer.model", b"\x01");
    let loaded = block_on(Model::load(folder.path())).map_err(Error::into_cause);
    refused(loaded, "Tokenizer", &["tokenizer.model"]);
    refused(equipped.with_tokenizer(folder.path()), "Tokenizer", &["tokenizer.model"]);
}

#[test]
fn options_that_make_no_sense() {
    let model = block_on(Model::load(good())).unwrap();
    let (nan, infinity) = (f32::NAN, f32::INFINITY);
    fn xtc(probability: f32, threshold: f32) -> Xtc {
        Xtc { probability, threshold }
    }
    type Set = fn(&mut GenerateOptions, f32);
    let table: &[(&str, Set, &[f32])] = &[
        ("temperature", |o, v| o.temperature = v, &[-1.0, nan, infinity, -infinity]),
        ("top_p", |o, v| o.top_p = v, &[0.0, -1.0, 2.0, nan, infinity]),
        ("min_p", |o, v| o.min_p = v, &[-0.5, 2.0, nan, infinity]),
        ("typical_p", |o, v| o.typical_p = v, &[0.0, -1.0, 2.0, nan, infinity]),
        ("top_n_sigma", |o, v| o.top_n_sigma = v, &[-1.0, nan, infinity]),
        ("xtc.probability", |o, v| o.xtc = Some(xtc(v, 0.1)), &[-0.5, 2.0, nan]),
        ("xtc.threshold", |o, v| o.xtc = Some(xtc(0.5, v)), &[-0.5, 0.6, nan]),
        ("dry.multiplier", |o, v| o.dry.get_or_insert_default().multiplier = v, &[-1.0, nan]),
        ("dry.base", |o, v| o.dry.get_or_insert_default().base = v, &[0.5, nan, infinity]),
        ("dry.allowed_length", |o, _| o.dry.get_or_insert_default().allowed_length = 0, &[0.0]),
        ("repetition_penalty", |o, v| o.repetition_penalty = v, &[0.0, -1.0, nan, infinity]),
        ("presence_penalty", |o, v| o.presence_penalty = v, &[nan, infinity, -infinity]),
        ("frequency_penalty", |o, v| o.frequency_penalty = v, &[nan, infinity, -infinity]),
        ("logit_bias", |o, v| o.logit_bias = vec![(1, v)], &[nan, infinity]),
        ("top_logprobs", |o, v| o.top_logprobs = v as usize, &[97.0, f32::MAX]),
        ("min_tokens", |o, v| o.min_tokens = v as usize, &[4097.0]),
        ("stop", |o, _| o.stop = vec!["a".into(), String::new()], &[0.0]),
        ("prefill_chunk", |o, v| o.prefill_chunk = v as usize, &[0.0]),
    ];
    for (option, set, values) in table {
        for value in *values {
            let mut options = GenerateOptions::default();
            set(&mut options, *value);
            let result = generate(&model, Prompt::Tokens(vec![1]), &options);
            refused(result, "Option", &[option]);
        }
    }
    let options = GenerateOptions::default().logit_bias(vec![(96, 1.0)]);
    let result = generate(&model, Prompt::Tokens(vec![1]), &options);
    refused(result, "TokenOutOfVocabulary", &["96"]);
}

#[test]
fn places_where_no_checkpoint_is() {
    let folder = copy(good());
    let elsewhere = folder.path().join("elsewhere");
    refused(attempt(&elsewhere), "Io", &["elsewhere"]);
    refused(attempt(&folder.path().join(WEIGHTS)), "Io", &[WEIGHTS]);
    remove(folder.path(), CONFIG);
    fs::create_dir(folder.path().join(CONFIG)).unwrap();
    refused(attempt(folder.path()), "Io", &[CONFIG]);
}

/// A panic on the engine's thread is an error too.
#[test]
fn a_job_that_panics() {
    let result: Result<()> = block_on(Engine::get().unwrap().run(|| panic!("of the test")));
    refused(result, "Internal", &["of the test"]);
}
