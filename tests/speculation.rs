//! Speculation changes no token: those of verify passes are those of single steps, whatever the state of
//! the model, the sampling and the end of the text.

use mynah::{
    CacheQuantization, DEMO, Dry, Error, Event, FinishReason, GenerateOptions, Generation,
    LoadOptions, Location, Model, Prompt, SessionOptions, Speculation, Summary, Token, Xtc,
    internals::{Allowed, Constraint, Phase},
};
use mynah_tests::{Fixture, block_on, on_engine};
use serde_json::json;
use tempfile::TempDir;

/// Absolute, on log-probabilities of passes of another length.
const TOLERANCE: f32 = 1e-3;

/// Biases that leave three tokens.
const FEW: [(u32, f32); 3] = [(5, 30.0), (6, 30.0), (7, 30.0)];

/// Kinds of states: a full cache, windows, recurrences of three kinds, latents, and sinks.
const FAMILIES: [&str; 7] =
    ["llama", "gemma3_text", "mamba2", "lfm2", "olmo_hybrid", "deepseek_v3", "gpt_oss"];

/// The first case of a family, with room for longer texts.
fn load(family: &str) -> (TempDir, Model) {
    let (_, fixture) = Fixture::all().into_iter().find(|(name, _)| name == family).unwrap();
    let mut case = fixture.cases[0].clone();
    case.config["max_position_embeddings"] = json!(1024);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_path_buf();
    on_engine(move || case.write(&path)).unwrap();
    let model = block_on(Model::load(folder.path())).unwrap();
    (folder, model)
}

fn options(max_tokens: usize) -> GenerateOptions {
    GenerateOptions::default().max_tokens(max_tokens).ignore_end(true)
}

fn off(options: &GenerateOptions) -> GenerateOptions {
    options.clone().speculation(Speculation::Off)
}

fn always(options: &GenerateOptions) -> GenerateOptions {
    options.clone().speculation(Speculation::Always)
}

fn rest(stream: &mut Generation) -> (Vec<Token>, Summary) {
    let mut tokens = Vec::new();
    loop {
        match block_on(stream.next()).expect("the end comes before nothing").unwrap() {
            Event::Token(token) => tokens.push(token),
            Event::Finished(summary) => return (tokens, summary),
            _ => {}
        }
    }
}

fn generate(model: &Model, prompt: &[u32], options: &GenerateOptions) -> (Vec<Token>, Summary) {
    rest(&mut model.generate(Prompt::Tokens(prompt.to_vec()), options).unwrap())
}

fn ids(tokens: &[Token]) -> Vec<u32> {
    tokens.iter().map(|token| token.id).collect()
}

fn assert_equal(found: &[Token], expected: &[Token], what: &str) {
    assert_eq!(ids(found), ids(expected), "{what}");
    for (a, b) in found.iter().zip(expected) {
        assert!((a.logprob - b.logprob).abs() < TOLERANCE, "{what}: {a:?} and {b:?}");
        assert_eq!(a.top.len(), b.top.len(), "{what}");
    }
}

/// A text that quotes itself.
fn prompt() -> Vec<u32> {
    let words = (0..30).map(|i| 4 + (i * i * 7 + i * 13) % 90);
    words.clone().chain([1, 2]).chain(words.take(12)).collect()
}

#[test]
fn greedy_tokens_are_those_of_single_steps() {
    for family in FAMILIES {
        let (_folder, model) = load(family);
        // Among three tokens, some n-gram comes again.
        let options = options(90).top_logprobs(2).logit_bias(FEW.to_vec());
        let (expected, plain) = generate(&model, &prompt(), &off(&options));
        assert_eq!((plain.drafted_tokens, plain.accepted_tokens), (0, 0));
        for speculation in [Speculation::Always, Speculation::Auto] {
            let options = options.clone().speculation(speculation);
            let (found, summary) = generate(&model, &prompt(), &options);
            assert_equal(&found, &expected, family);
            assert_eq!(summary.generated_tokens, 90);
            assert_eq!(summary.finish_reason, FinishReason::Length);
            let (drafted, accepted) = (summary.drafted_tokens, summary.accepted_tokens);
            assert!(accepted <= drafted, "{family}: {accepted} of {drafted}");
            if speculation == Speculation::Always {
                assert!(drafted > 0, "{family}");
            }
        }
    }
}

