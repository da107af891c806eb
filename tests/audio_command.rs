//! `mynah codec`, `vad` and `speak` over small checkpoints.

use mynah::Audio;
use mynah_tests::{AudioCheckpoint, Case, Tensor, mynah, on_engine, speech::sound, write_tensors};
use serde_json::Value as Json;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Output,
};
use tempfile::TempDir;

/// The first checkpoint of a family's fixture.
fn checkpoint(family: &str) -> (TempDir, Json) {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/audio_models/{family}.json"));
    let fixture: Json = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let case = fixture["cases"][0].clone();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), case["config"].to_string()).unwrap();
    let tensors: BTreeMap<String, Tensor> =
        serde_json::from_value(case["tensors"].clone()).unwrap();
    let file = folder.path().join("model.safetensors");
    on_engine(move || write_tensors(&tensors, &file)).unwrap();
    (folder, case)
}

/// A file of a tone.
fn tone(folder: &TempDir, seconds: f32, sample_rate: u32) -> PathBuf {
    let count = (seconds * sample_rate as f32) as usize;
    let sample =
        |i: usize| 0.4 * (i as f32 * 440.0 * std::f32::consts::TAU / sample_rate as f32).sin();
    let path = folder.path().join("tone.wav");
    Audio::mono((0..count).map(sample).collect(), sample_rate).write_wav(&path).unwrap();
    path
}

fn run(arguments: &[&str], folder: &TempDir, files: &[(&str, &PathBuf)]) -> Output {
    let mut command = mynah();
    command.args(arguments).arg(folder.path());
    for (option, path) in files {
        command.arg(option).arg(path);
    }
    command.output().unwrap()
}

