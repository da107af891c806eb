//! Codecs, detectors and speakers compute what their references compute, whole and in parts.

use mlx_rs::{Array, ops};
use mynah::{
    Codes, EncodedAudio, Files, Result, Script, SpeakOptions,
    internals::{Codec, CodecStream, Kind, Network, Noise, SpeakerOutput, families, mlx},
};
use mynah_tests::{AudioCheckpoint, Tensor, on_engine};
use serde::Deserialize;
use std::{fs, path::Path, rc::Rc};

#[derive(Deserialize)]
struct Fixture {
    cases: Vec<Case>,
}

#[derive(Clone, Deserialize)]
struct Case {
    name: String,
    #[serde(flatten)]
    checkpoint: AudioCheckpoint,
    /// How many samples the input has.
    samples: Option<usize>,
    #[serde(default = "one")]
    channels: usize,
    sample_rate: Option<u32>,
    /// The codes of the input.
    codes: Option<Vec<GivenCodes>>,
    /// The features of the input.
    features: Option<Digest>,
    /// Codes to be decoded.
    given: Option<Vec<GivenCodes>>,
    /// The number of frames and bins of features to be decoded.
    frames: Option<usize>,
    bins: Option<usize>,
    /// What is decoded or spoken.
    audio: Option<Digest>,
    /// The probabilities of a detector.
    rows: Option<Digest>,
    phonemes: Option<String>,
    voice: Option<Vec<String>>,
    speed: Option<f32>,
    tokens: Option<Vec<u32>>,
    durations: Option<Vec<u32>>,
    f0: Option<Digest>,
    energy: Option<Digest>,
    /// Whether rounding turns phases by 2π, so that only the loudness of the samples is the reference's.
    #[serde(default)]
    phases_are_free: bool,
    /// How far numbers may be from the reference's, in deviations.
    #[serde(default = "narrow")]
    tolerance: f64,
}

fn one() -> usize {
    1
}

