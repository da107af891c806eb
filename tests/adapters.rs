//! A model with an adapter through loading, sessions and inspection, and errors that name what does not
//! fit. The numbers of adapters are tested with those of the families.

use mlx_rs::{Array, Dtype};
use mynah::{
    Error, LoadOptions, Location, Model, Prompt, Result, SessionOptions, inspect,
    inspect_with_adapter,
};
use mynah_tests::{Case, Fixture, block_on, on_engine};
use serde_json::{Value as Json, json};
use std::{collections::HashMap, fs, path::Path};
use tempfile::TempDir;

const CONFIG: &str = "adapter_config.json";

fn case(name: &str) -> Case {
    let (_, fixture) = Fixture::all().into_iter().find(|(known, _)| known == "adapters").unwrap();
    fixture.cases.into_iter().find(|case| case.name == name).unwrap()
}

/// The checkpoint of a case and its adapter, each in a folder.
fn write(case: &Case) -> [TempDir; 2] {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [model, adapter] = folders.each_ref().map(|folder| folder.path().to_path_buf());
    let case = case.clone();
    on_engine(move || {
        case.write(&model)?;
        case.write_adapter(&adapter)
    })
    .unwrap();
    folders
}

fn load(model: &Path, adapter: Option<&Path>) -> Result<Model> {
    let mut options = LoadOptions::default();
    options.adapter = adapter.map(Location::from);
    block_on(Model::load(model).options(options)).map_err(Error::into_cause)
}

/// The log-probabilities of the probes of a case after its sequence.
fn last(case: &Case, model: &Model) -> Vec<f32> {
    let logits = block_on(model.next_logits(Prompt::Tokens(case.tokens.clone()))).unwrap();
    let sum = logits.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln() as f32;
    case.probes.iter().map(|probe| logits[*probe as usize] - sum).collect()
}

fn is_near(found: &[f32], expected: &[f32]) -> bool {
    found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-4)
}

#[test]
fn a_model_is_loaded_with_an_adapter() {
    for name in ["lora", "full", "peft"] {
        let case = case(name);
        let [folder, adapter] = write(&case);
        let plain = load(folder.path(), None).unwrap();
        let tuned = load(folder.path(), Some(adapter.path())).unwrap();
        let expected = case.logprobs.last().unwrap();
        assert!(is_near(&last(&case, &tuned), expected), "{name}");
        assert!(!is_near(&last(&case, &plain), expected), "{name}");
    }
}

#[test]
fn a_session_belongs_to_the_adapter_too() {
    let case = case("lora");
    let [folder, adapter] = write(&case);
    let plain = load(folder.path(), None).unwrap();
    let tuned = load(folder.path(), Some(adapter.path())).unwrap();
    let path = adapter.path().join("session.safetensors");
    let options = SessionOptions::default();
    let session = tuned.session(options);
    let mut answer = session.generate(Prompt::Tokens(vec![1, 2, 3]), &tuned.default_options());
    while block_on(answer.as_mut().unwrap().next()).is_some() {}
    block_on(session.save(&path)).unwrap();
    assert!(block_on(tuned.restore(&path, options)).is_ok());
    let refused = block_on(plain.restore(&path, options)).err();
    assert!(matches!(refused, Some(Error::SavedCache { .. })), "{refused:?}");
}

#[test]
fn an_inspection_counts_the_adapter() {
    for name in ["lora", "lora 4 bit", "experts", "fused", "dora"] {
        let [folder, adapter] = write(&case(name));
        let (model, adapter) = (folder.path(), adapter.path());
        let weights = |inspection: mynah::Inspection| inspection.memory.unwrap().weights;
        let plain = weights(block_on(inspect(model, None)).unwrap());
        let tuned = weights(block_on(inspect_with_adapter(model, adapter, None)).unwrap());
        let values = on_engine({
            let file = adapter.join("adapters.safetensors");
            move || {
                let tensors = Array::load_safetensors(file).unwrap();
                Ok(tensors.values().map(Array::nbytes).sum::<usize>())
            }
        });
        assert_eq!(tuned - plain, values.unwrap() as u64, "{name}");
    }
    let [_, adapter] = write(&case("fused"));
    let [other, _] = write(&case("lora"));
    let inspection = block_on(inspect_with_adapter(other.path(), adapter.path(), None)).unwrap();
    let problem = inspection.problem.unwrap();
    assert!(problem.contains("adapters.safetensors") && inspection.memory.is_none(), "{problem}");
}

