//! Options as a whole generation of the demo model shows them.

use mynah::{
    DEMO, Dry, Error, Event, Files, FinishReason, GenerateOptions, Message, Model, Prompt, Summary,
    TemplateOptions, Token, Xtc,
};
use mynah_tests::{Fixture, block_on};
use std::{fs, sync::OnceLock};

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
        files.iter().copied().filter(|(name, _)| *name != "tokenizer.json").collect();
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
