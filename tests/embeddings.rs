//! Embedders and rerankers compute what sentence-transformers computes from checkpoints that it saved.

use mynah::{EmbedOptions, Embedder, Error, Model, RerankOptions, Reranker};
use mynah_tests::{Tensor, block_on, on_engine, write_tensors};
use serde::Deserialize;
use serde_json::Value as Json;
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
    sync::OnceLock,
};
use tempfile::TempDir;

/// Absolute; vectors are of length 1 or near it, and scores are probabilities.
const TOLERANCE: f32 = 1e-4;

#[derive(Deserialize)]
struct Fixture {
    cases: Vec<Case>,
}

#[derive(Clone, Deserialize)]
struct Case {
    name: String,
    /// The texts of its files.
    files: BTreeMap<String, String>,
    /// The tensors of its files of weights, by the formula of their names.
    weights: BTreeMap<String, BTreeMap<String, Tensor>>,
    texts: Vec<String>,
    /// What is embedded, of an embedder.
    #[serde(default)]
    runs: Vec<Run>,
    query: Option<String>,
    /// The scores of the texts, of a reranker.
    scores: Option<Vec<f32>>,
}

#[derive(Clone, Deserialize)]
struct Run {
    options: HashMap<String, Json>,
    vectors: Vec<Vec<f32>>,
}

fn cases() -> &'static [Case] {
    static CASES: OnceLock<Fixture> = OnceLock::new();
    let read = || {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/embeddings.json");
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    };
    &CASES.get_or_init(read).cases
}

impl Case {
    fn find(name: &str, is_reranker: bool) -> Case {
        let is_it = |case: &&Case| case.name == name && case.scores.is_some() == is_reranker;
        cases().iter().find(is_it).unwrap().clone()
    }

    fn write(&self) -> TempDir {
        // The name tells a reranker that its files do not.
        let folder = tempfile::Builder::new().prefix(&self.name).tempdir().unwrap();
        let place = |name: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        };
        for (name, text) in &self.files {
            fs::write(place(name), text).unwrap();
        }
        for (name, tensors) in self.weights.clone() {
            let file = place(&name);
            on_engine(move || write_tensors(&tensors, &file)).unwrap();
        }
        folder
    }

    /// With a file changed.
    fn with(mut self, name: &str, change: impl FnOnce(&mut Json)) -> Self {
        let file = self.files.entry(name.into()).or_insert_with(|| "{}".into());
        let mut json = serde_json::from_str(file).unwrap();
        change(&mut json);
        *file = json.to_string();
        self
    }
}

fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The error of what cannot be loaded, without the name of its folder.
fn refused<T>(result: mynah::Result<T>) -> Error {
    result.err().expect("it is refused").into_cause()
}