type Tensors = HashMap<String, Array>;

/// Rewrites the adapter in a folder.
fn edit(folder: &Path, change: impl FnOnce(&mut Tensors) + Send + 'static) {
    let names = ["adapters.safetensors", "adapter_model.safetensors"];
    let file = names.map(|name| folder.join(name)).into_iter().find(|file| file.exists()).unwrap();
    on_engine(move || {
        let mut tensors = Array::load_safetensors(&file).unwrap();
        for tensor in tensors.values() {
            tensor.eval()?;
        }
        change(&mut tensors);
        Array::save_safetensors(&tensors, None, &file).unwrap();
        Ok(())
    })
    .unwrap();
}

fn set(folder: &Path, path: &str, value: Json) {
    let text = fs::read_to_string(folder.join(CONFIG)).unwrap();
    let mut config: Json = serde_json::from_str(&text).unwrap();
    let (parent, field) = path.rsplit_once('/').unwrap();
    let fields = config.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    match value {
        Json::Null => drop(fields.remove(field)),
        value => drop(fields.insert(field.into(), value)),
    }
    fs::write(folder.join(CONFIG), config.to_string()).unwrap();
}

fn q(leaf: &str) -> String {
    format!("model.layers.1.self_attn.q_proj.{leaf}")
}

/// A way to break an adapter, the variant of the error, and parts of its text.
type Break = (&'static str, fn(&Path), &'static str, &'static [&'static str]);

const MLX_LM: &[Break] = &[
    (
        "no config",
        |folder| fs::remove_file(folder.join(CONFIG)).unwrap(),
        "Config",
        &[CONFIG, "no such file"],
    ),
    (
        "no JSON",
        |folder| fs::write(folder.join(CONFIG), "{").unwrap(),
        "Config",
        &[CONFIG, "not JSON"],
    ),
    (
        "another kind",
        |folder| set(folder, "/fine_tune_type", json!("prefix")),
        "Unsupported",
        &[CONFIG, "fine_tune_type"],
    ),
    (
        "no parameters",
        |folder| set(folder, "/lora_parameters", Json::Null),
        "Config",
        &[CONFIG, "lora_parameters"],
    ),
    (
        "no scale",
        |folder| set(folder, "/lora_parameters/scale", Json::Null),
        "Config",
        &[CONFIG, "lora_parameters.scale"],
    ),
    (
        "no rank",
        |folder| set(folder, "/lora_parameters/rank", json!(0)),
        "Config",
        &[CONFIG, "lora_parameters.rank"],
    ),
    (
        "another rank",
        |folder| set(folder, "/lora_parameters/rank", json!(8)),
        "TensorShape",
        &["q_proj.lora_a", "[64, 4]", "[64, 8]"],
    ),
    (
        "no tensors",
        |folder| fs::remove_file(folder.join("adapters.safetensors")).unwrap(),
        "Checkpoint",
        &["adapters.safetensors"],
    ),
    (
        "half of the tensors",
        |folder| {
            let file = folder.join("adapters.safetensors");
            let bytes = fs::read(&file).unwrap();
            fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
        },
        "Checkpoint",
        &["adapters.safetensors"],
    ),
    (
        "one factor",
        |folder| edit(folder, |tensors| drop(tensors.remove(&q("lora_b")))),
        "Adapter",
        &["adapters.safetensors", "layers.1.self_attn.q_proj.lora_b"],
    ),
    (
        "the other factor",
        |folder| edit(folder, |tensors| drop(tensors.remove(&q("lora_a")))),
        "Adapter",
        &["adapters.safetensors", "layers.1.self_attn.q_proj.lora_a"],
    ),
    (
        "a layer that the model does not have",
        |folder| {
            edit(folder, |tensors| {
                let tensor = tensors.remove(&q("lora_a")).unwrap();
                tensors.insert("model.layers.7.self_attn.q_proj.lora_a".into(), tensor);
                tensors.remove(&q("lora_b"));
            });
        },
        "Adapter",
        &["adapters.safetensors", "model.layers.7.self_attn.q_proj.lora_a"],
    ),
    (
        "a magnitude without DoRA",
        |folder| {
            edit(folder, |tensors| {
                tensors.insert(q("m"), Array::from_slice(&[1.0_f32; 64], &[64]));
            });
        },
        "Adapter",
        &["model.layers.1.self_attn.q_proj.m"],
    ),
    (
        "no magnitude",
        |folder| set(folder, "/fine_tune_type", json!("dora")),
        "Adapter",
        &["adapters.safetensors", "q_proj.m"],
    ),
    (
        "a whole tensor",
        |folder| {
            edit(folder, |tensors| {
                tensors.insert(q("bias"), Array::from_slice(&[1.0_f32; 64], &[64]));
            });
        },
        "Adapter",
        &["model.layers.1.self_attn.q_proj.bias"],
    ),
    (
        "integers",
        |folder| {
            edit(folder, |tensors| {
                let integers = tensors[&q("lora_a")].as_dtype(Dtype::Int32).unwrap();
                tensors.insert(q("lora_a"), integers);
            });
        },
        "Adapter",
        &["q_proj.lora_a", "Int32"],
    ),
    (
        "one tensor twice",
        |folder| {
            edit(folder, |tensors| {
                let tensor = tensors[&q("lora_a")].clone();
                tensors.insert(format!("language_model.{}", q("lora_a")), tensor);
            });
        },
        "Adapter",
        &["language_model.model.layers.1.self_attn.q_proj.lora_a", "the same tensor"],
    ),
];

