//! Speech models compute what mlx-audio and transformers compute, and transcriptions of files, of samples and of live audio
//! agree.

use mlx_rs::Array;
use mynah::{
    Audio, AudioModel, Stage, Task, Timestamps, TranscribeOptions, Transcript, TranscriptionEvent,
};
use mynah_tests::{
    BUSY, Case, block_on,
    speech::{multilingual_tokenizer, sound},
};
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};
use std::{collections::BTreeMap, fs, path::Path, sync::PoisonError};

/// What the reference computes of one model.
#[derive(Deserialize)]
struct Expected {
    name: String,
    #[serde(default)]
    files: BTreeMap<String, String>,
    #[serde(default = "two")]
    seconds: f64,
    features: Option<Places>,
    encoder: Option<Places>,
    score: Option<Score>,
    transcript: Option<Text>,
    max_tokens: Option<usize>,
    align: Option<Align>,
}

/// A text, and where its words are.
#[derive(Deserialize)]
struct Align {
    text: String,
    language: String,
    words: Vec<(String, f64, f64)>,
}

fn two() -> f64 {
    2.0
}

/// The shape of an array, and its values at 32 places.
#[derive(Deserialize)]
struct Places {
    shape: [usize; 2],
    values: Vec<f32>,
}

#[derive(Deserialize)]
struct Score {
    prompt: usize,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
}

#[derive(Deserialize)]
struct Text {
    tokens: Vec<u32>,
    text: Option<String>,
    emotion: Option<String>,
    event: Option<String>,
}

fn cases() -> Vec<(Expected, Case)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/speech.json");
    let cases: Vec<Map<String, Json>> =
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let pair = |mut case: Map<String, Json>| {
        let expected = serde_json::from_value(Json::Object(case.clone())).unwrap();
        case.extend([
            ("tokens".into(), json!([])),
            ("probes".into(), json!([])),
            ("logprobs".into(), json!([])),
        ]);
        (expected, serde_json::from_value(Json::Object(case)).unwrap())
    };
    cases.into_iter().map(pair).collect()
}

/// The names of the cases, which begin with the name of their family.
pub fn names() -> Vec<String> {
    cases().into_iter().map(|(expected, _)| expected.name).collect()
}

/// Writes the checkpoint of a case.
fn write(folder: &Path, expected: &Expected, case: &Case) {
    let tensors = case.checkpoint().unwrap();
    let tensors: Vec<(&str, &Array)> =
        tensors.iter().map(|(name, array)| (&**name, array)).collect();
    Array::save_safetensors(tensors, None, folder.join("model.safetensors")).unwrap();
    fs::write(folder.join("config.json"), case.config.to_string()).unwrap();
    for (name, text) in &expected.files {
        fs::write(folder.join(name), text).unwrap();
    }
    if expected.name.starts_with("whisper") {
        fs::write(folder.join("tokenizer.json"), multilingual_tokenizer()).unwrap();
    }
}

/// The options of scripts/fixtures_speech.py.
fn options(expected: &Expected) -> TranscribeOptions {
    let language = if expected.name.starts_with("qwen3_asr") { "English" } else { "en" };
    TranscribeOptions::default()
        .language(language.to_string())
        .temperatures(vec![0.0])
        .no_speech_threshold(None)
        .inverse_text_normalization(true)
        .max_tokens(expected.max_tokens)
}

fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < tolerance, "{what}: {found} instead of {expected}");
    }
}

fn check(expected: &Expected, model: &AudioModel) {
    let (name, audio) = (&expected.name, sound(expected.seconds));
    for (places, stage) in
        [(&expected.features, Stage::FrontEnd), (&expected.encoder, Stage::Encoder)]
    {
        let Some(places) = places else { continue };
        let found = block_on(model.features(audio.clone(), stage)).unwrap();
        assert_eq!([found.frames, found.bins], places.shape, "{name} {stage:?}");
        let last = found.values.len() - 1;
        let values: Vec<f32> = (0..32).map(|i| found.values[i * last / 31]).collect();
        assert_close(&format!("{name} {stage:?}"), &values, &places.values, 2e-3);
    }
    if let Some(score) = &expected.score {
        let options = options(expected);
        let found = block_on(model.score(audio.clone(), &score.tokens, 2, &options)).unwrap();
        assert_eq!(found.0, score.prompt, "{name}");
        let logprobs: Vec<f32> = found.1.logprobs.iter().map(|p| p.unwrap()).collect();
        assert_close(name, &logprobs, &score.logprobs, 1e-3);
        assert_eq!(found.1.top.len(), score.tokens.len());
    }
    if let Some(align) = &expected.align {
        let found = model.align(audio.clone(), &align.text, Some(align.language.as_str()));
        let found: Vec<_> = block_on(found).unwrap();
        let found: Vec<_> =
            found.into_iter().map(|word| (word.word, word.start, word.end)).collect();
        assert_eq!(found, align.words, "{name}");
        let refused = |text: &str, language: &str| {
            block_on(model.align(audio.clone(), text, Some(language))).unwrap_err().to_string()
        };
        assert!(refused("...", "en").contains("no words"));
        assert!(refused("a", "Japanese").contains("dictionary"));
        let written = model.transcribe(audio.clone(), &TranscribeOptions::default()).unwrap();
        let error = block_on(written.finish()).unwrap_err().to_string();
        assert!(error.contains("writes no text"), "{error}");
    }
    if let Some(text) = &expected.transcript {
        let running = model.transcribe(audio, &options(expected)).unwrap();
        let found = block_on(running.finish()).unwrap();
        assert_eq!(found.tokens, text.tokens, "{name}");
        if let Some(text) = &text.text {
            assert_eq!(found.text, text.trim(), "{name}");
        }
        assert_eq!((&found.emotion, &found.event), (&text.emotion, &text.event), "{name}");
    }
}

