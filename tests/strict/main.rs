//! Bad input gives one error that names the file and what in it is at fault, and the process goes
//! on: after every failure a good model is loaded and run.

mod config;
mod fields;
mod quantization;
mod requests;
mod tensors;
mod weights;

use mlx_rs::Array;
use mynah::{
    CachePlan, Engine, Error, Event, GenerateOptions, Message, Model, Prompt, Result, Score,
    TemplateOptions, Xtc, internals::prefill,
};
use mynah_tests::{Case, Fixture, block_on, kind_of, on_engine};
use serde_json::{Map, Value as Json, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::OnceLock,
};
use tempfile::TempDir;

#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Loads and runs a checkpoint.
fn attempt(folder: &Path) -> Result<Score> {
    block_on(async {
        let model = Model::load(folder).await.map_err(Error::into_cause)?;
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
    let is_expected = expected.split('|').any(|expected| variant(error) == expected);
    let fits = is_expected && says.iter().all(|part| text.contains(part));
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
        refuse(
            good,
            &what,
            |folder| set(folder, field, value.clone()),
            ("Config|Unsupported", &says),
        )
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

fn shape_size(shape: &[usize]) -> usize {
    shape.iter().product()
}

fn map_to(folder: &Path, target: Json) {
    put(folder, INDEX, json!({"weight_map": {"model.norm.weight": target}}).to_string());
}

const MLP: &str = "model.layers.0.mlp.up_proj";

/// Changes the tensors of the file.
fn retensor(folder: &Path, edit: impl FnOnce(&mut BTreeMap<String, Raw>)) {
    let mut tensors = read_tensors(folder);
    edit(&mut tensors);
    write_tensors(folder, WEIGHTS, &tensors);
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
