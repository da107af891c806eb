//! Options and constraints, as whole generations of the demo model show them.

use mynah::{
    DEMO, Dry, Error, Event, Files, FinishReason, GenerateOptions, Message, Model, Prompt, Result,
    Summary, TemplateOptions, Token, Xtc,
    internals::{Allowed, Constraint, Phase, TokenMask},
};
use mynah_tests::{Fixture, block_on};
use std::{
    fmt, fs,
    sync::{Mutex, OnceLock},
};
use tracing::{
    Metadata, Subscriber,
    field::Field,
    span::{Attributes, Id, Record},
};

const QUESTION: &str = "Where do you run?";
const ANSWER: &str = "I run on your own device, with MLX.";

fn demo() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| block_on(Model::load(DEMO)).unwrap())
}

fn answer(options: &GenerateOptions) -> (Vec<Token>, String, Summary) {
    let mut stream = demo().generate(vec![Message::user(QUESTION)], options).unwrap();
    block_on(async {
        let (mut tokens, mut text) = (Vec::new(), String::new());
        loop {
            match stream.next().await.unwrap().unwrap() {
                Event::Token(token) => {
                    text += &token.text;
                    tokens.push(token);
                }
                Event::Text(rest) => text += &rest,
                Event::Finished(summary) => return (tokens, text, summary),
                _ => {}
            }
        }
    })
}

#[test]
fn a_stop_text_ends_the_answer_wherever_its_letters_fall() {
    assert_eq!(answer(&GenerateOptions::default()).1, ANSWER);
    for (start, _) in ANSWER.char_indices() {
        for length in [1, 2, 5, 11] {
            let Some(stop) = ANSWER.get(start..start + length) else { continue };
            let first = ANSWER.find(stop).unwrap();
            let options = GenerateOptions::default().stop(["never said", stop]);
            let (tokens, text, summary) = answer(&options);
            assert_eq!(text, ANSWER[..first], "{stop:?}");
            assert_eq!(summary.finish_reason, FinishReason::Stop);
            assert_eq!(summary.generated_tokens, tokens.len());
        }
    }
    let options = GenerateOptions::default().stop(["MLX.!"]);
    assert_eq!(answer(&options).1, ANSWER);
}

#[test]
fn a_stop_text_without_a_tokenizer_is_refused() {
    let Files::Embedded(files) = DEMO else { panic!("the demo model is embedded") };
    let rest: Vec<_> =
        files.iter().copied().filter(|(name, _)| !name.starts_with("tokenizer")).collect();
    let model = block_on(Model::load(Files::Embedded(rest.leak()))).unwrap();
    let options = GenerateOptions::default().stop(["a"]);
    let refused = model.generate(Prompt::Tokens(vec![1]), &options).err();
    assert!(matches!(refused, Some(Error::NoTokenizer)));
}

/// A checkpoint of a family's fixture, with the tokenizer of the demo model and such files.
fn family(name: &str, files: &[(&str, &str)]) -> Model {
    let (_, fixture) = Fixture::all().into_iter().find(|(family, _)| family == name).unwrap();
    let folder = tempfile::tempdir().unwrap();
    fixture.cases[0].write(folder.path()).unwrap();
    let Files::Embedded(demo) = DEMO else { panic!("the demo model is embedded") };
    let tokenizer = demo.iter().find(|(file, _)| *file == "tokenizer.json").unwrap().1;
    fs::write(folder.path().join("tokenizer.json"), tokenizer).unwrap();
    for (file, text) in files {
        fs::write(folder.path().join(file), text).unwrap();
    }
    block_on(Model::load(folder.path())).unwrap()
}

