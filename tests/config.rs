//! Fields of configs: those that a model does not use are reported, those of them that change the
//! numbers are errors, and null is like absent.

use mynah::{
    DEMO, Error, Files, Model, Result,
    internals::{Scope, families},
};
use mynah_tests::{Case, Fixture, block_on, on_engine};
use serde_json::{Map, Value as Json, json};
use std::fs;
use tempfile::TempDir;

/// The demo model with further fields in its config.
fn demo_with(fields: Json) -> TempDir {
    let Files::Embedded(files) = DEMO else { unreachable!("the demo model is embedded") };
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(folder.path().join(name), content).unwrap();
    }
    let mut config = DEMO.json("config.json").unwrap().unwrap();
    let Json::Object(fields) = fields else { unreachable!("fields are an object") };
    config.as_object_mut().unwrap().extend(fields);
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    folder
}

/// Builds the model of a case under another config and gives the fields that it does not use. On
/// the engine's thread.
fn ignored(case: &Case, config: &Json) -> Result<Vec<String>> {
    let scope = case.with_lora(Scope::new(case.checkpoint()?, config)?)?;
    families::build(&scope)?;
    families::ignored_fields(&scope)
}

#[test]
fn a_field_that_changes_the_numbers_is_an_error_that_names_it() {
    for (field, value) in [
        ("use_alibi", json!(true)),
        ("qk_norm", json!(true)),
        ("attention_multiplier", json!(0.5)),
        ("residual_multiplier", json!(0.22)),
        ("logits_scaling", json!(8.0)),
        ("no_rope_layer_interval", json!(4)),
        ("partial_rotary_factor", json!(0.5)),
        ("final_logit_softcapping", json!(30.0)),
    ] {
        let folder = demo_with(json!({ field: value }));
        let error = block_on(Model::load(folder.path())).err().expect("it is refused").into_cause();
        assert!(
            matches!(&error, Error::Unsupported { field: named, .. } if named == field),
            "{error}"
        );
        let inspection = block_on(mynah::inspect(folder.path(), None)).unwrap();
        assert_eq!(inspection.problem, Some(error.to_string()));
    }
}

#[test]
fn an_unknown_field_is_reported_and_loads() {
    let folder = demo_with(json!({
        "my_field": 1, "rope_parameters": {"rope_type": "default", "mine": 2},
        "use_cache": true, "other": null, "use_alibi": false, "attention_multiplier": 1,
    }));
    let inspection = block_on(mynah::inspect(folder.path(), None)).unwrap();
    assert_eq!(inspection.problem, None);
    assert_eq!(inspection.ignored_fields, ["my_field", "rope_parameters.mine"]);
    block_on(Model::load(folder.path())).unwrap();
    assert!(block_on(mynah::inspect(DEMO, None)).unwrap().ignored_fields.is_empty());
}

/// Fields of fixtures that published configs have and that their families do not use, as the
/// reference does not; those of experts in cases without experts.
const IGNORED: &[(&str, &[&str])] = &[
    ("deepseek_v2", &["topk_method"]),
    ("laguna", &["sliding_window"]),
    ("mamba2", &["num_attention_heads", "rms_norm_eps", "state_size"]),
    ("qwen3_next", &["norm_topk_prob"]),
];

#[test]
fn every_fixture_uses_its_fields() {
    let found = on_engine(|| {
        let mut found = Vec::new();
        for (family, fixture) in Fixture::all() {
            let expected = IGNORED.iter().find(|(name, _)| *name == family);
            let expected = expected.map_or(&[][..], |(_, fields)| fields);
            let mut seen = Vec::new();
            for case in &fixture.cases {
                match ignored(case, &case.config) {
                    Ok(fields) => seen.extend(fields),
                    Err(error) => found.push(format!("{family}, {}: {error}", case.name)),
                }
            }
            seen.sort();
            seen.dedup();
            if seen != expected {
                found.push(format!("{family}: {seen:?} instead of {expected:?}"));
            }
        }
        Ok(found)
    });
    let found = found.unwrap();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// The paths of the fields of an object and of the objects in it, as those of `pointer`.
fn paths(config: &Json, prefix: &str) -> Vec<String> {
    let mut all = Vec::new();
    for (name, value) in config.as_object().into_iter().flatten() {
        let path = format!("{prefix}/{name}");
        all.extend(paths(value, &path));
        all.push(path);
    }
    all
}

fn object_of<'a>(config: &'a mut Json, path: &str) -> (&'a mut Map<String, Json>, String) {
    let (parent, name) = path.rsplit_once('/').unwrap();
    (config.pointer_mut(parent).unwrap().as_object_mut().unwrap(), name.to_string())
}

/// Fields of which null is a value of its own: there is no such limit, or other fields decide.
const NULL_IS_NONE: &[&str] = &["final_logit_softcapping", "num_key_value_heads"];

#[test]
fn a_null_field_is_never_worse_than_an_absent_one() {
    let failures = on_engine(|| {
        let mut failures = Vec::new();
        for (family, fixture) in Fixture::all() {
            let case = &fixture.cases[0];
            let differs = |path: &String| NULL_IS_NONE.iter().any(|name| path.ends_with(name));
            for path in paths(&case.config, "").into_iter().filter(|path| !differs(path)) {
                let [mut without, mut with_null] = [case.config.clone(), case.config.clone()];
                let (object, name) = object_of(&mut without, &path);
                object.remove(&name);
                let (object, name) = object_of(&mut with_null, &path);
                object.insert(name, Json::Null);
                let [absent, null] = [without, with_null].map(|config| ignored(case, &config));
                if absent.is_ok() && null.is_err() {
                    failures.push(format!("{family} {path}: {absent:?}, with null {null:?}"));
                }
            }
        }
        Ok(failures)
    });
    let failures = failures.unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