#[test]
fn speech_models_compute_what_the_reference_computes() {
    let _busy = BUSY.read().unwrap_or_else(PoisonError::into_inner);
    let mut names = Vec::new();
    for (expected, case) in cases() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &expected, &case);
        let model = block_on(AudioModel::load(folder.path())).unwrap();
        check(&expected, &model);
        names.push(expected.name);
    }
    assert_eq!(names.len(), 15, "{names:?}");
}

fn transcribed(model: &AudioModel, audio: Audio, options: &TranscribeOptions) -> Transcript {
    block_on(model.transcribe(audio, options).unwrap().finish()).unwrap()
}

#[test]
fn windows_give_segments_words_and_languages() {
    let _busy = BUSY.read().unwrap_or_else(PoisonError::into_inner);
    let (expected, case) = cases().remove(0);
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &expected, &case);
    let model = block_on(AudioModel::load(folder.path())).unwrap();
    let greedy = TranscribeOptions::default()
        .temperatures(vec![0.0])
        .no_speech_threshold(None)
        .max_tokens(24);

    // Two windows and a part, from samples and from a file.
    let audio = sound(64.0);
    let words = greedy.clone().timestamps(Timestamps::Words);
    let whole = transcribed(&model, audio.clone(), &words);
    let path = folder.path().join("a.wav");
    audio.write_wav(&path).unwrap();
    let of_file = block_on(model.transcribe(path, &words).unwrap().finish()).unwrap();
    assert_eq!(of_file, whole);
    assert!(whole.segments.len() > 1 && whole.language.is_some());
    assert_eq!(whole.tokens.len(), whole.logprobs.len());
    let mut end = 0.0;
    for segment in &whole.segments {
        assert!(segment.start >= end - 1e-6 && segment.end > segment.start, "{segment:?}");
        assert!(segment.end <= 64.1, "{segment:?}");
        end = segment.start;
        for word in &segment.words {
            assert!(word.start <= word.end && (0.0..=1.0).contains(&word.probability));
        }
        let text: String = segment.words.iter().map(|word| word.word.as_str()).collect();
        assert_eq!(text.trim(), segment.text.trim());
    }

    // A temperature above 0 samples by its seed.
    let warm = |seed| greedy.clone().temperatures(vec![1.0]).seed(seed);
    let short = sound(3.0);
    let one = transcribed(&model, short.clone(), &warm(1));
    assert_eq!(transcribed(&model, short.clone(), &warm(1)), one);
    assert_ne!(transcribed(&model, short.clone(), &warm(2)).tokens, one.tokens);

    // What the model cannot do is said.
    let refused = |options: &TranscribeOptions| {
        let running = model.transcribe(short.clone(), options).unwrap();
        block_on(running.finish()).unwrap_err().to_string()
    };
    assert!(refused(&greedy.clone().language("tlh".to_string())).contains("`tlh` is not one of"));
    assert!(refused(&greedy.clone().temperatures(Vec::new())).contains("temperatures"));
    let translated = transcribed(&model, short.clone(), &greedy.clone().task(Task::Translate));
    assert!(!translated.tokens.is_empty());
    // Silence has no text.
    let silence = transcribed(&model, Audio::mono(vec![0.0; 32_000], 16_000), &greedy);
    assert_eq!((silence.text.as_str(), silence.segments.len()), ("", 0));
}

#[test]
fn live_audio_ends_with_what_its_samples_say() {
    let _busy = BUSY.read().unwrap_or_else(PoisonError::into_inner);
    let (expected, case) = cases().remove(0);
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &expected, &case);
    let model = block_on(AudioModel::load(folder.path())).unwrap();
    let options = TranscribeOptions::default()
        .language("en".to_string())
        .temperatures(vec![0.0])
        .no_speech_threshold(None)
        .max_tokens(12);
    let (mut live, mut events) = model.transcribe_live(48_000, &options).unwrap();
    let audio = Audio { sample_rate: 48_000, ..sound(12.0) };
    for part in audio.samples.chunks(4800) {
        live.push(part).unwrap();
    }
    drop(live);
    let (mut partial, mut segments, mut last) = (0, Vec::new(), None);
    while let Some(event) = block_on(events.next()) {
        match event.unwrap() {
            TranscriptionEvent::Partial { .. } => partial += 1,
            TranscriptionEvent::Segments { segments: some, .. } => segments.extend(some),
            TranscriptionEvent::Finished(transcript) => last = Some(transcript),
            _ => {}
        }
    }
    let transcript = last.unwrap();
    assert_eq!(transcript.segments, segments);
    assert!(!segments.is_empty());
    assert!(partial <= 4, "{partial}");
}