#[test]
fn the_generation_config_goes_before_the_family() {
    let options = |file: &[(&str, &str)]| family("qwen3", file).default_options();
    let file = "generation_config.json";
    let none = GenerateOptions::default();
    let card = none.clone().temperature(0.6).top_p(0.95).top_k(20);
    assert_eq!(options(&[]), card);
    assert_eq!(options(&[(file, r#"{"eos_token_id": 7}"#)]), card);
    assert_eq!(options(&[(file, r#"{"do_sample": false, "top_k": 3}"#)]), none);
    let own = none.temperature(1.0).top_k(3).repetition_penalty(1.5);
    let text = r#"{"do_sample": true, "top_k": 3, "repetition_penalty": 1.5}"#;
    assert_eq!(options(&[(file, text)]), own);
}

#[test]
fn a_family_has_a_template_and_an_end_for_checkpoints_without_one() {
    // As `make_context` of QwenLM/Qwen, `qwen_generation_utils.py`, writes it.
    let chat = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n\
        <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n\
        <|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n";
    let said = [Message::user("Hi"), Message::assistant("Hello"), Message::user("Bye")];
    let render = |model: &Model, said: &[Message]| model.render(said, &TemplateOptions::default());
    let model = family("qwen", &[]);
    assert_eq!(render(&model, &said).unwrap(), chat);
    let end = model.tokenizer().unwrap().token_id("<|im_end|>").unwrap();
    assert!(model.end_tokens().contains(&end));
    let told = [&[Message::system("Be brief.")], &said[..]].concat();
    assert_eq!(
        render(&model, &told).unwrap(),
        chat.replace("You are a helpful assistant.", "Be brief.")
    );
    let own = family("qwen", &[("chat_template.jinja", "{{ messages[0].content }}")]);
    assert_eq!(render(&own, &said).unwrap(), "Hi");
    assert!(matches!(render(&family("qwen3", &[]), &said), Err(Error::NoChatTemplate)));
}

#[test]
fn special_tokens_have_a_text_when_asked() {
    let end = demo().end_tokens()[0];
    let end = demo().tokenizer().unwrap().decode(&[end], false).unwrap();
    let options = GenerateOptions::default().ignore_end(true).max_tokens(40);
    assert!(!answer(&options).1.contains(&end));
    assert!(answer(&options.special_tokens(true)).1.contains(&end));
}

#[test]
fn the_likeliest_tokens_come_along() {
    let options = GenerateOptions::default().top_logprobs(3);
    for token in answer(&options).0 {
        assert_eq!(token.top.len(), 3);
        assert_eq!(token.top[0], (token.id, token.logprob));
        assert!(token.top.is_sorted_by(|a, b| a.1 >= b.1));
    }
}

#[test]
fn forbidden_tokens_never_come() {
    let first = answer(&GenerateOptions::default()).0[0].id;
    let logit_bias = vec![(first, f32::NEG_INFINITY)];
    let (tokens, ..) = answer(&GenerateOptions::default().logit_bias(logit_bias));
    assert!(tokens.iter().all(|token| token.id != first));
}

#[test]
fn all_options_at_once_are_repeatable() {
    let options = GenerateOptions::default()
        .max_tokens(30)
        .min_tokens(25)
        .temperature(1.3)
        .top_k(40)
        .top_p(0.98)
        .min_p(0.001)
        .typical_p(0.99)
        .top_n_sigma(3.0)
        .xtc(Xtc { probability: 0.5, threshold: 0.2 })
        .dry(Dry::default())
        .repetition_penalty(1.1)
        .presence_penalty(0.1)
        .frequency_penalty(0.1)
        .penalty_context(64)
        .logit_bias(vec![(5, 0.5)])
        .seed(11)
        .top_logprobs(2);
    let (tokens, text, _) = answer(&options);
    assert!(tokens.len() >= 25);
    assert_eq!((&tokens, &text), (&answer(&options).0, &answer(&options).1));
    let other = options.seed(12);
    assert_ne!(tokens, answer(&other).0);
}

/// What the engine thread did for all generations, and what the logged constraint did, in order.
static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// The event of the engine thread for each forward pass.
const QUEUED: &str = "queued a forward pass";

fn log(entry: impl Into<String>) {
    LOG.lock().unwrap().push(entry.into());
}

/// Writes the events of generations to [`LOG`].
struct Logger;

impl Subscriber for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.target() == "mynah::engine::generation"
    }

    fn event(&self, event: &tracing::Event) {
        event.record(&mut |field: &Field, value: &dyn fmt::Debug| {
            if field.name() == "message" {
                log(format!("{value:?}"));
            }
        });
    }

    fn new_span(&self, _: &Attributes) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// Even ids after odd ones and odd ids after even ones, until `left` tokens have come.
struct Alternating {
    previous: u32,
    left: usize,
    is_logged: bool,
}

impl Alternating {
    fn allows(previous: u32, id: u32) -> bool {
        id % 2 != previous % 2
    }

    fn set(previous: u32) -> TokenMask {
        (0..demo().info().vocabulary).filter(|id| Alternating::allows(previous, *id)).collect()
    }
}

impl Constraint for Alternating {
    fn mask(&mut self) -> Result<Allowed> {
        if self.is_logged {
            log("mask");
        }
        if self.left == 0 {
            return Ok(Allowed::End);
        }
        Ok(Allowed::Tokens(Alternating::set(self.previous)))
    }

    fn accept(&mut self, id: u32, _: Phase, _: &str) -> Result<()> {
        if self.is_logged {
            log("accept");
        }
        (self.previous, self.left) = (id, self.left - 1);
        Ok(())
    }
}

/// The tokens of a constrained generation, and its end.
fn constrained(
    prompt: &[u32],
    options: &GenerateOptions,
    constraint: impl Constraint + 'static,
) -> (Vec<u32>, Result<Summary>) {
    let prompt = Prompt::Tokens(prompt.to_vec());
    let mut stream = demo().generate_within(prompt, options, Some(Box::new(constraint))).unwrap();
    let mut tokens = Vec::new();
    loop {
        match block_on(stream.next()).expect("a summary or an error ends the stream") {
            Ok(Event::Token(token)) => tokens.push(token.id),
            Ok(Event::Finished(summary)) => return (tokens, Ok(summary)),
            Ok(_) => {}
            Err(error) => return (tokens, Err(error)),
        }
    }
}

fn greedy(max_tokens: usize) -> GenerateOptions {
    GenerateOptions::default().max_tokens(max_tokens).ignore_end(true)
}

const START: [u32; 4] = [5, 17, 30, 8];

/// Each mask depends on the token before it, and is asked for after the pass of that token has been
/// queued.
#[test]
fn a_constraint_masks_each_token_by_the_one_before_it() {
    tracing::subscriber::set_global_default(Logger).unwrap();
    let mut expected = START.to_vec();
    for _ in 0..12 {
        let logits = block_on(demo().next_logits(Prompt::Tokens(expected.clone()))).unwrap();
        let previous = *expected.last().unwrap();
        let allowed = (0..logits.len() as u32).filter(|id| Alternating::allows(previous, *id));
        let best = allowed.max_by(|a, b| logits[*a as usize].total_cmp(&logits[*b as usize]));
        expected.push(best.unwrap());
    }
    let start = Alternating { previous: 8, left: 100, is_logged: true };
    let (tokens, summary) = constrained(&START, &greedy(12), start);
    assert_eq!(tokens, expected[START.len()..]);
    assert_eq!(summary.unwrap().finish_reason, FinishReason::Length);

    // Other generations may queue passes between two steps of this one, not within a step.
    let log = LOG.lock().unwrap().clone();
    let asked: Vec<usize> = (0..log.len()).filter(|at| log[*at] == "mask").collect();
    assert_eq!(asked.len(), 12, "{log:?}");
    assert_eq!(log[asked[0] - 1], QUEUED);
    for at in &asked[1..] {
        assert_eq!(log[at - 2..=*at], [QUEUED, "accept", "mask"]);
    }
    assert_eq!(log.iter().filter(|entry| **entry == "accept").count(), 12);
}

#[test]
fn a_constraint_ends_the_text() {
    for left in [0, 1, 3] {
        let start = Alternating { previous: 8, left, is_logged: false };
        let (tokens, summary) = constrained(&START, &greedy(12), start);
        assert_eq!(tokens.len(), left);
        assert_eq!(summary.unwrap().finish_reason, FinishReason::Stop);
    }
}

/// Allows these sets of tokens, one after the other.
struct Sets(Vec<Allowed>);

impl Constraint for Sets {
    fn mask(&mut self) -> Result<Allowed> {
        Ok(self.0.remove(0))
    }

    fn accept(&mut self, _: u32, _: Phase, _: &str) -> Result<()> {
        Ok(())
    }
}

fn only(ids: &[u32]) -> Allowed {
    Allowed::Tokens(ids.iter().copied().collect())
}

#[test]
fn a_mask_without_a_possible_token_is_an_error_after_the_tokens_before_it() {
    let end = demo().end_tokens()[0];
    let beyond = demo().info().vocabulary + 3;
    let sampled = greedy(12).temperature(1.0).seed(4);
    let forbids_nine = greedy(12).logit_bias(vec![(9, f32::NEG_INFINITY)]);
    let goes_on = greedy(12).min_tokens(4).ignore_end(false);
    for (options, last) in [
        (&greedy(12), only(&[])),
        (&sampled, only(&[])),
        (&greedy(12), only(&[beyond])),
        (&forbids_nine, only(&[9])),
        (&goes_on, only(&[end])),
    ] {
        let sets = Sets(vec![only(&[7, 9]), only(&[11]), last.clone()]);
        let (tokens, end) = constrained(&START, options, sets);
        assert!([7, 9].contains(&tokens[0]) && tokens[1..] == [11], "{last:?}: {tokens:?}");
        let position = START.len() + 2;
        assert!(matches!(end, Err(Error::NothingAllowed { position: at }) if at == position));
    }
}

#[test]
fn an_end_token_ends_a_constrained_text() {
    let end = demo().end_tokens()[0];
    let options = greedy(12).ignore_end(false);
    let sets = Sets(vec![only(&[7]), Allowed::Tokens([end].into_iter().collect())]);
    let (tokens, summary) = constrained(&START, &options, sets);
    assert_eq!(tokens, [7]);
    assert_eq!(summary.unwrap().finish_reason, FinishReason::Stop);
    let plain = constrained(&START, &greedy(5), Sets(vec![Allowed::All; 5])).0;
    let mut free = demo().generate(Prompt::Tokens(START.to_vec()), &greedy(5)).unwrap();
    let mut tokens = Vec::new();
    while let Some(event) = block_on(free.next()) {
        if let Event::Token(token) = event.unwrap() {
            tokens.push(token.id);
        }
    }
    assert_eq!(plain, tokens);
}
