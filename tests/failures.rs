//! A failure of the device becomes no text: streams go on with the tokens that they would have had, or
//! end with an error.

use mynah::{
    Engine, Error, ErrorKind, Event, GenerateOptions, Generation, Model, Prompt, Session,
    SessionOptions, Token, internals::fail_device,
};
use mynah_tests::{BUSY, Fixture, block_on, on_engine};
use std::time::Duration;
use tempfile::TempDir;

/// One of each kind: positions, windows, convolutions and attention, recurrences.
const FAMILIES: [&str; 4] = ["llama", "gemma3_text", "lfm2", "mamba2"];

/// Absolute, on log-probabilities: what is computed again adds in another order.
const TOLERANCE: f32 = 1e-4;

fn load(family: &str) -> (TempDir, Model) {
    let (_, fixture) = Fixture::all().into_iter().find(|(name, _)| name == family).unwrap();
    let case = fixture.cases[0].clone();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_path_buf();
    on_engine(move || case.write(&path)).unwrap();
    let model = block_on(Model::load(folder.path())).unwrap();
    (folder, model)
}

/// Options under which every token depends on the random state and on the tokens before it.
fn options(seed: u64) -> GenerateOptions {
    GenerateOptions::default()
        .max_tokens(40)
        .ignore_end(true)
        .temperature(0.8)
        .seed(seed)
        .repetition_penalty(1.3)
        .top_logprobs(3)
        .prefill_chunk(2)
}

/// A stream holds 32 events and its generation then waits: with more chunks than that, failures
/// between two events meet the prefill, and with more tokens, the decode steps.
const PROMPT: usize = 76;

fn prompt(seed: u32) -> Vec<u32> {
    (0..PROMPT as u32).map(|i| (i * 7 + seed * 13) % 90 + 1).collect()
}

fn start(session: &Session, seed: u32) -> Generation {
    session.generate(Prompt::Tokens(prompt(seed)), &options(seed.into())).unwrap()
}

/// What a generation gives out.
#[derive(Default)]
struct Answer {
    prefills: Vec<usize>,
    tokens: Vec<Token>,
}

impl Answer {
    /// Reads the next event; whether there are more.
    fn read(&mut self, stream: &mut Generation) -> Result<bool, Error> {
        match block_on(stream.next()).expect("the end comes before nothing")? {
            Event::Prefill { done, total } => {
                assert_eq!(total, PROMPT);
                self.prefills.push(done);
            }
            Event::Token(token) => self.tokens.push(token),
            Event::Finished(summary) => {
                assert_eq!(summary.generated_tokens, self.tokens.len());
                assert_eq!((summary.prompt_tokens, summary.cached_tokens), (PROMPT, 0));
                return Ok(false);
            }
            other => panic!("{other:?}"),
        }
        Ok(true)
    }

    fn rest(mut self, stream: &mut Generation) -> Self {
        while self.read(stream).unwrap() {}
        self
    }

    fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }

    fn assert_is(&self, expected: &Answer, context: &str) {
        assert_eq!(self.prefills, expected.prefills, "{context}");
        assert_eq!(self.ids(), expected.ids(), "{context}");
        for (token, expected) in self.tokens.iter().zip(&expected.tokens) {
            assert!((token.logprob - expected.logprob).abs() < TOLERANCE, "{context}");
            assert_eq!(token.top.len(), 3);
        }
    }
}

/// The tokens of a prompt that the session knows already, or restores.
fn repeat(session: &Session, seed: u32) -> Vec<u32> {
    let mut stream = start(session, seed);
    let mut tokens = Vec::new();
    while let Some(event) = block_on(stream.next()) {
        if let Event::Token(token) = event.unwrap() {
            tokens.push(token.id);
        }
    }
    tokens
}

fn undisturbed(model: &Model, seed: u32) -> Answer {
    Answer::default().rest(&mut start(&model.session(SessionOptions::default()), seed))
}

/// Two generations of a model, and what happens before each event of the first.
fn disturbed(model: &Model, mut disturb: impl FnMut(usize)) -> [Answer; 2] {
    let sessions = [1, 2].map(|_| model.session(SessionOptions::default()));
    let mut streams = [start(&sessions[0], 1), start(&sessions[1], 2)];
    let mut answers = [Answer::default(), Answer::default()];
    let (mut event, mut goes_on) = (0, true);
    while goes_on {
        disturb(event);
        event += 1;
        goes_on = false;
        for (answer, stream) in answers.iter_mut().zip(&mut streams) {
            goes_on |= answer.read(stream).unwrap();
        }
    }
    // What the sessions have kept is as good as new.
    for (session, seed) in sessions.iter().zip([1, 2]) {
        assert_eq!(repeat(session, seed), answers[seed as usize - 1].ids());
    }
    answers
}