fn json(output: &Output) -> Json {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn error(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

#[test]
fn a_codec_encodes_decodes_and_says_what_it_cannot_decode() {
    let (folder, case) = checkpoint("snac");
    let (audio, wav) = (tone(&folder, 0.05, 16_000), folder.path().join("out.wav"));
    let encoded = json(&run(&["codec", "encode"], &folder, &[("--audio", &audio)]));
    let books = encoded["codes"].as_array().unwrap();
    assert_eq!(books.len(), case["config"]["vq_strides"].as_array().unwrap().len());
    let codes = folder.path().join("codes.json");
    fs::write(&codes, encoded.to_string()).unwrap();
    let decode = |codes: &PathBuf| {
        run(&["codec", "decode"], &folder, &[("--codes", codes), ("--output", &wav)])
    };
    assert!(decode(&codes).status.success());
    let decoded = Audio::read(&wav).unwrap();
    assert_eq!((decoded.sample_rate, decoded.channels), (24_000, 1));
    let again = run(&["codec", "reconstruct"], &folder, &[("--audio", &audio), ("--output", &wav)]);
    assert!(again.status.success());
    assert_eq!(Audio::read(&wav).unwrap().samples.len(), 1_200);

    for (text, expected) in [
        (r#"{"codes": [[0, 1], [2]]}"#, "codes in codebook 1"),
        (r#"{"codes": [[999999]]}"#, "999999 in codebook 0"),
        (r#"{"codes": []}"#, "0 stretches of codes"),
        (r#"{"codes": "all"}"#, "neither [codebook][frame]"),
        (r#"{"features": [[0.5]]}"#, "decodes codes, not features"),
        ("{", "is not JSON"),
    ] {
        fs::write(&codes, text).unwrap();
        let found = error(&decode(&codes));
        assert!(found.contains(expected), "{text}: {found}");
    }
    let other = error(&run(&["vad"], &folder, &[("--audio", &audio)]));
    assert!(other.contains("an audio codec"), "{other}");
}

#[test]
fn voice_activity_is_found_at_any_rate_and_in_parts() {
    let (folder, _) = checkpoint("silero_vad");
    for rate in [8_000, 16_000, 44_100] {
        let audio = tone(&folder, 0.5, rate);
        let found = json(&run(&["vad", "--json"], &folder, &[("--audio", &audio)]));
        let hears = if rate == 8_000 { 8_000 } else { 16_000 };
        assert_eq!(found["sample_rate"], hears);
        let whole = found["probabilities"].as_array().unwrap();
        assert_eq!(whole.len(), 8_000_usize.div_ceil(512));
        let parts = ["vad", "--json", "--stream", "--chunk-seconds", "0.03"];
        let parts = json(&run(&parts, &folder, &[("--audio", &audio)]));
        let near =
            |(a, b): (&Json, &Json)| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-5;
        assert!(whole.iter().zip(parts["probabilities"].as_array().unwrap()).all(near));
    }
    let nothing = tone(&folder, 0.0, 16_000);
    let found = json(&run(&["vad", "--json"], &folder, &[("--audio", &nothing)]));
    assert_eq!(found["probabilities"].to_string(), "[]");
    assert_eq!(found["segments"].to_string(), "[]");
}

#[test]
fn a_language_model_speaks_with_its_codec() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/audio_models/orpheus.json");
    let fixture: Json = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let case = &fixture["cases"][1];
    let write = |case: &Json| {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint: AudioCheckpoint = serde_json::from_value(case.clone()).unwrap();
        let path = folder.path().to_path_buf();
        on_engine(move || checkpoint.write(&path)).unwrap();
        folder
    };
    let (folder, codec) = (write(case), write(&case["codec"]));
    let (audio, wav) = (tone(&folder, 0.01, 16_000), folder.path().join("out.wav"));
    let speak = |options: &[&str]| {
        let mut command = mynah();
        command.arg("speak").arg(folder.path()).args(["--output", wav.to_str().unwrap(), "--json"]);
        command.args(["--text", "Hello.", "--temperature", "0", "--max-tokens", "16"]);
        command.args(options).output().unwrap()
    };
    let codec = ["--codec", codec.path().to_str().unwrap()];
    let spoken = json(&speak(&[&codec[..], &["--noise", "zero"]].concat()));
    let lengths = |name: &str| spoken[name].as_array().unwrap().len();
    assert_eq!((lengths("tokens"), lengths("codes"), lengths("prompt_tokens")), (16, 3, 10));
    let samples = Audio::read(&wav).unwrap().samples.len();
    assert_eq!((Some(samples as u64), samples), (spoken["samples"].as_u64(), 64));

    // The recording and its text are an example before the prompt.
    let clone = ["--reference", audio.to_str().unwrap(), "--reference-text", "a"];
    let cloned = json(&speak(&[&codec[..], &clone].concat()));
    assert!(cloned["prompt_tokens"].as_array().unwrap().len() > 10 + 7);
    assert!(error(&speak(&[])).contains("another repository's codec"));
    let penalty = [&codec[..], &["--repetition-penalty", "0"]].concat();
    assert!(error(&speak(&penalty)).contains("repetition_penalty"));
}

#[test]
fn words_of_a_text_are_found_in_a_recording() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/speech.json");
    let cases: Vec<Json> = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let mut case = cases.into_iter().find(|case| case.get("align").is_some()).unwrap();
    let expected = case["align"].clone();
    for field in ["tokens", "probes", "logprobs"] {
        case[field] = Json::Array(Vec::new());
    }
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in case["files"].as_object().unwrap() {
        fs::write(folder.path().join(name), text.as_str().unwrap()).unwrap();
    }
    let (case, path): (Case, _) = (serde_json::from_value(case).unwrap(), folder.path().to_owned());
    on_engine(move || case.write(&path)).unwrap();
    let audio = folder.path().join("sound.wav");
    sound(3.3).write_wav(&audio).unwrap();
    let align = |text: &str, language: &str| {
        let mut command = mynah();
        command.arg("align").arg(folder.path()).arg("--audio").arg(&audio);
        command.args(["--text", text, "--language", language, "--json"]).output().unwrap()
    };
    let text = expected["text"].as_str().unwrap();
    let found = json(&align(text, expected["language"].as_str().unwrap()));
    let words = found["words"].as_array().unwrap().iter();
    let words = words.map(|word| serde_json::json!([word["word"], word["start"], word["end"]]));
    assert_eq!(Json::Array(words.collect()), expected["words"]);
    assert!(error(&align("?!", "English")).contains("no words"));
    assert!(error(&align("a", "ko")).contains("dictionary"));
}