const FULL: &[Break] = &[
    (
        "another shape",
        |folder| {
            edit(folder, |tensors| {
                tensors.insert(q("weight"), Array::from_slice(&[1.0_f32; 64], &[8, 8]));
            });
        },
        "TensorShape",
        &["model.layers.1.self_attn.q_proj.weight", "[8, 8]"],
    ),
    (
        "another model",
        |folder| {
            edit(folder, |tensors| {
                tensors.insert("model.norms.weight".into(), Array::from_f32(1.0));
            });
        },
        "Adapter",
        &["adapters.safetensors", "model.norms.weight"],
    ),
];

const EXPERTS: &[Break] = &[(
    "DoRA",
    |folder| {
        set(folder, "/fine_tune_type", json!("dora"));
        edit(folder, |tensors| tensors.retain(|name, _| name.contains("switch_mlp")));
    },
    "Adapter",
    &["switch_mlp.gate_proj", "DoRA"],
)];

const PEFT: &[Break] = &[
    (
        "another method",
        |folder| set(folder, "/peft_type", json!("IA3")),
        "Unsupported",
        &[CONFIG, "peft_type"],
    ),
    ("biases", |folder| set(folder, "/bias", json!("all")), "Unsupported", &[CONFIG, "bias"]),
    (
        "whole modules",
        |folder| set(folder, "/modules_to_save", json!(["lm_head"])),
        "Unsupported",
        &[CONFIG, "modules_to_save"],
    ),
    (
        "ranks",
        |folder| set(folder, "/rank_pattern", json!({"q_proj": 2})),
        "Unsupported",
        &[CONFIG, "rank_pattern"],
    ),
    (
        "another beginning",
        |folder| set(folder, "/init_lora_weights", json!("pissa_niter_4")),
        "Unsupported",
        &[CONFIG, "init_lora_weights"],
    ),
    ("no rank", |folder| set(folder, "/r", Json::Null), "Config", &[CONFIG, "`r`"]),
    (
        "a bias",
        |folder| {
            edit(folder, |tensors| {
                let name = "base_model.model.model.layers.1.mlp.down_proj.lora_B.bias";
                tensors.insert(name.into(), Array::from_slice(&[1.0_f32; 64], &[64]));
            });
        },
        "Adapter",
        &["adapter_model.safetensors", "down_proj.lora_B.bias"],
    ),
];

#[test]
fn an_adapter_that_does_not_fit_is_an_error_that_names_the_tensor() {
    let mut failures = Vec::new();
    for (name, table) in [("lora", MLX_LM), ("full", FULL), ("experts", EXPERTS), ("peft", PEFT)] {
        let [model, good] = write(&case(name));
        for (what, spoil, variant, says) in table {
            let bad = tempfile::tempdir().unwrap();
            for entry in fs::read_dir(good.path()).unwrap() {
                let entry = entry.unwrap();
                fs::copy(entry.path(), bad.path().join(entry.file_name())).unwrap();
            }
            spoil(bad.path());
            match load(model.path(), Some(bad.path())) {
                Ok(_) => failures.push(format!("{name}, {what}: loads")),
                Err(error) => {
                    let (debug, text) = (format!("{error:?}"), error.to_string());
                    if !debug.starts_with(variant) || !says.iter().all(|part| text.contains(part)) {
                        failures.push(format!("{name}, {what}: {debug} ({text})"));
                    }
                }
            }
        }
        assert!(load(model.path(), Some(good.path())).is_ok());
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