#[test]
fn quantized_caches_are_taken_back() {
    // Its heads are as wide as a group.
    let model = block_on(Model::load(DEMO)).unwrap();
    for from in [0, 60] {
        let quantization = CacheQuantization::new(8, 32, from).unwrap();
        let session = || model.session(SessionOptions::default().quantization(quantization));
        let ask = |options: &GenerateOptions| {
            rest(&mut session().generate(Prompt::Tokens(prompt()), options).unwrap())
        };
        let options = options(60).logit_bias(FEW.to_vec());
        let expected = ask(&off(&options)).0;
        let (found, summary) = ask(&always(&options));
        assert_equal(&found, &expected, &format!("from {from}"));
        assert!(summary.drafted_tokens > 0);
    }
}

/// Among few tokens, earlier n-grams are frequent and drafts are right by chance only: all kinds of
/// acceptance occur, under all that depends on the tokens before.
#[test]
fn sampled_tokens_are_those_of_single_steps() {
    let (_folder, model) = load("llama");
    let sampled = |seed| options(80).temperature(1.0).logit_bias(FEW.to_vec()).seed(seed);
    type Edit = fn(GenerateOptions) -> GenerateOptions;
    let edits: [Edit; 5] = [
        |o| o,
        |o| o.top_logprobs(3).top_p(0.95).min_p(0.01),
        |o| o.repetition_penalty(1.2).frequency_penalty(0.1).presence_penalty(0.2),
        |o| o.dry(Dry::default()).min_tokens(40).end_tokens(vec![6]),
        |o| o.xtc(Xtc { probability: 0.5, threshold: 0.05 }).top_k(3),
    ];
    let (mut drafted, mut accepted) = (0, 0);
    for (seed, edit) in (1..).zip(edits) {
        let options = edit(sampled(seed));
        let expected = generate(&model, &prompt(), &off(&options)).0;
        let (found, summary) = generate(&model, &prompt(), &always(&options));
        assert_equal(&found, &expected, &format!("seed {seed}"));
        drafted += summary.drafted_tokens;
        accepted += summary.accepted_tokens;
    }
    assert!(accepted > 0 && accepted * 2 < drafted, "{accepted} of {drafted}");
}

#[test]
fn a_text_that_repeats_nothing_has_no_drafts() {
    let (_folder, model) = load("llama");
    let random = options(60).temperature(20.0).seed(3);
    let prompt: Vec<u32> = (4..40).collect();
    let (tokens, summary) = generate(&model, &prompt, &random);
    assert_eq!((tokens.len(), summary.drafted_tokens), (60, 0));
    let (_, summary) = generate(&model, &prompt, &always(&random));
    assert_eq!(summary.drafted_tokens, 0);
}

/// The text ends where it would have ended, and the session goes on from there.
#[test]
fn ends_cancellations_and_sessions_are_as_without() {
    for family in ["llama", "gemma3_text", "lfm2"] {
        let (_folder, model) = load(family);
        let whole = ids(&generate(&model, &prompt(), &off(&options(60))).0);
        // A token that the text repeats, so that it is drafted.
        let last = whole[40];
        let ends = options(60).end_tokens(vec![last]);
        let (expected, plain) = generate(&model, &prompt(), &off(&ends));
        let (found, summary) = generate(&model, &prompt(), &always(&ends));
        assert_equal(&found, &expected, family);
        assert_eq!(summary.finish_reason, plain.finish_reason);

        let session = model.session(SessionOptions::default());
        let mut turn = prompt();
        let mut stream =
            session.generate(Prompt::Tokens(turn.clone()), &always(&options(60))).unwrap();
        let mut said = Vec::new();
        while said.len() < 9 {
            if let Some(Ok(Event::Token(token))) = block_on(stream.next()) {
                said.push(token.id);
            }
        }
        stream.cancel();
        let (more, summary) = rest(&mut stream);
        said.extend(ids(&more));
        assert_eq!(said, whole[..said.len()], "{family}");
        assert_eq!(summary.generated_tokens, said.len());

        turn.extend(&said);
        turn.extend([9, 8, 7]);
        let expected = generate(&model, &turn, &off(&options(30))).0;
        for limit in [1, 3, 30] {
            let ask = always(&options(limit));
            let mut stream = session.generate(Prompt::Tokens(turn.clone()), &ask).unwrap();
            let (found, summary) = rest(&mut stream);
            assert_equal(&found, &expected[..limit], family);
            assert!(family != "llama" || summary.cached_tokens > prompt().len());
        }
    }
}

