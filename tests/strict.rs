//! Bad input gives one error that names the file and what in it is at fault, and the process goes
//! on: after every failure a good model is loaded and run.

use mlx_rs::Array;
use mynah::{
    CachePlan, Engine, Error, Event, GenerateOptions, Message, Model, Prompt, Result, Score,
    TemplateOptions, Xtc, internals::prefill,
};
use mynah_tests::{Case, Fixture, block_on, on_engine};
use serde_json::{Map, Value as Json, json};
use std::{collections::BTreeMap, fs, path::Path, sync::OnceLock};
use tempfile::TempDir;

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Loads and runs a checkpoint.
fn attempt(folder: &Path) -> Result<Score> {
    block_on(async {
        let model = Model::load(folder, |_| {}).await?;
        Ok(model.score(Prompt::Tokens(vec![1, 2, 3]), 2).await?.1)
    })
}

fn case(family: &str, name: &str) -> Case {
    let (_, fixture) = Fixture::all().into_iter().find(|(known, _)| known == family).unwrap();
    fixture.cases.into_iter().find(|case| case.name == name).unwrap()
}

fn write(case: &Case) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (case, path) = (case.clone(), folder.path().to_path_buf());
    on_engine(move || case.write(&path)).unwrap();
    folder
}

fn copy(good: &Path) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(good).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

/// The first case of every family. What configs say of packings has a table of its own, and so do
/// adapters, whose models are those of other cases.
fn families() -> impl Iterator<Item = (String, Case)> {
    let is_family = |name: &str| !["adapters", "packings"].contains(&name);
    let families = Fixture::all().into_iter().filter(move |(name, _)| is_family(name));
    families.map(|(family, fixture)| (family, fixture.cases[0].clone()))
}

fn good() -> &'static Path {
    static GOOD: OnceLock<TempDir> = OnceLock::new();
    GOOD.get_or_init(|| write(&case("llama", "default"))).path()
}

/// A good model still gives what it gave at first.
fn goes_on() {
    static FIRST: OnceLock<Score> = OnceLock::new();
    let score = attempt(good()).unwrap();
    assert_eq!(score, *FIRST.get_or_init(|| score.clone()));
}

/// The variant of an error.
fn variant(error: &Error) -> String {
    let text = format!("{error:?}");
    text.split(|c: char| !c.is_alphanumeric()).next().unwrap().to_string()
}

/// Why an error is not the one that was asked for.
fn mismatch(found: Option<&Error>, expected: &str, says: &[&str]) -> Option<String> {
    let Some(error) = found else { return Some(format!("succeeds instead of {expected}")) };
    let text = error.to_string();
    let fits = variant(error) == expected && says.iter().all(|part| text.contains(part));
    (!fits).then(|| format!("{error:?} ({text}) instead of {expected} {says:?}"))
}

/// A way to break a checkpoint, and the variant and parts of the error's text.
type Break = (&'static str, fn(&Path), &'static str, &'static [&'static str]);

fn refuse_all(good: &Path, table: &[Break]) {
    let rows = table
        .iter()
        .map(|(what, spoil, expected, says)| refuse(good, what, spoil, (expected, says)));
    none(rows.flatten().collect());
}

/// A field of the config, a value that no model like this has, and more of the error's text.
type Setting<'a> = (&'a str, Json, &'a [&'a str]);

fn refuse_settings(good: &Path, table: &[Setting]) {
    let rows = table.iter().map(|(field, value, says)| {
        let says = [&[*field][..], *says].concat();
        let what = format!("{field} = {value}");
        refuse(good, &what, |folder| set(folder, field, value.clone()), ("Config", &says))
    });
    none(rows.flatten().collect());
}

/// Why a spoilt checkpoint is not refused as it should be.
fn refuse(
    good: &Path,
    what: &str,
    spoil: impl Fn(&Path),
    (expected, says): (&str, &[&str]),
) -> Option<String> {
    let folder = copy(good);
    spoil(folder.path());
    let failure = mismatch(attempt(folder.path()).err().as_ref(), expected, says);
    goes_on();
    failure.map(|failure| format!("{what}: {failure}"))
}