#[test]
fn two_generations_go_on_after_failures() {
    let _alone = BUSY.write().unwrap();
    for family in FAMILIES {
        let (_folder, model) = load(family);
        let expected = [1, 2].map(|seed| undisturbed(&model, seed));
        for period in [7, 30] {
            let fail = |event: usize| {
                if event % period == period - 1 {
                    on_engine(fail_device).unwrap();
                }
            };
            for (answer, expected) in disturbed(&model, fail).iter().zip(&expected) {
                answer.assert_is(expected, &format!("{family}, every {period} events"));
            }
        }
    }
}

#[test]
fn a_failure_during_a_pause_loses_nothing() {
    let _alone = BUSY.write().unwrap();
    let engine = Engine::get().unwrap();
    for family in FAMILIES {
        let (_folder, model) = load(family);
        let expected = [1, 2].map(|seed| undisturbed(&model, seed));
        let pause = |event: usize| {
            match event % 12 {
                0 => on_engine(fail_device).unwrap(),
                1 | 7 => engine.expect_pause(),
                2 | 9 => assert!(engine.pause_within(Duration::from_secs(60))),
                _ => {}
            }
            engine.resume();
        };
        for (answer, expected) in disturbed(&model, pause).iter().zip(&expected) {
            answer.assert_is(expected, family);
        }
        let fail_and_pause = |event: usize| {
            if event.is_multiple_of(20) {
                on_engine(fail_device).unwrap();
                assert!(engine.pause_within(Duration::from_secs(60)));
                engine.resume();
            }
        };
        for (answer, expected) in disturbed(&model, fail_and_pause).iter().zip(&expected) {
            answer.assert_is(expected, family);
        }
    }
}

/// A generation that is dropped after a failure leaves nothing of it in its session.
#[test]
fn a_session_forgets_what_a_failure_left() {
    let _alone = BUSY.write().unwrap();
    let (_folder, model) = load("llama");
    let expected = undisturbed(&model, 1);
    for events in [0, 2, 5, 9] {
        let session = model.session(SessionOptions::default());
        let mut stream = start(&session, 1);
        (0..events).for_each(|_| drop(block_on(stream.next())));
        on_engine(fail_device).unwrap();
        drop(stream);
        let answer = Answer::default().rest(&mut start(&session, 1));
        answer.assert_is(&expected, &format!("after {events} events"));
    }
}

#[test]
fn saved_sessions_and_scores_are_not_those_of_a_failure() {
    let _alone = BUSY.write().unwrap();
    let (folder, model) = load("llama");
    let beside = undisturbed(&model, 2);
    let session = model.session(SessionOptions::default());
    let expected = Answer::default().rest(&mut start(&session, 1));
    let score = || block_on(model.score(Prompt::Tokens(prompt(3)), 1));
    let expected_score = score().unwrap();
    let file = folder.path().join("session.safetensors");

    let other = model.session(SessionOptions::default());
    let mut running = start(&other, 2);
    on_engine(fail_device).unwrap();
    block_on(session.save(&file)).unwrap();
    on_engine(fail_device).unwrap();
    let restored = block_on(model.restore(&file, SessionOptions::default())).unwrap();
    on_engine(fail_device).unwrap();
    assert_eq!(score().unwrap(), expected_score);
    Answer::default().rest(&mut running).assert_is(&beside, "beside a save");

    assert_eq!(repeat(&restored, 1), expected.ids());
}

/// A device that fails each step ends the streams with an error, and the next request is served.
#[test]
fn a_device_that_fails_always_is_an_error() {
    let _alone = BUSY.write().unwrap();
    let (_folder, model) = load("llama");
    let expected = undisturbed(&model, 1);
    let session = model.session(SessionOptions::default());
    let mut stream = start(&session, 1);
    let error = loop {
        // One job precedes each step.
        for _ in 0..4 {
            on_engine(fail_device).unwrap();
        }
        let event = stream.ready(1).pop();
        match event {
            Some(Err(error)) => break error,
            Some(Ok(Event::Finished(_))) => panic!("no step was disturbed"),
            _ => {}
        }
    };
    assert!(matches!(error, Error::Device(_)), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert_eq!(session.tokens_used(), 0);
    Answer::default().rest(&mut start(&session, 1)).assert_is(&expected, "after it");
}
