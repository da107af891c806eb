//! Language models that speak give the tokens, codes and samples of their references, and samples come
//! while the tokens still do.

use mynah::{Audio, AudioCodec, Error, Script, SpeakOptions, Speech, SpeechModel};
use mynah_tests::{AudioCheckpoint, Tensor, block_on, on_engine};
use serde::Deserialize;
use serde_json::json;
use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
};
use tempfile::TempDir;

#[derive(Deserialize)]
struct Fixture {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    #[serde(flatten)]
    checkpoint: AudioCheckpoint,
    codec: Option<AudioCheckpoint>,
    text: String,
    voice: Vec<String>,
    options: Options,
    reference: Option<Reference>,
    /// The tokens of all prompts.
    prompt: Vec<u32>,
    /// The tokens that the model writes.
    tokens: Vec<u32>,
    /// The codes of each codebook.
    books: Option<Vec<Vec<u32>>>,
    audio: Option<Digest>,
}

#[derive(Deserialize)]
struct Options {
    max_tokens: Option<usize>,
}

#[derive(Deserialize)]
struct Reference {
    samples: usize,
    text: String,
}

/// The shape of samples, their deviation, and 32 of them.
#[derive(Deserialize)]
struct Digest {
    shape: Vec<usize>,
    std: f64,
    samples: Vec<f64>,
}

impl Digest {
    fn compare(&self, what: &str, samples: &[f32]) {
        assert_eq!([samples.len()], *self.shape, "{what}");
        for (i, expected) in self.samples.iter().enumerate() {
            let found = f64::from(samples[i * (samples.len() - 1) / 31]);
            let allowed = 1e-5 + 1e-3 * self.std;
            assert!((found - expected).abs() < allowed, "{what}: {found}, not {expected}");
        }
    }
}

impl Case {
    fn all(family: &str) -> Vec<Case> {
        let path = format!("fixtures/audio_models/{family}.json");
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
        let fixture: Fixture = serde_json::from_str(&text).unwrap();
        fixture.cases
    }

    /// The model, and its codec, if it has one.
    fn load(&self) -> SpeechModel {
        let load = |checkpoint: &AudioCheckpoint| -> TempDir {
            let (folder, checkpoint) = (tempfile::tempdir().unwrap(), checkpoint.clone());
            let path = folder.path().to_path_buf();
            on_engine(move || checkpoint.write(&path)).unwrap();
            folder
        };
        let folder = load(&self.checkpoint);
        let model = block_on(SpeechModel::load(folder.path())).unwrap();
        let Some(codec) = &self.codec else { return model };
        let folder = load(codec);
        model.with_codec(&block_on(AudioCodec::load(folder.path())).unwrap())
    }

    /// The options of the reference, which samples greedily.
    fn options(&self, model: &SpeechModel) -> SpeakOptions {
        let reference = self.reference.as_ref().map(|reference| {
            let tensor = json!({
                "shape": [reference.samples, 1], "dtype": "F32", "from": -0.5, "to": 0.5,
            });
            let tensor: Tensor = serde_json::from_value(tensor).unwrap();
            let samples =
                on_engine(move || mynah::internals::mlx::to_vec::<f32>(&tensor.array("samples")?));
            let audio = Audio::mono(samples.unwrap(), model.sample_rate());
            model.reference(&audio, &*reference.text).unwrap()
        });
        SpeakOptions {
            voices: self.voice.clone(),
            seed: None,
            temperature: Some(0.0),
            max_tokens: self.options.max_tokens,
            reference,
            ..SpeakOptions::default()
        }
    }

    fn check(&self, model: &SpeechModel) {
        let parts = speak(model, &self.text, self.options(model)).unwrap();
        let all = join(&parts);
        assert_eq!(all.tokens, self.prompt, "{}", self.name);
        assert_eq!(all.generated, self.tokens, "{}", self.name);
        if let Some(books) = &self.books {
            assert_eq!(&all.codes, books, "{}", self.name);
        }
        match &self.audio {
            Some(audio) => audio.compare(&self.name, &all.samples),
            None => assert!(all.samples.is_empty(), "{}", self.name),
        }
    }
}