#[test]
fn vectors_are_those_of_sentence_transformers() {
    let mut failures = Vec::new();
    for case in cases().iter().filter(|case| case.scores.is_none()) {
        let folder = case.write();
        let embedder = match block_on(Embedder::load(folder.path())) {
            Ok(embedder) => embedder,
            Err(error) => {
                failures.push(format!("{}: {error}", case.name));
                continue;
            }
        };
        for run in &case.runs {
            let name =
                run.options.get("prompt_name").map(|name| name.as_str().unwrap().to_string());
            let cut = run.options.get("truncate_dim").map(|cut| cut.as_u64().unwrap() as usize);
            let options = EmbedOptions::default().batch_size(2).prompt_name(name).dimensions(cut);
            let found = block_on(embedder.embed(&case.texts, &options)).unwrap();
            for (i, (found, expected)) in found.vectors.iter().zip(&run.vectors).enumerate() {
                let scale = expected.iter().fold(1.0_f32, |most, x| most.max(x.abs()));
                let difference = difference(found, expected) / scale;
                if difference > TOLERANCE {
                    let options = &run.options;
                    failures.push(format!("{} {options:?} text {i}: {difference}", case.name));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn scores_are_those_of_sentence_transformers() {
    let mut failures = Vec::new();
    for case in cases() {
        let Some(expected) = &case.scores else { continue };
        let folder = case.write();
        let query = case.query.as_deref().unwrap();
        let ranked = block_on(async {
            let reranker = Reranker::load(folder.path()).await?;
            reranker.rerank(query, &case.texts, &RerankOptions::default().batch_size(2)).await
        });
        match ranked {
            Err(error) => failures.push(format!("{}: {error}", case.name)),
            Ok(ranked) => {
                assert!(ranked.windows(2).all(|pair| pair[0].score >= pair[1].score));
                let mut found = vec![0.0; expected.len()];
                ranked.iter().for_each(|ranked| found[ranked.index] = ranked.score);
                let difference = difference(&found, expected);
                if difference > TOLERANCE {
                    failures.push(format!("{}: {difference}: {found:?}", case.name));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_model_of_another_kind_is_refused() {
    let (embedder, reranker) =
        (Case::find("bert", false).write(), Case::find("bert", true).write());
    let generator = Case::find("qwen3 logits", true);
    let with = |names: &[&str]| {
        let mut case = generator.clone();
        case.files.retain(|name, _| !names.contains(&name.as_str()));
        case.write()
    };
    let generator = with(&["modules.json", "1_LogitScore/config.json"]);
    for error in [
        refused(block_on(Embedder::load(generator.path()))),
        refused(block_on(Embedder::load(reranker.path()))),
        refused(block_on(Reranker::load(generator.path()))),
        refused(block_on(Reranker::load(embedder.path()))),
        refused(block_on(async { Model::load(embedder.path()).await })),
        refused(block_on(async { Model::load(reranker.path()).await })),
    ] {
        assert!(matches!(error, Error::ModelKind { .. }), "{error}");
    }
}

#[test]
fn what_is_missing_or_unknown_is_named() {
    let error = |case: Case| refused(block_on(Embedder::load(case.write().path()))).to_string();
    let bert = || Case::find("bert", false);
    let mut alone = bert();
    alone.files.remove("modules.json");
    let found = error(alone);
    assert!(found.starts_with("modules.json: there is no such file"), "{found}");
    let unknown =
        |kind: &str| error(bert().with("modules.json", |list| list[1]["type"] = kind.into()));
    let found = unknown("sentence_transformers.models.CNN");
    assert_eq!(found, "modules.json: `[1].type`: modules `CNN` are not supported");
    let found = unknown("custom.Pooling");
    assert!(found.contains("code of its own, which is never run"), "{found}");
    let found =
        error(bert().with("modules.json", |list| drop(list.as_array_mut().unwrap().drain(1..))));
    assert_eq!(found, "modules.json: no module pools the tokens of a text to one vector");
    let found =
        error(bert().with("1_Pooling/config.json", |c| c["embedding_dimension"] = 31.into()));
    assert!(found.starts_with("1_Pooling/config.json: `embedding_dimension`: 31"), "{found}");
    let scaled = Case::find("gte", false).with("config.json", |c| {
        c["rope_scaling"] = serde_json::json!({"type": "ntk", "factor": 2.0});
    });
    let found = error(scaled);
    assert!(found.contains("the type `ntk` is not supported"), "{found}");
    let mut labels = Case::find("bert", true);
    let weights = labels.weights.get_mut("model.safetensors").unwrap();
    let shape = |shape: Json| serde_json::from_value::<Tensor>(shape).unwrap();
    weights.insert("classifier.weight".into(), shape(serde_json::json!([3, 32])));
    weights.insert("classifier.bias".into(), shape(serde_json::json!([3])));
    let found = refused(block_on(Reranker::load(labels.write().path()))).to_string();
    assert!(found.contains("the classifier has 3 labels; a reranker has one"), "{found}");
}

#[test]
fn requests_that_cannot_be_are_refused() {
    let folder = Case::find("bert", false).write();
    let embedder = block_on(Embedder::load(folder.path())).unwrap();
    let embed = |texts: &[&str], options: EmbedOptions| block_on(embedder.embed(texts, &options));
    let options = EmbedOptions::default;
    assert!(matches!(embed(&["a", ""], options()), Err(Error::EmptyText { index: 1 })));
    assert!(embed(&[], options()).unwrap().vectors.is_empty());
    for (refused, option) in [
        (options().dimensions(0), "dimensions"),
        (options().dimensions(33), "dimensions"),
        (options().batch_size(0), "batch_size"),
        (options().max_length(0), "max_length"),
        (options().max_length(25), "max_length"),
        (options().prompt_name("none".to_string()), "prompt_name"),
        (options().prompt("a".to_string()).prompt_name("query".to_string()), "prompt_name"),
    ] {
        match embed(&["a"], refused) {
            Err(Error::Option { option: found, .. }) => assert_eq!(found, option),
            other => panic!("{option}: {other:?}"),
        }
    }
    let cut = embed(&["a"], options().dimensions(8).normalize(true)).unwrap();
    let length: f32 = cut.vectors[0].iter().map(|x| x * x).sum();
    assert!((length - 1.0).abs() < 1e-5);
    let short = embed(&["The quick brown fox jumps over"], options().max_length(5)).unwrap();
    assert_eq!(short.tokens, [5]);
}