fn narrow() -> f64 {
    1e-3
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
struct GivenCodes {
    codebooks: Vec<Vec<u32>>,
    scale: Option<f32>,
}

/// The shape of an array, its mean and deviation, and 32 of its elements.
#[derive(Clone, Deserialize)]
struct Digest {
    shape: Vec<usize>,
    mean: f64,
    std: f64,
    samples: Vec<f64>,
}

impl Digest {
    fn compare(&self, what: &str, shape: &[usize], values: &[f32], tolerance: f64) {
        assert_eq!(shape, self.shape, "{what}");
        let allowed = 1e-5 + tolerance * self.std;
        let near = |what: &str, found: f64, expected: f64| {
            assert!((found - expected).abs() <= allowed, "{what}: {found}, not {expected}");
        };
        let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / values.len() as f64;
        near(&format!("{what}: mean"), mean, self.mean);
        for (i, expected) in self.samples.iter().enumerate() {
            let place = i * (values.len() - 1) / 31;
            near(&format!("{what}: element {place}"), f64::from(values[place]), *expected);
        }
    }
}

/// Numbers by the formula of a name.
fn formula(name: &str, shape: &[usize], range: (f64, f64)) -> Result<Vec<f32>> {
    let json = serde_json::json!({"shape": shape, "dtype": "F32", "from": range.0, "to": range.1});
    let tensor: Tensor = serde_json::from_value(json).unwrap();
    mlx::to_vec(&tensor.array(name)?)
}

impl From<GivenCodes> for Codes {
    fn from(given: GivenCodes) -> Self {
        Codes { codebooks: given.codebooks, scale: given.scale }
    }
}

impl Case {
    /// The model, with nothing left unread.
    fn network(&self, folder: &Path) -> Result<Network> {
        self.checkpoint.write(folder)?;
        let files = Files::from(folder);
        let config = files.json("config.json")?;
        let family = families::family(&files, config.as_ref())?;
        let config = config.unwrap_or_else(|| serde_json::json!({}));
        let weights = families::open(&files, family, &config)?;
        let checkpoint =
            families::Checkpoint { config: weights.config(), weights: &weights, files: &files };
        let network = family.build.network(&checkpoint)?;
        weights.finish(|_| {})?;
        Ok(network)
    }

    fn input(&self) -> Result<Option<Vec<f32>>> {
        let samples = |count| formula("samples", &[count, self.channels], (-0.5, 0.5));
        self.samples.map(samples).transpose()
    }

    fn check(&self) -> Result<()> {
        let folder = tempfile::tempdir().unwrap();
        match self.network(folder.path())? {
            Network::Codec(codec) => self.check_codec(&codec),
            Network::Detector(detector) => {
                let samples = self.input()?.unwrap();
                let rate = detector.sample_rate(self.sample_rate.unwrap());
                let expected = self.rows.as_ref().unwrap();
                // At once, and in parts of any length.
                for part in [usize::MAX, 700, 37] {
                    let mut stream = detector.stream(rate)?;
                    let mut rows = Vec::new();
                    for part in samples.chunks(part.min(samples.len())) {
                        rows.extend(stream.push(part)?);
                    }
                    rows.extend(stream.finish()?);
                    let shape = [rows.len(), rows[0].len()];
                    expected.compare(&self.name, &shape, &rows.concat(), self.tolerance);
                }
                Ok(())
            }
            // Language models that speak are tested in `speaking`.
            Network::Speaker(_) if self.phonemes.is_none() => Ok(()),
            Network::Speaker(speaker) => {
                let SpeakerOutput::Pieces(one_pass) = speaker.output() else { unreachable!() };
                let script = Script::Phonemes(self.phonemes.clone().unwrap());
                let options = SpeakOptions {
                    voices: self.voice.clone().unwrap(),
                    speed: self.speed.unwrap_or(1.0),
                    seed: None,
                    ..SpeakOptions::default()
                };
                let pieces = speaker.pieces(&script, &options, None)?;
                let speech = one_pass.speak(&pieces[0], &options)?;
                assert_eq!(pieces.len(), 1);
                assert_eq!(Some(speech.tokens), self.tokens);
                assert_eq!(Some(speech.durations), self.durations);
                let compare = |what: &str, expected: &Option<Digest>, found: &[f32], tolerance| {
                    let expected = expected.as_ref().unwrap();
                    expected.compare(what, &[found.len()], found, tolerance);
                };
                compare("pitch", &self.f0, &speech.f0, 1e-3);
                compare("loudness", &self.energy, &speech.energy, 1e-3);
                if !self.phases_are_free {
                    compare("audio", &self.audio, &speech.samples, self.tolerance);
                    return Ok(());
                }
                let audio = self.audio.as_ref().unwrap();
                assert_eq!(speech.samples.len(), audio.shape[0]);
                let squares = speech.samples.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
                let loudness = (squares / speech.samples.len() as f64).sqrt();
                let expected = audio.mean.hypot(audio.std);
                assert!((loudness / expected - 1.0).abs() < 0.15, "{loudness}, not {expected}");
                Ok(())
            }
            _ => panic!("{}: a model of another kind", self.name),
        }
    }

    fn check_codec(&self, codec: &Rc<dyn Codec>) -> Result<()> {
        if let Some(samples) = self.input()? {
            let shape = [1, self.samples.unwrap() as i32, self.channels as i32];
            match codec.encode(&Array::from_slice(&samples, &shape))? {
                EncodedAudio::Codes(found) => {
                    let expected = self.codes.clone().unwrap();
                    assert_eq!(found.len(), expected.len(), "{}", self.name);
                    for (found, expected) in found.iter().zip(&expected) {
                        assert_eq!(found.codebooks, expected.codebooks, "{}", self.name);
                        let scales =
                            [found.scale, expected.scale].map(|scale| scale.unwrap_or(1.0));
                        assert!((scales[0] / scales[1] - 1.0).abs() < 1e-5, "{scales:?}");
                    }
                }
                EncodedAudio::Features(found) => {
                    let shape = [found.len(), found[0].len()];
                    let expected = self.features.as_ref().unwrap();
                    expected.compare("features", &shape, &found.concat(), self.tolerance);
                }
            }
        }
        let given = match (&self.given, self.frames.zip(self.bins)) {
            (Some(given), _) => {
                EncodedAudio::Codes(given.iter().cloned().map(Codes::from).collect())
            }
            (None, Some((frames, bins))) => {
                let features = formula("features", &[frames, bins], (-2.0, 2.0))?;
                EncodedAudio::Features(features.chunks(bins).map(<[f32]>::to_vec).collect())
            }
            _ => return Ok(()),
        };
        let decoded = codec.decode(&given, Noise::Zero)?;
        let values: Vec<f32> = mlx::to_vec(&decoded)?;
        let shape = [decoded.dim(1) as usize, decoded.dim(2) as usize];
        self.audio.as_ref().unwrap().compare("audio", &shape, &values, self.tolerance);
        match &given {
            EncodedAudio::Codes(stretches) if stretches.len() == 1 => {
                check_stream(&self.name, codec, &stretches[0], &values)
            }
            _ => Ok(()),
        }
    }
}

#[test]
fn every_audio_family_has_a_fixture() {
    let audio = |family: &&families::Entry| {
        matches!(family.build.kind(), Kind::Codec | Kind::Detector | Kind::Speaker)
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/audio_models");
    for family in families::all().filter(audio) {
        let name = family.model_types[0];
        assert!(folder.join(format!("{name}.json")).exists(), "{name}");
    }
}

/// Parts of a stream are the samples of the whole, without a seam.
fn check_stream(name: &str, codec: &Rc<dyn Codec>, codes: &Codes, whole: &[f32]) -> Result<()> {
    let frames = codes.codebooks.iter().map(Vec::len).min().unwrap();
    for part in [1, 3, frames] {
        let mut stream = CodecStream::new(codec.clone(), Noise::Zero);
        let mut pieces = Vec::new();
        for start in (0..frames).step_by(part) {
            let end = frames.min(start + part);
            let cut = |codes: &Vec<u32>| {
                let ratio = codes.len() / frames;
                codes[start * ratio..end * ratio].to_vec()
            };
            let codebooks = codes.codebooks.iter().map(cut).collect();
            pieces.extend(stream.push(&Codes { codebooks, scale: None })?);
        }
        pieces.extend(stream.finish()?);
        let samples: Vec<f32> = mlx::to_vec(&ops::concatenate(&pieces, 1)?)?;
        assert_eq!(samples.len(), whole.len(), "{name}, parts of {part} frames");
        let farthest = samples.iter().zip(whole).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(farthest < 1e-4, "{name}, parts of {part} frames: {farthest}");
    }
    Ok(())
}

#[test]
fn audio_models_give_the_numbers_of_the_reference() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/audio_models");
    let only = std::env::var("MYNAH_FAMILY").unwrap_or_default();
    let mut paths: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let mut failures = Vec::new();
    for path in paths.iter().filter(|path| path.to_string_lossy().contains(&only)) {
        let text = fs::read_to_string(path).unwrap();
        let fixture: Fixture =
            serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        for case in fixture.cases {
            let label = format!("{}, {}", path.file_stem().unwrap().to_string_lossy(), case.name);
            if let Err(error) = on_engine(move || case.check()) {
                failures.push(format!("{label}: {error}"));
            }
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}