#[test]
fn stop_texts_end_the_text_as_without() {
    let demo = block_on(Model::load(DEMO)).unwrap();
    let ask = |options: &GenerateOptions| {
        let mut stream = demo.generate(Prompt::Raw("1 2 3 1 2 3 1 2 3".into()), options).unwrap();
        let (tokens, summary) = rest(&mut stream);
        let text: String = tokens.iter().map(|token| token.text.as_str()).collect();
        (text, summary)
    };
    let (text, _) = ask(&off(&options(60)));
    let stop: String = text.chars().skip(20).take(3).collect();
    let stops = options(60).stop([stop]);
    let ((expected, plain), (found, summary)) = (ask(&off(&stops)), ask(&always(&stops)));
    assert_eq!((found, summary.finish_reason), (expected, plain.finish_reason));
    assert_eq!(summary.generated_tokens, plain.generated_tokens);
}

struct Anything;

impl Constraint for Anything {
    fn mask(&mut self) -> mynah::Result<Allowed> {
        Ok(Allowed::All)
    }

    fn accept(&mut self, _: u32, _: Phase, _: &str) -> mynah::Result<()> {
        Ok(())
    }
}

#[test]
fn an_answer_under_a_constraint_is_not_speculated() {
    let (_folder, model) = load("llama");
    let expected = generate(&model, &prompt(), &off(&options(40))).0;
    let prompt = Prompt::Tokens(prompt());
    let constraint = Some(Box::new(Anything) as Box<dyn Constraint>);
    let mut stream = model.generate_within(prompt, &always(&options(40)), constraint).unwrap();
    let (found, summary) = rest(&mut stream);
    assert_equal(&found, &expected, "a constraint");
    assert_eq!(summary.drafted_tokens, 0);
}

/// A model that drafts for itself is right but for ties, whatever its own state has to take back.
#[test]
fn a_draft_model_changes_no_token() {
    for family in FAMILIES {
        let (_folder, model) = load(family);
        let drafted = model.with_draft(&model).unwrap();
        let words: Vec<u32> = (0..30).map(|i| 4 + (i * i * 7 + i * 13) % 90).collect();
        for options in [options(40), options(40).temperature(0.9).seed(5).top_k(2)] {
            let expected = generate(&model, &words, &off(&options)).0;
            let (found, summary) = generate(&drafted, &words, &always(&options));
            assert_equal(&found, &expected, family);
            let (drafted, accepted) = (summary.drafted_tokens, summary.accepted_tokens);
            assert!(accepted > 0, "{family}: {accepted} of {drafted}");
            if options.temperature == 0.0 {
                assert!(accepted * 4 >= drafted * 3, "{family}: {accepted} of {drafted}");
            }
        }
    }
}

#[test]
fn a_draft_model_that_is_wrong_changes_no_token_either() {
    let ((_target, model), (_other, other)) = (load("llama"), load("mamba2"));
    let drafted = model.with_draft(&other).unwrap();
    let session = drafted.session(SessionOptions::default());
    let mut turn: Vec<u32> = (4..60).collect();
    for _ in 0..3 {
        let expected = generate(&model, &turn, &off(&options(30))).0;
        for options in [always(&options(30)), options(30).speculation(Speculation::Auto)] {
            let mut stream = session.generate(Prompt::Tokens(turn.clone()), &options).unwrap();
            let (found, summary) = rest(&mut stream);
            assert_equal(&found, &expected, "a wrong draft");
            let is_counted = summary.drafted_tokens > summary.accepted_tokens;
            assert!(is_counted || options.speculation == Speculation::Auto, "{summary:?}");
        }
        turn.extend(ids(&expected));
        turn.extend([7, 3]);
    }
}

#[test]
fn a_draft_model_has_the_vocabulary_of_the_model() {
    let (folder, model) = load("llama");
    let (demo, again) = (block_on(Model::load(DEMO)).unwrap(), folder.path().to_path_buf());
    let refused = model.with_draft(&demo).err();
    assert!(matches!(refused, Some(Error::Option { option: "draft", .. })), "{refused:?}");
    demo.with_draft(&demo).unwrap();
    let load = |draft: Location| {
        block_on(Model::load(&*again).options(LoadOptions::default().draft(draft)))
    };
    let model = load(again.clone().into()).unwrap();
    let (tokens, summary) = generate(&model, &prompt(), &always(&options(20)));
    assert_eq!(tokens.len(), 20);
    assert!(summary.accepted_tokens > 0);
    let refused = load(DEMO.into()).err().map(Error::into_cause);
    assert!(matches!(refused, Some(Error::Option { option: "draft", .. })), "{refused:?}");
}