fn speak(model: &SpeechModel, text: &str, options: SpeakOptions) -> mynah::Result<Vec<Speech>> {
    let parts = Arc::new(Mutex::new(Vec::new()));
    let spoken = parts.clone();
    let out = move |part: Speech| spoken.lock().unwrap().push(part);
    block_on(model.speak(Script::Text(text.into()), options, out))?;
    let parts = std::mem::take(&mut *parts.lock().unwrap());
    Ok(parts)
}

fn join(parts: &[Speech]) -> Speech {
    let mut all = Speech::default();
    for part in parts {
        all.samples.extend(&part.samples);
        all.tokens.extend(&part.tokens);
        all.generated.extend(&part.generated);
        all.codes.resize(part.codes.len(), Vec::new());
        all.codes.iter_mut().zip(&part.codes).for_each(|(all, codes)| all.extend(codes));
    }
    all
}

#[test]
fn language_models_speak_as_their_references() {
    for family in ["orpheus", "qwen3_tts_base", "soprano"] {
        for case in Case::all(family) {
            case.check(&case.load());
        }
    }
}

#[test]
fn samples_come_before_the_last_token_and_seeds_repeat() {
    let case = Case::all("soprano").into_iter().nth(1).unwrap();
    let model = case.load();
    let parts = speak(&model, &case.text, case.options(&model)).unwrap();
    assert!(parts.len() > 2 && !parts[0].samples.is_empty(), "{} parts", parts.len());
    assert!(parts[0].generated.len() < case.tokens.len() / 2);

    let case = Case::all("orpheus").into_iter().next().unwrap();
    let model = case.load();
    let parts = speak(&model, &case.text, case.options(&model)).unwrap();
    let pieces = parts.iter().filter(|part| !part.tokens.is_empty()).count();
    assert!(parts.len() >= 2 * pieces, "{} parts of {pieces} pieces", parts.len());
    // The first samples follow from fewer tokens than a piece has.
    assert!(parts[0].generated.len() < case.options.max_tokens.unwrap());
    assert!(!parts[0].samples.is_empty());

    let warm = |seed| SpeakOptions {
        temperature: Some(20.0),
        top_p: Some(1.0),
        max_tokens: Some(12),
        seed: Some(seed),
        ..SpeakOptions::default()
    };
    let one = join(&speak(&model, "Hello", warm(1)).unwrap()).generated;
    assert_eq!(one, join(&speak(&model, "Hello", warm(1)).unwrap()).generated);
    assert_ne!(one, join(&speak(&model, "Hello", warm(2)).unwrap()).generated);
}

#[test]
fn what_a_speaker_cannot_do_is_said() {
    let case = Case::all("qwen3_tts_base").into_iter().next().unwrap();
    let model = case.load();
    let refused = |text: &str, options: SpeakOptions| match speak(&model, text, options) {
        Err(Error::Option { option, reason, .. }) => format!("{option}: {reason}"),
        other => panic!("{other:?}"),
    };
    let usual = SpeakOptions::default;
    assert!(refused(" \n", usual()).contains("no words"));
    assert!(refused("a", SpeakOptions { speed: 2.0, ..usual() }).starts_with("speed"));
    let voices = vec!["a".to_string(), "b".to_string()];
    assert!(refused("a", SpeakOptions { voices, ..usual() }).contains("averages no voices"));
    assert!(refused("a", SpeakOptions { top_p: Some(0.0), ..usual() }).starts_with("top_p"));
    let temperature = Some(f32::NAN);
    assert!(refused("a", SpeakOptions { temperature, ..usual() }).starts_with("temperature"));
    let silent = model.reference(&Audio::mono(vec![0.1; 64], 24_000), "").unwrap();
    let reference = Some(silent);
    assert!(refused("a", SpeakOptions { reference, ..usual() }).contains("text of the recording"));
    let phonemes = Script::Phonemes("a".into());
    let error = block_on(model.speak(phonemes, usual(), |_| {})).unwrap_err();
    assert!(error.to_string().contains("reads text"), "{error}");
    let nothing = model.reference(&Audio::mono(Vec::new(), 24_000), "a").unwrap_err();
    assert!(nothing.to_string().contains("no samples"), "{nothing}");

    // A model without its codec.
    let case = Case { codec: None, ..case };
    let error = speak(&case.load(), "a", usual()).unwrap_err();
    assert!(error.to_string().contains("another repository's codec"), "{error}");
}
