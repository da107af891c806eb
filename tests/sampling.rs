//! Options as a whole generation of the demo model shows them.

use mynah::{
    DEMO, Dry, Error, Event, Files, FinishReason, GenerateOptions, Message, Model, Prompt, Summary,
    Token, Xtc,
};
use mynah_tests::block_on;
use std::sync::OnceLock;

const QUESTION: &str = "Where do you run?";
const ANSWER: &str = "I run on your own device, with MLX.";

fn demo() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| block_on(Model::load(DEMO, |_| {})).unwrap())
}

fn answer(options: &GenerateOptions) -> (Vec<Token>, String, Summary) {
    let mut stream = demo().generate(vec![Message::user(QUESTION)], options).unwrap();
    block_on(async {
        let (mut tokens, mut text) = (Vec::new(), String::new());
        loop {
            match stream.next().await.unwrap().unwrap() {
                Event::Prefill { .. } => {}
                Event::Token(token) => {
                    text += &token.text;
                    tokens.push(token);
                }
                Event::Finished(summary) => {
                    text += &summary.remaining_text;
                    return (tokens, text, summary);
                }
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
            let stops = vec!["never said".into(), stop.into()];
            let options = GenerateOptions { stop: stops, ..GenerateOptions::default() };
            let (tokens, text, summary) = answer(&options);
            assert_eq!(text, ANSWER[..first], "{stop:?}");
            assert_eq!(summary.finish_reason, FinishReason::Stop);
            assert_eq!(summary.generated_tokens, tokens.len());
        }
    }
    let options = GenerateOptions { stop: vec!["MLX.!".into()], ..GenerateOptions::default() };
    assert_eq!(answer(&options).1, ANSWER);
}

#[test]
fn a_stop_text_without_a_tokenizer_is_refused() {
    let Files::Embedded(files) = DEMO else { panic!("the demo model is embedded") };
    let rest: Vec<_> =
        files.iter().copied().filter(|(name, _)| *name != "tokenizer.json").collect();
    let model = block_on(Model::load(Files::Embedded(rest.leak()), |_| {})).unwrap();
    let options = GenerateOptions { stop: vec!["a".into()], ..GenerateOptions::default() };
    let refused = model.generate(Prompt::Tokens(vec![1]), &options).err();
    assert!(matches!(refused, Some(Error::Tokenizer { .. })));
}

#[test]
fn special_tokens_have_a_text_when_asked() {
    let end = demo().end_tokens()[0];
    let end = demo().tokenizer().unwrap().decode(&[end], false).unwrap();
    let options =
        GenerateOptions { ignore_end: true, max_tokens: 40, ..GenerateOptions::default() };
    assert!(!answer(&options).1.contains(&end));
    assert!(answer(&GenerateOptions { special_tokens: true, ..options }).1.contains(&end));
}

#[test]
fn the_likeliest_tokens_come_along() {
    let options = GenerateOptions { top_logprobs: 3, ..GenerateOptions::default() };
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
    let (tokens, ..) = answer(&GenerateOptions { logit_bias, ..GenerateOptions::default() });
    assert!(tokens.iter().all(|token| token.id != first));
}

#[test]
fn all_options_at_once_are_repeatable() {
    let options = GenerateOptions {
        max_tokens: 30,
        min_tokens: 25,
        temperature: 1.3,
        top_k: 40,
        top_p: 0.98,
        min_p: 0.001,
        typical_p: 0.99,
        top_n_sigma: 3.0,
        xtc: Some(Xtc { probability: 0.5, threshold: 0.2 }),
        dry: Some(Dry::default()),
        repetition_penalty: 1.1,
        presence_penalty: 0.1,
        frequency_penalty: 0.1,
        penalty_context: 64,
        logit_bias: vec![(5, 0.5)],
        seed: Some(11),
        top_logprobs: 2,
        ..GenerateOptions::default()
    };
    let (tokens, text, _) = answer(&options);
    assert!(tokens.len() >= 25);
    assert_eq!((&tokens, &text), (&answer(&options).0, &answer(&options).1));
    let other = GenerateOptions { seed: Some(12), ..options };
    assert_ne!(tokens, answer(&other).0);
}
