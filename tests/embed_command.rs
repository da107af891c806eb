//! `mynah embed` and `mynah rerank` over small checkpoints.

use mynah_tests::{Tensor, mynah, on_engine, write_tensors};
use serde_json::Value as Json;
use std::{collections::BTreeMap, fs, path::Path, process::Output};
use tempfile::TempDir;

/// Absolute.
const TOLERANCE: f32 = 1e-4;

/// The BERT of the fixture: the embedder, or the reranker.
fn checkpoint(is_reranker: bool) -> (TempDir, Json) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/embeddings.json");
    let mut fixture: Json = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let mut cases = fixture["cases"].as_array_mut().unwrap().drain(..);
    let is_it = |case: &Json| case["name"] == "bert" && case.get("scores").is_some() == is_reranker;
    let case = cases.find(is_it).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    };
    for (name, text) in case["files"].as_object().unwrap() {
        fs::write(place(name), text.as_str().unwrap()).unwrap();
    }
    for (name, tensors) in case["weights"].as_object().unwrap() {
        let tensors: BTreeMap<String, Tensor> = serde_json::from_value(tensors.clone()).unwrap();
        let file = place(name);
        on_engine(move || write_tensors(&tensors, &file)).unwrap();
    }
    (folder, case)
}

fn run(command: &str, folder: &TempDir, arguments: &[&str]) -> Output {
    mynah().arg(command).arg(folder.path()).args(arguments).output().unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json(output: &Output) -> Json {
    serde_json::from_str(&text(output)).unwrap()
}

fn numbers(json: &Json) -> Vec<f32> {
    serde_json::from_value(json.clone()).unwrap()
}

fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= TOLERANCE, "{found} {expected}");
    }
}

#[test]
fn embed_prints_the_vectors_of_the_reference() {
    let (folder, case) = checkpoint(false);
    let texts = [case["texts"][0].as_str().unwrap(), case["texts"][1].as_str().unwrap()];
    let arguments = ["--text", texts[0], "--text", texts[1]];
    let named = |run: &&Json| run["options"]["prompt_name"] == "document";
    let expected = case["runs"].as_array().unwrap().iter().find(named).unwrap();
    let options = ["--prompt-name", "document"];
    let report = json(&run("embed", &folder, &[&arguments[..], &options, &["--json"]].concat()));
    assert_eq!(report["dimensions"], 32);
    for text in [0_usize, 1] {
        assert_close(&numbers(&report["embeddings"][text]), &numbers(&expected["vectors"][text]));
    }
    let lines = text(&run("embed", &folder, &[&arguments[..], &["--dimensions", "8"]].concat()));
    let widths: Vec<_> = lines.lines().map(|line| line.split(' ').count()).collect();
    assert_eq!(widths, [8, 8]);
    let refused = run("embed", &folder, &["--text", "a", "--prompt-name", "none"]);
    assert_eq!(refused.status.code(), Some(1));
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(error.contains("no prompt `none`; it has `document`, `query`"), "{error}");
}

#[test]
fn rerank_prints_the_scores_of_the_reference() {
    let (folder, case) = checkpoint(true);
    let texts: Vec<String> = serde_json::from_value(case["texts"].clone()).unwrap();
    let mut arguments = vec!["--query", case["query"].as_str().unwrap()];
    texts.iter().for_each(|text| arguments.extend(["--document", text]));
    let report = json(&run("rerank", &folder, &[&arguments[..], &["--json"]].concat()));
    let mut found = vec![0.0; texts.len()];
    for result in report["results"].as_array().unwrap() {
        found[result["index"].as_u64().unwrap() as usize] =
            result["score"].as_f64().unwrap() as f32;
    }
    let expected = numbers(&case["scores"]);
    assert_close(&found, &expected);
    let best = (0..texts.len()).max_by(|a, b| expected[*a].total_cmp(&expected[*b])).unwrap();
    let lines = text(&run("rerank", &folder, &[&arguments[..], &["--top", "1"]].concat()));
    assert!(lines.lines().count() == 1 && lines.contains(&texts[best]), "{lines}");
}