fn none(failures: Vec<String>) {
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

fn put(folder: &Path, name: &str, content: impl AsRef<[u8]>) {
    fs::write(folder.join(name), content).unwrap();
}

fn remove(folder: &Path, name: &str) {
    fs::remove_file(folder.join(name)).unwrap();
}

fn configure(folder: &Path, edit: impl FnOnce(&mut Map<String, Json>)) {
    let text = fs::read_to_string(folder.join(CONFIG)).unwrap();
    let mut config: Json = serde_json::from_str(&text).unwrap();
    edit(config.as_object_mut().unwrap());
    put(folder, CONFIG, config.to_string());
}

fn set(folder: &Path, field: &str, value: Json) {
    configure(folder, |config| drop(config.insert(field.into(), value)));
}

/// Rewrites the header of the weights and leaves the data as they are.
fn reheader(folder: &Path, edit: impl FnOnce(&mut Map<String, Json>)) {
    spoil_bytes(folder, |bytes| {
        let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header: Json = serde_json::from_slice(&bytes[8..end]).unwrap();
        edit(header.as_object_mut().unwrap());
        *bytes = framed(header.to_string().as_bytes(), &bytes[end..]);
    });
}

fn framed(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

fn spoil_bytes(folder: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
    let path = folder.join(WEIGHTS);
    let mut bytes = fs::read(&path).unwrap();
    edit(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// A tensor as a file holds it: type, shape, bytes.
type Raw = (String, Vec<usize>, Vec<u8>);

fn read_tensors(folder: &Path) -> BTreeMap<String, Raw> {
    let bytes = fs::read(folder.join(WEIGHTS)).unwrap();
    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: BTreeMap<String, Json> = serde_json::from_slice(&bytes[8..end]).unwrap();
    header.remove("__metadata__");
    let read = |(name, entry): (String, Json)| {
        let list = |field: &str| -> Vec<usize> {
            entry[field].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect()
        };
        let [start, stop] = list("data_offsets")[..] else { panic!("{name} has no offsets") };
        let data = bytes[end + start..end + stop].to_vec();
        (name, (entry["dtype"].as_str().unwrap().to_string(), list("shape"), data))
    };
    header.into_iter().map(read).collect()
}

fn write_tensors(folder: &Path, file: &str, tensors: &BTreeMap<String, Raw>) {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, (dtype, shape, bytes)) in tensors {
        let start = data.len();
        data.extend_from_slice(bytes);
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(name.clone(), entry);
    }
    put(folder, file, framed(Json::Object(header).to_string().as_bytes(), &data));
}

/// Writes the tensors as two shards; the index, if it is asked for, names both.
fn shard(folder: &Path, index: bool, edit: impl FnOnce(&mut [BTreeMap<String, Raw>; 2])) {
    let all = read_tensors(folder);
    let middle = all.keys().nth(all.len() / 2).unwrap().clone();
    let mut first = all;
    let second = first.split_off(&middle);
    let mut shards = [first, second];
    edit(&mut shards);
    remove(folder, WEIGHTS);
    let mut map = Map::new();
    for (i, tensors) in shards.iter().enumerate() {
        let file = format!("model-0000{}-of-00002.safetensors", i + 1);
        write_tensors(folder, &file, tensors);
        map.extend(tensors.keys().map(|name| (name.clone(), json!(file))));
    }
    if index {
        put(folder, INDEX, json!({"weight_map": map}).to_string());
    }
}

fn map_to(folder: &Path, target: Json) {
    put(folder, INDEX, json!({"weight_map": {"model.norm.weight": target}}).to_string());
}

#[test]
fn a_config_that_is_none() {
    refuse_all(
        good(),
        &[
            ("no config", |f| remove(f, CONFIG), "Config", &["config.json", "no such file"]),
            ("empty", |f| put(f, CONFIG, ""), "Config", &["config.json", "not JSON"]),
            ("truncated", |f| put(f, CONFIG, r#"{"model_type": "lla"#), "Config", &["not JSON"]),
            (
                "HTML",
                |f| put(f, CONFIG, "<!doctype html><title>404</title>"),
                "Config",
                &["not JSON"],
            ),
            ("not text", |f| put(f, CONFIG, b"\xff\xfe{}"), "Config", &["not JSON"]),
            ("null", |f| put(f, CONFIG, "null"), "Config", &["config.json", "model_type"]),
            ("a list", |f| put(f, CONFIG, "[]"), "Config", &["config.json", "model_type"]),
            (
                "deep",
                |f| put(f, CONFIG, "[".repeat(1 << 20)),
                "Config",
                &["config.json", "not JSON"],
            ),
            (
                "deep objects",
                |f| put(f, CONFIG, r#"{"a":"#.repeat(1 << 20)),
                "Config",
                &["config.json", "not JSON"],
            ),
            (
                "no type",
                |f| configure(f, |c| drop(c.remove("model_type"))),
                "Config",
                &["model_type"],
            ),
            ("a number as type", |f| set(f, "model_type", json!(3)), "Config", &["model_type"]),
            ("null as type", |f| set(f, "model_type", Json::Null), "Config", &["model_type"]),
            (
                "a misspelt type",
                |f| set(f, "model_type", json!("lama")),
                "UnknownModelType",
                &["`lama`", "did you mean llama"],
            ),
            (
                "a type like no other",
                |f| set(f, "model_type", json!("x".repeat(1 << 20))),
                "UnknownModelType",
                &["xxx"],
            ),
            ("an empty type", |f| set(f, "model_type", json!("")), "UnknownModelType", &["``"]),
            (
                "code",
                |f| set(f, "model_file", json!("model.py")),
                "CustomCode",
                &["config.json", "model_file", "model.py"],
            ),
        ],
    );
}

/// Fields that are in fixtures because published configs have them, and that no number follows
/// from in that family.
const UNREAD: &[(&str, &[&str])] = &[
    // Beside the name under which the tests count layers.
    ("afm7", &["num_layers"]),
    ("openelm", &["num_transformer_layers"]),
    // The outer config's size of the vocabulary counts.
    ("gemma3n", &["model_type", "vocab_size"]),
    ("bitnet", &["quantization_config", "quant_method", "linear_class", "quantization_mode"]),
    ("ernie4_5_moe", &["moe_capacity"]),
    ("gpt_oss", &["truncate"]),
    ("hunyuan", &["factor"]),
    ("hunyuan_v1_dense", &["beta_fast", "beta_slow", "factor"]),
    ("kimi_k25", &["vocab_size", "model_type"]),
    ("lfm2", &["block_dim"]),
    ("lille_130m", &["block_size"]),
    ("llama4", &["vocab_size", "model_type"]),
    ("llama", &["architectures"]),
    ("mamba2", &["intermediate_size", "time_step_rank"]),
    ("minimax_m3_vl", &["vocab_size"]),
    ("muse_spark", &["vocab_size"]),
    ("phimoe", &["short_factor", "short_mscale"]),
    ("mimo", &["num_nextn_predict_layers"]),
    ("minicpm3", &["short_factor"]),
    ("mistral3", &["vocab_size"]),
    ("phi3", &["short_factor"]),
    ("qwen3", &["use_sliding_window", "max_window_layers"]),
    ("gpt2", &["n_ctx", "scale_attn_weights"]),
    ("gptj", &["n_positions"]),
    ("olmo3", &["attention_factor"]),
];

/// Fields whose zero means "none of them".
const MAY_BE_ZERO: &[&str] = &[
    "hidden_size_per_layer_input",
    "num_kv_shared_layers",
    "rms_norm_eps",
    "norm_eps",
    "layer_norm_epsilon",
    "layer_norm_eps",
    "norm_epsilon",
    "max_window_layers",
    "num_experts",
    "num_kv_reuse_layers",
    "post_norm_eps",
    "altup_active_idx",
    "first_k_dense_replace",
    "n_shared_experts",
    "num_shared_experts",
    "moe_num_shared_experts",
    "num_dense_layers",
    "moe_intermediate_size",
    "moe_layer_start_index",
    "moe_layer_end_index",
    "router_jitter_noise",
    "zero_expert_num",
    "layernorm_epsilon",
    "sparse_local_block",
    "candidate_topk_blocks",
    "hc_eps",
    "swiglu_limit",
];

/// Fields that may be any number.
const MAY_BE_NEGATIVE: &[&str] = &[
    "attn_scale",
    "swiglu_alpha",
    "mscale",
    "mscale_all_dim",
    "llama_4_scaling_beta",
    "moe_layer_start_index",
    "moe_layer_end_index",
    "candidate_source_layer_id",
];

/// Fields of which absurd values make numbers overflow.
const OVERFLOW: &[&str] = &[
    "attn_scale",
    "moe_routed_scaling_factor",
    "attention_value_scale",
    "swiglu_alpha",
    "mup_width_multiplier",
    "rms_norm_eps",
    "rope_theta",
    "factor",
    "mscale",
    "mscale_all_dim",
    "original_max_position_embeddings",
    "llama_4_scaling_beta",
    "logits_scaling",
    "long_mscale",
    "compress_rope_theta",
    "gate_temp",
];

/// Fields that are checked against a second one, which the error may name instead.
const TIED: &[(&str, &str)] = &[
    ("num_attention_heads", "num_key_value_heads"),
    ("num_attention_heads", "head_dim"),
    ("hidden_size", "head_dim"),
    ("num_heads", "head_dim"),
    ("num_hidden_layers", "layer_types"),
    ("hidden_size", "rope_scaling.long_factor"),
    ("num_hidden_layers", "no_rope_layers"),
    ("partial_rotary_factor", "head_dim"),
    ("block_ff_dim", "intermediate_size"),
    ("num_attention_heads", "n_shared_head"),
    ("partial_rotary_factor", "head_dim"),
    ("rotary_pct", "head_dim"),
    ("rotary_pct", "partial_rotary_factor"),
    ("n_head", "rotary_dim"),
    ("n_embd", "rotary_dim"),
    ("n_embd", "intermediate_size"),
    ("n_head", "n_kv_heads"),
    ("n_head", "head_dim"),
    ("kv_channels", "head_dim"),
    ("num_attention_heads", "kv_channels"),
    ("num_hidden_layers", "no_rope_layers"),
    ("num_hidden_layers", "block_configs"),
    ("num_hidden_layers", "num_query_heads"),
    ("num_attention_heads", "block_configs[0].attention.n_heads_in_group"),
    ("head_dim", "num_query_heads"),
    ("num_hidden_layers", "num_kv_reuse_layers"),
    ("global_head_dim", "head_dim"),
    ("hidden_dim", "hidden_size"),
    ("model_dim", "hidden_size"),
    ("num_heads", "num_attention_heads"),
    ("num_heads", "num_key_value_heads"),
    ("num_kv_heads", "num_key_value_heads"),
    ("ff_intermediate_size", "intermediate_size"),
    ("layer_norm_epsilon", "rms_norm_eps"),
    ("rope_freq_constant", "rope_theta"),
    ("rope_embedding_base", "rope_theta"),
    ("share_input_output_layers", "tie_word_embeddings"),
    ("num_swa_attention_heads", "num_attention_heads"),
    ("num_swa_key_value_heads", "num_attention_heads"),
    ("n_shared_experts", "moe_intermediate_size"),
    ("num_shared_experts", "moe_intermediate_size"),
    ("moe_num_shared_experts", "moe_intermediate_size"),
    ("moe_intermediate_size", "n_shared_experts"),
    ("head_dim", "rotary_dim"),
    ("rotary_dim", "head_dim"),
    ("num_attention_heads", "rope_scaling.long_factor"),
    ("d_model", "head_dim"),
    ("n_heads", "kv_n_heads"),
    ("n_heads", "head_dim"),
    ("kv_n_heads", "num_key_value_heads"),
    ("n_embd", "n_inner"),
    ("num_attention_heads", "qk_nope_head_dim"),
    ("num_attention_heads", "v_head_dim"),
    ("hidden_size", "v_head_dim"),
    ("n_group", "topk_group"),
    ("index_n_heads", "index_head_dim"),
    ("hidden_size", "emb_split_num"),
    ("emb_neighbor_num", "emb_split_num"),
    ("num_hidden_layers", "layer_rope_theta"),
    ("n_routed_experts", "num_experts_per_tok"),
    ("n_routed_experts", "n_group"),
    ("num_hidden_layers", "hybrid_layer_pattern"),
    ("num_hidden_layers", "moe_layer_freq"),
    ("num_hidden_layers", "num_attention_heads_per_layer"),
    ("swa_num_attention_heads", "swa_head_dim"),
    ("num_attention_heads", "num_attention_groups"),
    ("moe_num_experts", "moe_top_k"),
    ("num_attention_heads", "index_n_heads"),
    ("sparse_num_index_heads", "index_n_heads"),
    ("sparse_num_index_heads", "sparse_index_dim"),
    ("sparse_index_dim", "head_dim"),
    ("index_head_dim", "qk_rope_head_dim"),
];

/// Fields that are written as integers and need not be.
const FRACTIONS: &[&str] = &[
    "rope_theta",
    "rotary_emb_base",
    "query_pre_attn_scalar",
    "original_max_position_embeddings",
    "scale_emb",
    "beta_fast",
    "beta_slow",
    "rope_freq_constant",
    "floor_scale",
];

/// The fields of an object and of the objects in it, as paths.
fn fields(config: &Json, prefix: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for (name, value) in config.as_object().into_iter().flatten() {
        let path = format!("{prefix}/{name}");
        paths.extend(fields(value, &path));
        paths.push(path);
    }
    paths
}

fn with(config: &Json, path: &str, value: Option<Json>) -> Json {
    let mut config = config.clone();
    let (parent, name) = path.rsplit_once('/').unwrap();
    let parent = config.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    match value {
        Some(value) => drop(parent.insert(name.into(), value)),
        None => drop(parent.remove(name)),
    }
    config
}

/// Whether an error is about a field or, where several are at odds, one that it is tied to.
fn names(error: &Error, path: &str) -> bool {
    let Error::Config { field, reason, .. } = error else { return false };
    let name = path.rsplit('/').next().unwrap();
    let parent = path.split('/').nth(1).unwrap();
    let named = field.rsplit('.').next().unwrap();
    let tied = TIED.contains(&(name, named)) || TIED.contains(&(name, field));
    field.contains(name) || field.contains(parent) || reason.contains(name) || tied
}

/// Whether an error says that the tensors have other sizes than the config.
fn is_about_tensors(error: &Error) -> bool {
    matches!(error, Error::TensorShape { .. } | Error::MissingTensor(_) | Error::UnusedTensors(_))
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// The field is gone or null: it may have a default, which may not fit.
    Gone,
    /// A value of another type.
    Mistyped,
    /// An integer that no such field can have.
    Impossible,
    /// A number that the field could have in another model.
    Other,
}

fn values(old: &Json, name: &str) -> Vec<(Kind, Option<Json>)> {
    use Kind::*;
    let mut values = vec![(Gone, None), (Gone, Some(Json::Null))];
    let mut mistyped = vec![json!("?"), json!([]), json!([[]]), json!({}), json!(true), json!(7)];
    mistyped.retain(|value| match (old, value) {
        (Json::String(_), Json::String(_)) | (Json::Bool(_), Json::Bool(_)) => false,
        (Json::Number(_), Json::Number(_)) => false,
        (Json::Array(_), Json::Array(list)) => !list.is_empty(),
        // A sequence fills the fields of a struct, and an empty object its defaults.
        (Json::Object(_), Json::Object(_) | Json::Array(_)) => false,
        // One width for all layers, or one for each.
        (Json::Array(_), Json::Number(_)) => !["intermediate_size", "rope_theta"].contains(&name),
        // Configs have had both.
        (Json::Bool(_), Json::Number(_)) => name != "attn_temperature_tuning",
        (Json::String(_), Json::Number(_)) => name != "sliding_window_pattern",
        (Json::Null, _) => false,
        _ => true,
    });
    values.extend(mistyped.into_iter().map(|value| (Mistyped, Some(value))));
    if old.is_i64() || old.is_f64() {
        let negative = if MAY_BE_NEGATIVE.contains(&name) { Other } else { Impossible };
        let zero = if MAY_BE_ZERO.contains(&name) { Other } else { negative };
        values.push((zero, Some(json!(0))));
        values.push((negative, Some(json!(-1))));
        values.push((Other, Some(json!(1))));
        values.push((Other, Some(json!(3))));
        values.push((Other, Some(json!(1_000_000_000))));
        values.push((Impossible, Some(json!({"__float__": "NaN"}))));
        values.push((Impossible, Some(json!({"__float__": "-Infinity"}))));
    }
    if old.is_i64() {
        let sizes = [1i64 << 24, (1 << 24) + 1, i64::from(i32::MAX), 1 << 31, 1 << 40, i64::MAX];
        values.extend(sizes.map(|size| (Other, Some(json!(size)))));
        let kind = if FRACTIONS.contains(&name) { Other } else { Mistyped };
        values.push((kind, Some(json!(1.5))));
    }
    if old.is_f64() {
        values.extend([1e-40, 1e30, 1e300].map(|value| (Other, Some(json!(value)))));
    }
    values
}

fn check_fields(family: &str, config: &Json, folder: &Path) -> Vec<String> {
    let unread =
        UNREAD.iter().find(|(name, _)| *name == family).map_or(&[][..], |(_, fields)| fields);
    let mut failures = Vec::new();
    for path in fields(config, "") {
        let name = path.rsplit('/').next().unwrap();
        for (kind, value) in values(config.pointer(&path).unwrap(), name) {
            let changed = with(config, &path, value.clone());
            put(folder, CONFIG, changed.to_string());
            let fits = match attempt(folder) {
                Ok(_) => kind == Kind::Gone || kind == Kind::Other || unread.contains(&name),
                Err(Error::UnknownModelType { .. }) => name == "model_type",
                Err(Error::ContextOverflow { .. }) => {
                    ["max_position_embeddings", "n_positions"].contains(&name)
                }
                Err(error) if kind == Kind::Impossible || kind == Kind::Mistyped => {
                    names(&error, &path)
                }
                Err(Error::NotANumber { .. }) => OVERFLOW.contains(&name),
                Err(error) => names(&error, &path) || is_about_tensors(&error),
            };
            if !fits {
                let outcome = match attempt(folder) {
                    Ok(_) => "succeeds".to_string(),
                    Err(error) => format!("{} {error}", variant(&error)),
                };
                failures.push(format!("{family} {path} = {value:?}: {outcome}"));
            }
        }
        goes_on();
    }
    failures
}

/// The process survives each field of each config with values of every type and size.
#[test]
fn every_field_of_every_family() {
    let mut failures = Vec::new();
    for (family, case) in families() {
        let folder = write(&case);
        failures.extend(check_fields(&family, &case.config, folder.path()));
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn a_config_at_odds_with_itself() {
    let scaling = "rope_scaling";
    let longrope = |factors: [i32; 8]| json!({"rope_type": "longrope", "long_factor": factors, "original_max_position_embeddings": 64});
    let short = json!({
        "rope_type": "longrope", "long_factor": [1.0], "original_max_position_embeddings": 64,
    });
    refuse_settings(
        good(),
        &[
            ("num_key_value_heads", json!(3), &["4 query heads"]),
            ("layer_types", json!(["full_attention"]), &["1 entries for 2 layers"]),
            ("layer_types", json!(vec!["full_attention"; 3]), &["3 entries for 2 layers"]),
            ("layer_types", json!(["full_attention", "linear_attention"]), &["[1]", "linear_at"]),
            ("layer_types", json!(["full_attention", 1]), &["layer_types[1]"]),
            (scaling, json!({"rope_type": "spiral", "factor": 2.0}), &[".rope_type", "spiral"]),
            (scaling, json!({"rope_type": "linear"}), &["rope_scaling.factor", "missing"]),
            (scaling, json!({"type": "yarn"}), &["rope_scaling.factor", "missing"]),
            (scaling, json!({"rope_type": "llama3", "factor": -8.0}), &[".factor", "-8"]),
            (scaling, json!({"rope_type": "dynamic", "factor": 0}), &[".factor", "0"]),
            (scaling, short, &["rope_scaling.long_factor", "1 factors for 8"]),
            (scaling, longrope([1, 1, 1, 1, 1, 1, 1, -1]), &["rope_scaling.long_factor", "-1"]),
        ],
    );
    refuse_all(
        good(),
        &[
            (
                "sliding layers without a window",
                |f| set(f, "layer_types", json!(["sliding_attention", "full_attention"])),
                "Config",
                &["sliding_window"],
            ),
            (
                "a factor that is not a number",
                |f| {
                    set(f, "rope_scaling", json!({"rope_type": "linear", "factor": 1}));
                    let config = fs::read_to_string(f.join(CONFIG)).unwrap();
                    put(f, CONFIG, config.replace("\"factor\":1", "\"factor\":NaN"));
                },
                "Config",
                &["rope_scaling.factor"],
            ),
            (
                "an infinite factor",
                |f| {
                    set(f, "rope_scaling", json!({"rope_type": "linear", "factor": 1}));
                    let config = fs::read_to_string(f.join(CONFIG)).unwrap();
                    put(f, CONFIG, config.replace("\"factor\":1", "\"factor\":Infinity"));
                },
                "Config",
                &["rope_scaling.factor"],
            ),
            (
                "longrope without a context",
                |f| {
                    configure(f, |c| drop(c.remove("max_position_embeddings")));
                    let scaling = json!({
                        "rope_type": "longrope", "long_factor": vec![1; 8],
                        "original_max_position_embeddings": 64,
                    });
                    set(f, "rope_scaling", scaling);
                },
                "Config",
                &["max_position_embeddings"],
            ),
            (
                "heads of one element",
                |f| {
                    set(f, "num_attention_heads", json!(64));
                    set(f, "num_key_value_heads", json!(32));
                },
                "Config",
                &["head_dim", "1"],
            ),
            (
                "more heads than elements",
                |f| set(f, "num_attention_heads", json!(128)),
                "Config",
                &["head_dim", "0"],
            ),
            (
                "an absurd number of layers",
                |f| set(f, "num_hidden_layers", json!(1 << 24)),
                "MissingTensor",
                &["model.layers.2."],
            ),
        ],
    );
}

#[test]
fn a_config_that_only_one_family_refuses() {
    let known: BTreeMap<_, _> = families().map(|(family, case)| (family, write(&case))).collect();
    let nan = json!({"__float__": "NaN"});
    let much = json!({"__float__": "much"});
    let settings: &[(&str, Setting)] = &[
        ("gemma3_text", ("text_config", json!(5), &[])),
        ("gemma3_text", ("use_bidirectional_attention", json!(true), &["embeddings"])),
        ("gemma4_text", ("num_kv_shared_layers", json!(4), &["4"])),
        ("glm4", ("partial_rotary_factor", json!(1.5), &["1.5"])),
        ("mistral3", ("text_config", json!({"model_type": "mamba2"}), &["mamba2"])),
        ("smollm3", ("no_rope_layers", json!([1, 0]), &["2 entries for 4 layers"])),
        ("gpt_oss", ("num_experts_per_tok", json!(5), &["5 of 4"])),
        ("mamba2", ("n_groups", json!(3), &["8 heads"])),
        ("mamba2", ("time_step_limit", json!([0.5, 0.25]), &[])),
        ("mamba2", ("time_step_limit", json!([nan, 1.0]), &[])),
        ("mamba2", ("time_step_limit", json!([0.0, much]), &[])),
        ("mamba2", ("time_step_limit", json!([0.0]), &[])),
        ("qwen3_moe", ("mlp_only_layers", json!(["first"]), &["mlp_only_layers[0]"])),
    ];
    for (family, setting) in settings {
        refuse_settings(known[*family].path(), std::slice::from_ref(setting));
    }
    let breaks: &[(&str, Break)] = &[
        (
            "gemma4_text",
            (
                "fewer inputs of layers than tokens",
                |f| {
                    set(f, "hidden_size_per_layer_input", json!(16));
                    set(f, "vocab_size_per_layer_input", json!(32));
                },
                "Config",
                &["vocab_size_per_layer_input", "32"],
            ),
        ),
        (
            "gemma4_text",
            (
                "nothing to share",
                |f| {
                    set(f, "num_kv_shared_layers", json!(1));
                    let mut kinds = vec!["sliding_attention"; 3];
                    kinds.push("full_attention");
                    set(f, "layer_types", json!(kinds));
                },
                "TensorShape",
                &["model.layers.1"],
            ),
        ),
        (
            "gemma4_text",
            (
                "experts without a number",
                |f| set(f, "enable_moe_block", json!(true)),
                "Config",
                &["num_experts", "missing"],
            ),
        ),
        (
            "gemma4_text",
            (
                "wide key heads that do not divide",
                |f| {
                    set(f, "attention_k_eq_v", json!(true));
                    set(f, "num_global_key_value_heads", json!(3));
                },
                "Config",
                &["num_global_key_value_heads", "4 query heads"],
            ),
        ),
        ("gemma4_text", ("many layers", many_layers, "TensorShape", &["model.layers."])),
        ("gpt_oss", ("many layers", many_layers, "MissingTensor", &["model.layers.2."])),
        (
            "qwen",
            (
                "no logarithm",
                |f| {
                    set(f, "use_logn_attn", json!(true));
                    set(f, "seq_length", json!(1));
                },
                "Config",
                &["seq_length"],
            ),
        ),
    ];
    for (family, spoil) in breaks {
        refuse_all(known[*family].path(), &[*spoil]);
    }
}

fn many_layers(folder: &Path) {
    configure(folder, |config| drop(config.remove("layer_types")));
    set(folder, "num_hidden_layers", json!(1 << 24));
}

/// Learned positions end, and what lies behind them is no memory of the model.
#[test]
fn a_sequence_with_more_tokens_than_positions() {
    let folder = write(&case("gpt2", "default"));
    let model = block_on(Model::load(folder.path(), |_| {})).unwrap();
    assert_eq!(model.info().context, Some(64));
    let score = |tokens| block_on(model.score(Prompt::Tokens(vec![1; tokens]), 2));
    refused(score(65), "ContextOverflow", &["65", "64"]);
    score(64).unwrap();
    let pass = |tokens: usize| {
        on_engine(move || {
            let model = case("gpt2", "default").model()?;
            let ids = Array::from_slice(&vec![1u32; tokens], &[1, tokens as i32]);
            prefill(&*model, &ids, &mut model.cache(&CachePlan::default())).map(drop)
        })
    };
    refused(pass(65), "ContextOverflow", &["65", "64"]);
    pass(64).unwrap();
}

#[test]
fn damaged_weights() {
    refuse_all(
        good(),
        &[
            ("none", |f| remove(f, WEIGHTS), "Checkpoint", &["no model*.safetensors"]),
            ("empty", |f| put(f, WEIGHTS, ""), "Checkpoint", &[WEIGHTS, "truncated"]),
            (
                "seven bytes",
                |f| spoil_bytes(f, |b| b.truncate(7)),
                "Checkpoint",
                &[WEIGHTS, "truncated"],
            ),
            (
                "cut in the header",
                |f| spoil_bytes(f, |b| b.truncate(100)),
                "Checkpoint",
                &[WEIGHTS, "truncated"],
            ),
            (
                "cut in the data",
                |f| spoil_bytes(f, |b| b.truncate(b.len() - 1)),
                "Checkpoint",
                &[WEIGHTS, "bytes"],
            ),
            (
                "a byte too many",
                |f| spoil_bytes(f, |b| b.push(0)),
                "Checkpoint",
                &[WEIGHTS, "bytes"],
            ),
            (
                "a header of no bytes",
                |f| spoil_bytes(f, |b| b[..8].copy_from_slice(&0u64.to_le_bytes())),
                "Checkpoint",
                &[WEIGHTS, "bad header"],
            ),
            (
                "a header that is cut short",
                |f| spoil_bytes(f, |b| b[..8].copy_from_slice(&9u64.to_le_bytes())),
                "Checkpoint",
                &[WEIGHTS, "bad header"],
            ),
            (
                "a header as long as the file",
                |f| {
                    spoil_bytes(f, |b| {
                        let all = b.len() as u64;
                        b[..8].copy_from_slice(&all.to_le_bytes());
                    })
                },
                "Checkpoint",
                &[WEIGHTS, "truncated"],
            ),
            (
                "a header of 2^63 bytes",
                |f| spoil_bytes(f, |b| b[..8].copy_from_slice(&(1u64 << 63).to_le_bytes())),
                "Checkpoint",
                &[WEIGHTS, "truncated"],
            ),
            (
                "a header of 2^64 - 1 bytes",
                |f| spoil_bytes(f, |b| b[..8].copy_from_slice(&u64::MAX.to_le_bytes())),
                "Checkpoint",
                &[WEIGHTS, "truncated"],
            ),
            (
                "a header that is not JSON",
                |f| spoil_bytes(f, |b| b[8..20].copy_from_slice(b"<!doctype ht")),
                "Checkpoint",
                &[WEIGHTS, "bad header"],
            ),
            (
                "a list as header",
                |f| put(f, WEIGHTS, framed(b"[]", b"")),
                "Checkpoint",
                &[WEIGHTS, "bad header"],
            ),
            (
                "a deep header",
                |f| put(f, WEIGHTS, framed("[".repeat(1 << 20).as_bytes(), b"")),
                "Checkpoint",
                &[WEIGHTS, "bad header"],
            ),
            (
                "a pointer of a large file store",
                |f| {
                    put(
                        f,
                        WEIGHTS,
                        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9",
                    )
                },
                "Checkpoint",
                &[WEIGHTS],
            ),
        ],
    );
}

const NORM: &str = "model.norm.weight";

fn entry(folder: &Path, edit: fn(&mut Map<String, Json>)) {
    reheader(folder, |header| edit(header[NORM].as_object_mut().unwrap()));
}

#[test]
fn a_header_that_lies() {
    refuse_all(
        good(),
        &[
            (
                "overlapping",
                |f| {
                    reheader(f, |header| {
                        let other = header["lm_head.weight"]["data_offsets"][0].as_u64().unwrap();
                        let size = header[NORM]["shape"][0].as_u64().unwrap() * 4;
                        header[NORM]["data_offsets"] = json!([other, other + size]);
                    })
                },
                "Checkpoint",
                &[WEIGHTS, "offset"],
            ),
            (
                "out of range",
                |f| {
                    entry(f, |e| {
                        drop(
                            e.insert(
                                "data_offsets".into(),
                                json!([1u64 << 40, (1u64 << 40) + 256]),
                            ),
                        )
                    })
                },
                "Checkpoint",
                &[WEIGHTS, "offset"],
            ),
            (
                "reversed",
                |f| entry(f, |e| e["data_offsets"].as_array_mut().unwrap().reverse()),
                "Checkpoint",
                &[WEIGHTS, NORM],
            ),
            (
                "negative",
                |f| entry(f, |e| drop(e.insert("data_offsets".into(), json!([-4, 0])))),
                "Checkpoint",
                &[WEIGHTS, NORM],
            ),
            (
                "larger than its bytes",
                |f| entry(f, |e| drop(e.insert("shape".into(), json!([65])))),
                "Checkpoint",
                &[WEIGHTS, NORM, "[65]"],
            ),
            (
                "larger than anything",
                |f| entry(f, |e| drop(e.insert("shape".into(), json!([1u64 << 40, 1u64 << 40])))),
                "Checkpoint",
                &[WEIGHTS, NORM],
            ),
            (
                "of a negative size",
                |f| entry(f, |e| drop(e.insert("shape".into(), json!([-64])))),
                "Checkpoint",
                &[WEIGHTS, NORM],
            ),
            (
                "empty and larger than 32 bits",
                |f| {
                    reheader(f, |header| {
                        let empty = json!({"dtype": "F32", "shape": [0, 1u64 << 40], "data_offsets": [0, 0]});
                        header.insert("empty".into(), empty);
                    })
                },
                "Checkpoint",
                &[WEIGHTS, "empty", "too large"],
            ),
            (
                "wider than its bytes",
                |f| entry(f, |e| drop(e.insert("dtype".into(), json!("F64")))),
                "Checkpoint",
                &[WEIGHTS, NORM],
            ),
            (
                "of an unknown type",
                |f| entry(f, |e| drop(e.insert("dtype".into(), json!("Q4_K")))),
                "Checkpoint",
                &[WEIGHTS, NORM, "Q4_K"],
            ),
            (
                "of a type that MLX has not",
                |f| {
                    entry(f, |e| {
                        e.insert("dtype".into(), json!("F64"));
                        e.insert("shape".into(), json!([32]));
                    })
                },
                "Checkpoint",
                &[WEIGHTS, NORM, "F64"],
            ),
            (
                "of integers",
                |f| entry(f, |e| drop(e.insert("dtype".into(), json!("I32")))),
                "Quantization",
                &[NORM, "Int32"],
            ),
            (
                "of bytes",
                |f| {
                    retensor(f, |t| {
                        let (dtype, _, data) = t.get_mut(NORM).unwrap();
                        *dtype = "U8".into();
                        data.truncate(data.len() / 4);
                    })
                },
                "Quantization",
                &[NORM, "Uint8"],
            ),
            (
                "of bytes that are floats",
                |f| {
                    retensor(f, |t| {
                        let (dtype, _, data) = t.get_mut(NORM).unwrap();
                        *dtype = "F8_E4M3".into();
                        data.truncate(data.len() / 4);
                    })
                },
                "Quantization",
                &[NORM],
            ),
            (
                "without a type",
                |f| entry(f, |e| drop(e.remove("dtype"))),
                "Checkpoint",
                &[WEIGHTS, NORM, "dtype"],
            ),
            (
                "without offsets",
                |f| entry(f, |e| drop(e.remove("data_offsets"))),
                "Checkpoint",
                &[WEIGHTS, NORM, "data_offsets"],
            ),
        ],
    );
}

#[test]
fn shards_that_do_not_fit_together() {
    let sharded = copy(good());
    shard(sharded.path(), true, |_| {});
    attempt(sharded.path()).unwrap();
    let unlisted = copy(good());
    shard(unlisted.path(), false, |_| {});
    attempt(unlisted.path()).unwrap();
    refuse_all(
        good(),
        &[
            (
                "a tensor in two shards",
                |f| {
                    shard(f, true, |[first, second]| {
                        let (name, tensor) = first.first_key_value().unwrap();
                        second.insert(name.clone(), tensor.clone());
                    })
                },
                "Checkpoint",
                &["two shards", "lm_head.weight"],
            ),
            (
                "a shard that is missing",
                |f| {
                    shard(f, true, |_| {});
                    remove(f, "model-00002-of-00002.safetensors");
                },
                "Checkpoint",
                &["model-00002-of-00002.safetensors", "missing"],
            ),
            (
                "a shard that is missing, without an index",
                |f| {
                    shard(f, false, |_| {});
                    remove(f, "model-00001-of-00002.safetensors");
                },
                "Checkpoint",
                &["1 of 2 shards"],
            ),
            (
                "a map to a path",
                |f| map_to(f, json!("../x.safetensors")),
                "Checkpoint",
                &[INDEX, NORM],
            ),
            (
                "a map to the root",
                |f| map_to(f, json!("/etc/passwd")),
                "Checkpoint",
                &[INDEX, NORM],
            ),
            ("a map to the parent", |f| map_to(f, json!("..")), "Checkpoint", &[NORM]),
            ("a map to a drive", |f| map_to(f, json!("C:\\x.safetensors")), "Checkpoint", &[INDEX]),
            ("a map to another file", |f| map_to(f, json!("config.json")), "Checkpoint", &[NORM]),
            ("a map to a number", |f| map_to(f, json!(1)), "Checkpoint", &[INDEX, NORM]),
            ("no map", |f| put(f, INDEX, "{}"), "Checkpoint", &[INDEX, "weight_map"]),
            ("a map to nothing", |f| map_to(f, Json::Null), "Checkpoint", &[INDEX, NORM]),
            ("an empty map", |f| put(f, INDEX, r#"{"weight_map": {}}"#), "Checkpoint", &[INDEX]),
            ("no JSON", |f| put(f, INDEX, "{"), "Config", &[INDEX, "not JSON"]),
        ],
    );
}

/// Each tensor of each family missing, of another shape, and one too many.
#[test]
fn every_tensor_of_every_family() {
    let mut failures = Vec::new();
    let more = [
        ("qwen3_moe", "original"),
        ("gpt_oss", "original"),
        ("llama", "4 bit"),
        ("packings", "awq, fused"),
        ("packings", "gptq experts"),
        ("packings", "pack-quantized with zeros"),
        ("packings", "nvfp4-pack-quantized"),
        ("packings", "mxfp4-pack-quantized"),
        ("packings", "float-quantized by row"),
        ("packings", "fp8 blocks"),
        ("packings", "fp8 with powers of two"),
        ("packings", "ModelOpt nvfp4"),
    ];
    let more = more.map(|(family, name)| (format!("{family}, {name}"), case(family, name)));
    for (family, case) in families().chain(more) {
        let folder = write(&case);
        let folder = folder.path();
        let good = read_tensors(folder);
        let mut check =
            |what: String, tensors: &BTreeMap<String, Raw>, name: &str, expected: &[&str]| {
                write_tensors(folder, WEIGHTS, tensors);
                let error = attempt(folder).err();
                let fits = error.as_ref().is_some_and(|error| {
                    expected.contains(&&*variant(error)) && error.to_string().contains(name)
                });
                if !fits {
                    let error = error.map(|error| format!("{error:?}"));
                    failures.push(format!("{family}: {what}: {error:?}"));
                }
            };
        let quantized = |name: &str| {
            let path = name.rsplit_once('.').map_or(name, |(path, _)| path);
            let beside = ["scales", "weight_scale", "weight_scale_inv"];
            beside.iter().any(|scales| good.contains_key(&format!("{path}.{scales}")))
                || name.ends_with("_scales")
        };
        let tied = case.config["tie_word_embeddings"] == true;
        for (name, (dtype, shape, data)) in &good {
            // A head beside a tied embedding is left alone.
            if tied && name == "lm_head.weight" || case.insensitive.contains(name) {
                continue;
            }
            let changed = |shape: Vec<usize>| {
                let mut tensors = good.clone();
                let size = data.len() / shape_size(&good[name].1) * shape_size(&shape);
                tensors.insert(name.clone(), (dtype.clone(), shape, vec![0; size]));
                tensors
            };
            let mut without = good.clone();
            without.remove(name);
            check(
                format!("without {name}"),
                &without,
                missing_name(name),
                &[
                    "MissingTensor",
                    // Packed integers without scales are no matrix.
                    if name.ends_with(".scales") { "TensorShape" } else { "MissingTensor" },
                    // Nor are bytes without scales.
                    if name.contains(".weight_scale") { "Quantization" } else { "MissingTensor" },
                ],
            );
            let wrong = if quantized(name) {
                &["TensorShape", "Quantization"][..]
            } else {
                &["TensorShape"]
            };
            let path = name.rsplit_once('.').map_or(&**name, |(path, _)| path);
            let named = if quantized(name) { path } else { name };
            for axis in 0..shape.len() {
                let mut larger = shape.clone();
                larger[axis] += 1;
                check(format!("{name} {larger:?}"), &changed(larger), named, wrong);
            }
            let turned: Vec<usize> = shape.iter().rev().copied().collect();
            if turned != *shape {
                check(format!("{name} turned"), &changed(turned), named, wrong);
            }
            // One scale is one scale.
            if shape_size(shape) > 1 && shape.len() > 1 {
                check(format!("{name} flat"), &changed(vec![shape_size(shape)]), named, wrong);
            }
        }
        for extra in ["extra", "model.layers.0.extra.weight", "model.layers.9.mlp.up_proj.weight"] {
            let mut tensors = good.clone();
            tensors.insert(extra.into(), ("F32".into(), vec![1], vec![0; 4]));
            check(format!("with {extra}"), &tensors, extra, &["UnusedTensors"]);
        }
        goes_on();
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

fn shape_size(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// The part of a name that the error about a missing tensor must have.
fn missing_name(name: &str) -> &str {
    [".scales", "_blocks", ".qweight", ".weight_packed", ".weight_scale", ".weight_scale_inv"]
        .iter()
        .find_map(|part| name.strip_suffix(part))
        .unwrap_or(name)
}

const MLP: &str = "model.layers.0.mlp.up_proj";

/// Changes the tensors of the file.
fn retensor(folder: &Path, edit: impl FnOnce(&mut BTreeMap<String, Raw>)) {
    let mut tensors = read_tensors(folder);
    edit(&mut tensors);
    write_tensors(folder, WEIGHTS, &tensors);
}

/// Adds a statement about quantization to the config.
fn state(folder: &Path, value: Json) {
    set(folder, "quantization", value);
}

#[test]
fn a_quantization_at_odds_with_the_config() {
    // Four bits in groups of 32.
    let quantized = write(&case("llama", "4 bit"));
    attempt(quantized.path()).unwrap();
    refuse_all(
        quantized.path(),
        &[
            (
                "no scales",
                |f| retensor(f, |t| drop(t.remove(&format!("{MLP}.scales")))),
                "TensorShape",
                &[MLP],
            ),
            (
                "no biases",
                |f| retensor(f, |t| drop(t.remove(&format!("{MLP}.biases")))),
                "MissingTensor",
                &["model.layers.0.mlp.up_proj.biases"],
            ),
            (
                "another group",
                |f| {
                    state(
                        f,
                        json!({"bits": 4, "group_size": 64, MLP: {"bits": 4, "group_size": 64}}),
                    )
                },
                "Quantization",
                &[MLP, "group: 64", "group: 32"],
            ),
            (
                "other bits",
                |f| {
                    state(
                        f,
                        json!({"bits": 8, "group_size": 32, MLP: {"bits": 8, "group_size": 32}}),
                    )
                },
                "Quantization",
                &[MLP, "bits: 8", "bits: 4"],
            ),
            (
                "another mode",
                |f| state(f, json!({MLP: {"mode": "mxfp4"}})),
                "Quantization",
                &[MLP, "Mxfp4", "Affine"],
            ),
            (
                "an unknown mode",
                |f| state(f, json!({MLP: {"mode": "q4_k"}})),
                "Quantization",
                &[MLP, "mode"],
            ),
            (
                "bits that are a word",
                |f| state(f, json!({MLP: {"bits": "four"}})),
                "Quantization",
                &[MLP, "bits"],
            ),
            (
                "a group beyond 32 bits",
                |f| state(f, json!({MLP: {"group_size": 1i64 << 40}})),
                "Quantization",
                &[MLP, "group_size"],
            ),
            (
                "false, and scales",
                |f| state(f, json!({"bits": 4, "group_size": 32, MLP: false})),
                "Quantization",
                &[MLP, "false"],
            ),
            (
                "seven bits",
                |f| {
                    retensor(f, |t| {
                        let (_, shape, data) = t.get_mut(&format!("{MLP}.weight")).unwrap();
                        shape[1] = shape[1] / 4 * 7;
                        data.resize(shape_size(shape) * 4, 0);
                    })
                },
                "Quantization",
                &[MLP, "no format"],
            ),
            (
                "groups of 16",
                |f| {
                    retensor(f, |t| {
                        for part in ["scales", "biases"] {
                            let (_, shape, data) = t.get_mut(&format!("{MLP}.{part}")).unwrap();
                            shape[1] *= 2;
                            data.resize(shape_size(shape) * 4, 0);
                        }
                    })
                },
                "Quantization",
                &[MLP, "no format"],
            ),
            (
                "scales that are integers",
                |f| retensor(f, |t| t.get_mut(&format!("{MLP}.scales")).unwrap().0 = "I32".into()),
                "Quantization",
                &["up_proj.scales", "Int32"],
            ),
            (
                "weights that are floats",
                |f| retensor(f, |t| t.get_mut(&format!("{MLP}.weight")).unwrap().0 = "F32".into()),
                "Quantization",
                &[MLP, "Float32"],
            ),
            (
                "a global scale",
                |f| {
                    retensor(f, |t| {
                        let one = ("F32".into(), vec![1], vec![0; 4]);
                        t.insert(format!("{MLP}.global_scale"), one);
                    })
                },
                "Quantization",
                &[MLP, "global scale"],
            ),
        ],
    );
    let dense = good();
    refuse_all(
        dense,
        &[
            (
                "a dense path that is named",
                |f| {
                    state(
                        f,
                        json!({"bits": 4, "group_size": 64, MLP: {"bits": 4, "group_size": 64}}),
                    )
                },
                "MissingTensor",
                &["model.layers.0.mlp.up_proj.scales"],
            ),
            (
                "packed weights that only another family reads",
                |f| {
                    set(f, "quantization_config", json!({"quant_method": "bitnet"}));
                    reheader(f, |header| {
                        let packed = &mut header["model.layers.0.self_attn.q_proj.weight"];
                        (packed["dtype"], packed["shape"]) = (json!("U8"), json!([16, 1024]));
                    });
                },
                "Quantization",
                &["model.layers.0.self_attn.q_proj.weight"],
            ),
        ],
    );
}

/// Changes one field of `quantization_config`.
fn say(folder: &Path, field: &str, value: Json) {
    configure(folder, |config| config["quantization_config"][field] = value);
}

/// Changes the type and the shape of a tensor, and fills it with ones.
fn reshape(folder: &Path, name: &str, dtype: &str, shape: &[usize], width: usize) {
    retensor(folder, |tensors| {
        let data = vec![1; shape_size(shape) * width];
        tensors.insert(name.into(), (dtype.into(), shape.to_vec(), data));
    });
}

const METHOD: &str = "quantization_config.quant_method";
const GATE: &str = "model.layers.0.mlp.gate_proj";

#[test]
fn packings_that_cannot_be_read() {
    let awq = write(&case("packings", "awq"));
    attempt(awq.path()).unwrap();
    refuse_all(
        awq.path(),
        &[
            (
                "no method",
                |f| say(f, "quant_method", json!("hqq")),
                "Quantization",
                &[METHOD, "hqq"],
            ),
            (
                "no statement",
                |f| configure(f, |config| drop(config.remove("quantization_config"))),
                "Quantization",
                &["qweight", "awq"],
            ),
            (
                "a statement that is none",
                |f| set(f, "quantization_config", json!("awq")),
                "Quantization",
                &["qweight", "awq"],
            ),
            ("eight bits", |f| say(f, "bits", json!(8)), "Quantization", &["bits", "8"]),
            ("another order", |f| say(f, "version", json!("gemv")), "Quantization", &["gemv"]),
            (
                "the same weights as GPTQ",
                |f| say(f, "quant_method", json!("gptq")),
                "Quantization",
                &["q_proj.qweight", "words"],
            ),
            (
                "groups that do not divide",
                |f| reshape(f, &format!("{GATE}.scales"), "F32", &[3, 192], 4),
                "Quantization",
                &[GATE, "[3, 192]", "128 inputs"],
            ),
            (
                "groups of 16",
                |f| {
                    reshape(f, &format!("{GATE}.scales"), "F32", &[8, 192], 4);
                    reshape(f, &format!("{GATE}.qzeros"), "I32", &[8, 24], 4);
                },
                "Quantization",
                &[GATE, "[8, 192]", "groups of 32 or more"],
            ),
            (
                "scales of another group than zeros",
                |f| reshape(f, &format!("{GATE}.scales"), "F32", &[1, 192], 4),
                "TensorShape",
                &["gate_proj.qzeros"],
            ),
            (
                "no zeros",
                |f| retensor(f, |t| drop(t.remove(&format!("{GATE}.qzeros")))),
                "MissingTensor",
                &["gate_proj.qzeros"],
            ),
            (
                "scales that are integers",
                |f| reshape(f, &format!("{GATE}.scales"), "I32", &[2, 192], 4),
                "Quantization",
                &["gate_proj.scales", "Int32"],
            ),
            (
                "words that are floats",
                |f| reshape(f, &format!("{GATE}.qweight"), "F32", &[128, 24], 4),
                "Quantization",
                &["gate_proj.qweight", "Float32"],
            ),
        ],
    );
    let gptq = write(&case("packings", "gptq"));
    refuse_all(
        gptq.path(),
        &[
            (
                "another layout",
                |f| say(f, "checkpoint_format", json!("marlin")),
                "Quantization",
                &["checkpoint_format", "marlin"],
            ),
            (
                "inputs in another order",
                |f| reshape(f, &format!("{GATE}.g_idx"), "I32", &[128], 4),
                "Quantization",
                &["gate_proj.g_idx", "desc_act"],
            ),
            (
                "as many groups as inputs say",
                |f| reshape(f, &format!("{GATE}.g_idx"), "I32", &[64], 4),
                "TensorShape",
                &["gate_proj.g_idx"],
            ),
            (
                "three bits",
                |f| reshape(f, &format!("{GATE}.qweight"), "I32", &[12, 192], 4),
                "Quantization",
                &["gate_proj.qweight", "[12, 192]"],
            ),
        ],
    );
    let experts = write(&case("packings", "gptq experts"));
    refuse_all(
        experts.path(),
        &[
            (
                "one expert that is dense",
                |f| {
                    let path = "model.layers.0.mlp.experts.1.up_proj";
                    retensor(f, |t| t.retain(|name, _| !name.starts_with(path)));
                    reshape(f, &format!("{path}.weight"), "F32", &[64, 64], 4);
                },
                "Quantization",
                &["model.layers.0.mlp.experts", "different formats"],
            ),
            (
                "one expert of eight bits",
                |f| {
                    let path = "model.layers.0.mlp.experts.1.up_proj";
                    reshape(f, &format!("{path}.qweight"), "I32", &[16, 64], 4);
                    reshape(f, &format!("{path}.qzeros"), "I32", &[1, 16], 4);
                },
                "Quantization",
                &["model.layers.0.mlp.experts", "different formats"],
            ),
        ],
    );
    let integers = write(&case("packings", "pack-quantized with zeros"));
    refuse_all(
        integers.path(),
        &[
            ("a format", |f| say(f, "format", json!("marlin-24")), "Quantization", &["marlin-24"]),
            (
                "the format of a group",
                |f| {
                    let group = json!({"format": "int-quantized", "weights": {}});
                    say(f, "config_groups", json!({ "group_1": group }));
                },
                "Quantization",
                &["config_groups.group_1.format", "int-quantized"],
            ),
            (
                "sparse weights",
                |f| say(f, "sparsity_config", json!({"format": "sparse-24-bitmask"})),
                "Quantization",
                &["sparsity_config.format"],
            ),
            (
                "rotated weights",
                |f| say(f, "transform_config", json!({"config_groups": {}})),
                "Quantization",
                &["transform_config", "rotated"],
            ),
            (
                "zeros that are bytes",
                |f| reshape(f, &format!("{GATE}.weight_zero_point"), "I8", &[24, 2], 1),
                "Quantization",
                &["weight_zero_point", "Int8"],
            ),
            (
                "integers that are not packed",
                |f| {
                    retensor(f, |t| t.retain(|name, _| !name.starts_with(GATE)));
                    reshape(f, &format!("{GATE}.weight"), "I8", &[192, 128], 1);
                    reshape(f, &format!("{GATE}.weight_scale"), "F32", &[192, 1], 4);
                },
                "Quantization",
                &["gate_proj.weight", "Int8"],
            ),
        ],
    );
    let floats = write(&case("packings", "fp8 blocks"));
    refuse_all(
        floats.path(),
        &[
            ("another float", |f| say(f, "fmt", json!("e5m2")), "Quantization", &["fmt", "e5m2"]),
            (
                "a block of words",
                |f| say(f, "weight_block_size", json!(["a", "b"])),
                "Quantization",
                &["weight_block_size"],
            ),
            (
                "a block of nothing",
                |f| say(f, "weight_block_size", json!([0, 128])),
                "Quantization",
                &["weight_block_size", "[0,128]"],
            ),
            (
                "other blocks",
                |f| say(f, "weight_block_size", json!([64, 64])),
                "TensorShape",
                &["weight_scale_inv"],
            ),
            (
                "exponents of other blocks",
                |f| reshape(f, &format!("{GATE}.weight_scale_inv"), "U8", &[2, 3], 1),
                "TensorShape",
                &["gate_proj.weight_scale_inv"],
            ),
            (
                "scales that are integers",
                |f| reshape(f, &format!("{GATE}.weight_scale_inv"), "I32", &[2, 1], 4),
                "Quantization",
                &["gate_proj.weight_scale_inv", "Int32"],
            ),
        ],
    );
    let nvidia = write(&case("packings", "ModelOpt nvfp4"));
    refuse_all(
        nvidia.path(),
        &[
            (
                "an algorithm",
                |f| say(f, "quant_algo", json!("W4A8_AWQ")),
                "Quantization",
                &["quant_algo", "W4A8_AWQ"],
            ),
            (
                "an algorithm of one layer",
                |f| {
                    say(f, "quant_algo", json!("MIXED_PRECISION"));
                    say(f, "quantized_layers", json!({"lm_head": {"quant_algo": "INT4_AWQ"}}));
                },
                "Quantization",
                &["quantized_layers.lm_head.quant_algo", "INT4_AWQ"],
            ),
            (
                "groups of 64",
                |f| reshape(f, &format!("{GATE}.weight_scale"), "U8", &[192, 2], 1),
                "Quantization",
                &["gate_proj.weight_scale", "groups of 64"],
            ),
            (
                "two factors",
                |f| reshape(f, &format!("{GATE}.weight_scale_2"), "F32", &[2], 4),
                "TensorShape",
                &["gate_proj.weight_scale_2"],
            ),
            (
                "no statement, and scales of activations",
                |f| configure(f, |config| drop(config.remove("quantization_config"))),
                "UnusedTensors",
                &["input_scale"],
            ),
        ],
    );
    let global = write(&case("packings", "nvfp4 experts with global scales"));
    refuse_all(
        global.path(),
        &[(
            "a factor for each of four experts",
            |f| {
                let name = "model.layers.0.mlp.switch_mlp.up_proj.global_scale";
                reshape(f, name, "F32", &[4], 4);
            },
            "TensorShape",
            &["up_proj.global_scale"],
        )],
    );
}

const TOKENIZER: &str = "tokenizer.json";

fn words() -> String {
    let vocabulary: Map<String, Json> = (0..96).map(|id| (format!("w{id}"), json!(id))).collect();
    json!({
        "version": "1.0",
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"},
    })
    .to_string()
}

#[test]
fn a_tokenizer_or_a_template_that_is_damaged() {
    let folder = copy(good());
    put(folder.path(), TOKENIZER, words());
    attempt(folder.path()).unwrap();
    refuse_all(
        folder.path(),
        &[
            ("empty", |f| put(f, TOKENIZER, ""), "Tokenizer", &[TOKENIZER]),
            ("no JSON", |f| put(f, TOKENIZER, "<html>"), "Tokenizer", &[TOKENIZER]),
            ("not text", |f| put(f, TOKENIZER, b"\xff"), "Tokenizer", &[TOKENIZER]),
            ("truncated", |f| put(f, TOKENIZER, &words()[..100]), "Tokenizer", &[TOKENIZER]),
            ("an object", |f| put(f, TOKENIZER, "{}"), "Tokenizer", &[TOKENIZER]),
            (
                "an unknown model",
                |f| put(f, TOKENIZER, words().replace("WordLevel", "Telepathy")),
                "Tokenizer",
                &[TOKENIZER],
            ),
            (
                "a config that is a list",
                |f| put(f, "tokenizer_config.json", "[]"),
                "Config",
                &["tokenizer_config.json"],
            ),
            (
                "a template that does not parse",
                |f| put(f, "chat_template.jinja", "{% if %}"),
                "ChatTemplate",
                &["line 1"],
            ),
            (
                "generation options that are no JSON",
                |f| put(f, "generation_config.json", "{"),
                "Config",
                &["generation_config.json", "not JSON"],
            ),
        ],
    );
}

/// The error of a call and then a good one.
fn refused<T>(result: Result<T>, expected: &str, says: &[&str]) {
    let failure = mismatch(result.err().as_ref(), expected, says);
    assert_eq!(failure, None);
    goes_on();
}

fn generate(model: &Model, prompt: impl Into<Prompt>, options: &GenerateOptions) -> Result<()> {
    let mut stream = model.generate(prompt, options)?;
    block_on(async {
        while let Some(event) = stream.next().await {
            if let Event::Finished(_) = event? {
                return Ok(());
            }
        }
        panic!("the stream has no end")
    })
}

#[test]
fn a_prompt_that_cannot_be_continued() {
    let folder = copy(good());
    let load = || block_on(Model::load(folder.path(), |_| {})).unwrap();
    let options = GenerateOptions { max_tokens: 2, ..GenerateOptions::default() };
    let tokens = |tokens: &[u32]| Prompt::Tokens(tokens.to_vec());
    let model = load();
    refused(generate(&model, tokens(&[]), &options), "EmptyPrompt", &[]);
    refused(generate(&model, "", &options), "EmptyPrompt", &[]);
    refused(generate(&model, tokens(&[1, 96]), &options), "TokenOutOfVocabulary", &["96"]);
    refused(generate(&model, tokens(&[u32::MAX]), &options), "TokenOutOfVocabulary", &["96"]);
    let long = [1; 257];
    refused(generate(&model, tokens(&long), &options), "ContextOverflow", &["257", "256"]);
    refused(block_on(model.score(tokens(&long), 1)), "ContextOverflow", &["257", "256"]);
    refused(block_on(model.score(tokens(&[]), 1)), "EmptyPrompt", &[]);
    refused(block_on(model.score(tokens(&[96]), 1)), "TokenOutOfVocabulary", &["96"]);
    refused(generate(&model, "w1 w2", &options), "Tokenizer", &[TOKENIZER]);
    let talk = || vec![Message::user("w1 w2")];

    put(folder.path(), TOKENIZER, words());
    refused(generate(&load(), talk(), &options), "NoChatTemplate", &[]);
    let template = "{% if messages|length == 1 %}{{ raise_exception('two, please') }}{% endif %}";
    put(folder.path(), "chat_template.jinja", template);
    let model = load();
    generate(&model, "w1 w2", &options).unwrap();
    refused(generate(&model, talk(), &options), "ChatTemplate", &["two, please"]);
    refused(model.render(&talk(), &TemplateOptions::default()), "ChatTemplate", &["two, please"]);
    put(folder.path(), "chat_template.jinja", "{{ [messages[0], 1 / 0] }}");
    refused(generate(&load(), talk(), &options), "ChatTemplate", &[]);
    put(folder.path(), "chat_template.jinja", "");
    refused(generate(&load(), talk(), &options), "EmptyPrompt", &[]);
}

#[test]
fn a_tokenizer_of_other_files() {
    let folder = copy(good());
    let model = block_on(Model::load(folder.path(), |_| {})).unwrap();
    let other = tempfile::tempdir().unwrap();
    refused(model.with_tokenizer(other.path()), "Tokenizer", &[TOKENIZER]);
    put(other.path(), TOKENIZER, words());
    put(other.path(), "tokenizer_config.json", r#"{"eos_token": "w7"}"#);
    let template = "{% for m in messages %}{{ m.content }} {% endfor %}{{ eos_token }}";
    put(other.path(), "chat_template.jinja", template);

    let equipped = model.with_tokenizer(other.path()).unwrap();
    let configured = model.end_tokens().to_vec();
    assert!(model.tokenizer().is_err() && !configured.contains(&7));
    assert_eq!(equipped.end_tokens(), [configured, vec![7]].concat());
    // The weights stay while any handle does.
    drop(model);
    let talk = || vec![Message::user("w1 w2")];
    let rendered = equipped.render(&talk(), &TemplateOptions::default()).unwrap();
    assert_eq!(rendered, "w1 w2 w7");
    let options = GenerateOptions { max_tokens: 2, ..GenerateOptions::default() };
    generate(&equipped, talk(), &options).unwrap();

    let parts = |kind: &str| -> Vec<Message> {
        let part = json!({"type": kind, "text": "w3"});
        serde_json::from_value(json!([{"role": "user", "content": [part]}])).unwrap()
    };
    generate(&equipped, parts("text"), &options).unwrap();
    refused(generate(&equipped, parts("image"), &options), "UnsupportedPart", &["image"]);
    let stranger = vec![Message::user("w1"), Message::new("narrator", "w2")];
    generate(&equipped, stranger.clone(), &options).unwrap();
    put(other.path(), "chat_template.jinja", "{{ messages[0].content }}");
    let deaf = equipped.with_tokenizer(other.path()).unwrap();
    refused(generate(&deaf, stranger, &options), "UnknownRole", &["narrator"]);

    put(folder.path(), "tokenizer.model", b"\x01");
    refused(block_on(Model::load(folder.path(), |_| {})), "Tokenizer", &["tokenizer.model"]);
    refused(equipped.with_tokenizer(folder.path()), "Tokenizer", &["tokenizer.model"]);
}

#[test]
fn options_that_make_no_sense() {
    let model = block_on(Model::load(good(), |_| {})).unwrap();
    let (nan, infinity) = (f32::NAN, f32::INFINITY);
    fn xtc(probability: f32, threshold: f32) -> Xtc {
        Xtc { probability, threshold }
    }
    type Set = fn(&mut GenerateOptions, f32);
    let table: &[(&str, Set, &[f32])] = &[
        ("temperature", |o, v| o.temperature = v, &[-1.0, nan, infinity, -infinity]),
        ("top_p", |o, v| o.top_p = v, &[0.0, -1.0, 2.0, nan, infinity]),
        ("min_p", |o, v| o.min_p = v, &[-0.5, 2.0, nan, infinity]),
        ("typical_p", |o, v| o.typical_p = v, &[0.0, -1.0, 2.0, nan, infinity]),
        ("top_n_sigma", |o, v| o.top_n_sigma = v, &[-1.0, nan, infinity]),
        ("xtc.probability", |o, v| o.xtc = Some(xtc(v, 0.1)), &[-0.5, 2.0, nan]),
        ("xtc.threshold", |o, v| o.xtc = Some(xtc(0.5, v)), &[-0.5, 0.6, nan]),
        ("dry.multiplier", |o, v| o.dry.get_or_insert_default().multiplier = v, &[-1.0, nan]),
        ("dry.base", |o, v| o.dry.get_or_insert_default().base = v, &[0.5, nan, infinity]),
        ("dry.allowed_length", |o, _| o.dry.get_or_insert_default().allowed_length = 0, &[0.0]),
        ("repetition_penalty", |o, v| o.repetition_penalty = v, &[0.0, -1.0, nan, infinity]),
        ("presence_penalty", |o, v| o.presence_penalty = v, &[nan, infinity, -infinity]),
        ("frequency_penalty", |o, v| o.frequency_penalty = v, &[nan, infinity, -infinity]),
        ("logit_bias", |o, v| o.logit_bias = vec![(1, v)], &[nan, infinity]),
        ("top_logprobs", |o, v| o.top_logprobs = v as usize, &[97.0, f32::MAX]),
        ("min_tokens", |o, v| o.min_tokens = v as usize, &[513.0]),
        ("stop", |o, _| o.stop = vec!["a".into(), String::new()], &[0.0]),
        ("prefill_chunk", |o, v| o.prefill_chunk = v as usize, &[0.0]),
    ];
    for (option, set, values) in table {
        for value in *values {
            let mut options = GenerateOptions::default();
            set(&mut options, *value);
            let result = generate(&model, Prompt::Tokens(vec![1]), &options);
            refused(result, "Option", &[option]);
        }
    }
    let options = GenerateOptions { logit_bias: vec![(96, 1.0)], ..GenerateOptions::default() };
    let result = generate(&model, Prompt::Tokens(vec![1]), &options);
    refused(result, "TokenOutOfVocabulary", &["96"]);
}

#[test]
fn weights_that_are_not_numbers() {
    let folder = copy(good());
    retensor(folder.path(), |tensors| {
        let (_, _, data) = tensors.get_mut(&format!("{MLP}.weight")).unwrap();
        data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let model = block_on(Model::load(folder.path(), |_| {})).unwrap();
    let prompt = || Prompt::Tokens(vec![1, 2, 3]);
    refused(block_on(model.score(prompt(), 1)), "NotANumber", &["position 0"]);
    for temperature in [0.0, 1.0] {
        let options = GenerateOptions { temperature, ..GenerateOptions::default() };
        refused(generate(&model, prompt(), &options), "NotANumber", &["position 3"]);
    }
}

#[test]
fn places_where_no_checkpoint_is() {
    let folder = copy(good());
    let elsewhere = folder.path().join("elsewhere");
    refused(attempt(&elsewhere), "Io", &["elsewhere"]);
    refused(attempt(&folder.path().join(WEIGHTS)), "Io", &[WEIGHTS]);
    remove(folder.path(), CONFIG);
    fs::create_dir(folder.path().join(CONFIG)).unwrap();
    refused(attempt(folder.path()), "Io", &[CONFIG]);
}

/// A panic on the engine's thread is an error too.
#[test]
fn a_job_that_panics() {
    let result: Result<()> = block_on(Engine::get().unwrap().run(|| panic!("of the test")));
    refused(result, "Internal", &["of the test"]);
}
