//! Throws damaged checkpoints at the loader, and looks for panics, crashes, hangs, explosions of
//! memory, and errors that come from MLX and name nothing. `fuzz SECONDS [SEED]` searches for so long by
//! the clock, with a new seed where none is given, and ends with 1 if it finds something;
//! `fuzz replay CASE` runs one case again and keeps its files. A finding becomes a test in `strict/`.
//!
//! Some cases give the loader the tensors that it asks for, so that odd configs come to be run.
//!
//! The search runs in child processes, which say which case they begin. A panic is an
//! [`Error::Internal`]; whatever ends or stalls the child is for the parent to see. Overflows panic
//! in a build with debug assertions only.

use mynah::{Error, Event, Model, Prompt, Result};
use mynah_tests::{Case, Fixture, block_on, on_engine};
use serde_json::{Map, Value as Json, json};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    env, fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// A case that computes for longer hangs.
const PATIENCE: Duration = Duration::from_secs(20);
/// A case that takes this many times as long hangs, even if it only waits for a busy machine.
const WAITS: u32 = 6;
/// A case that needs more memory, in kilobytes, explodes.
const MEMORY: u64 = 2 << 20;
/// Cases that one child runs.
const CASES: u64 = 2000;

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let number = |i: usize| arguments.get(i).and_then(|text| text.parse::<u64>().ok());
    match (arguments.first().map(String::as_str), number(0), number(1)) {
        (Some("work"), _, Some(first)) => work(first),
        (Some("replay"), _, Some(case)) => replay(case),
        (_, Some(seconds), seed) => {
            search(Duration::from_secs(seconds), seed.unwrap_or_else(new_seed));
        }
        _ => {
            eprintln!("usage: fuzz SECONDS [SEED], or fuzz replay CASE");
            std::process::exit(2);
        }
    }
}

/// Seconds since 1970: cases are numbered from the seed's 32 upper bits on.
fn new_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    now.as_secs() & u64::from(u32::MAX)
}

/// Runs children until the time is over.
fn search(time: Duration, seed: u64) {
    println!("fuzzing for {} seconds with seed {seed}", time.as_secs());
    let end = Instant::now() + time;
    let (mut next, mut cases, mut findings) = (seed << 32, 0u64, BTreeSet::new());
    let mut outcomes: HashMap<String, u64> = HashMap::new();
    while Instant::now() < end {
        let mut child = worker(next);
        let (sender, lines) = channel();
        let output = BufReader::new(child.stdout.take().expect("the output is piped"));
        let reader = thread::spawn(move || {
            output.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)));
        });
        let (mut running, mut begun, mut waits) = (None, Duration::ZERO, 0);
        let what = loop {
            match lines.recv_timeout(PATIENCE) {
                Ok(line) => match line.split_once(' ') {
                    Some(("begin", case)) => {
                        running = case.parse().ok();
                        (begun, waits) = (processor_time(child.id()).unwrap_or_default(), 0);
                    }
                    Some(("done", outcome)) => {
                        *outcomes.entry(outcome.into()).or_default() += 1;
                        (cases, running) = (cases + 1, None);
                        if Instant::now() > end {
                            break None;
                        }
                    }
                    _ => break Some(line),
                },
                Err(RecvTimeoutError::Timeout) => {
                    waits += 1;
                    let used = processor_time(child.id()).map(|time| time.saturating_sub(begun));
                    if waits == WAITS || used.is_some_and(|used| used > PATIENCE) {
                        break Some("hangs".into());
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = child.wait().expect("the child can be waited for");
                    break running.map(|_| format!("ends the process: {status}"));
                }
            }
        };
        child.kill().ok();
        child.wait().ok();
        reader.join().ok();
        if let (Some(what), Some(case)) = (&what, running)
            && findings.insert(what.clone())
        {
            println!("finding: case {case}: {what}; look at it with `fuzz replay {case}`");
        }
        next = running.map_or(next + CASES, |case: u64| case + 1);
    }
    let mut outcomes: Vec<_> = outcomes.into_iter().collect();
    outcomes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    println!("{cases} cases, {} findings, {outcomes:?}", findings.len());
    std::process::exit(i32::from(!findings.is_empty()));
}

fn worker(first: u64) -> Child {
    let program = env::current_exe().expect("a program has a path");
    let mut command = Command::new(program);
    command.args(["work", &first.to_string()]).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().expect("a program can run itself")
}

fn work(first: u64) {
    let mut corpus = Corpus::new();
    let folder = tempfile::tempdir().expect("a folder for the cases");
    for case in first..first + CASES {
        say(&format!("begin {case}"));
        let outcome = corpus.run(case, folder.path());
        match outcome {
            Ok(()) => say("done Ok"),
            Err(Error::Internal(reason)) => return say(&format!("panics: {reason}")),
            // What is wrong was not seen before it was computed with.
            Err(Error::Mlx(reason)) => return say(&format!("is refused late: {reason}")),
            Err(error) => {
                let text = format!("{error:?}");
                say(&format!("done {}", text.split(['(', ' ', '{']).next().unwrap_or_default()));
            }
        }
        if let Some(peak) = peak_memory().filter(|peak| *peak > MEMORY) {
            return say(&format!("explodes to {} MB", peak >> 10));
        }
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // A parent that is gone needs no answer.
    writeln!(out, "{line}").and_then(|()| out.flush()).ok();
}

/// The most memory that this process has had, where the system says so.
fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// How long a process has computed, where the system says so.
fn processor_time(process: u32) -> Option<Duration> {
    const TICK: Duration = Duration::from_millis(10);
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name before the last parenthesis may hold anything; times are the 14th and 15th field.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |i: usize| fields.get(i)?.parse::<u32>().ok();
    Some(TICK * (ticks(11)? + ticks(12)?))
}

fn replay(case: u64) {
    let folder = env::temp_dir().join(format!("fuzz-{case}"));
    fs::create_dir_all(&folder).expect("a folder for the case");
    println!("files: {}", folder.display());
    let outcome = Corpus::new().run(case, &folder);
    println!("{outcome:?}");
    if let Err(error) = outcome {
        println!("{error}");
    }
}

/// The checkpoints that are damaged.
struct Corpus {
    cases: Vec<Case>,
    /// The files of weights of those that were used.
    weights: HashMap<usize, Vec<u8>>,
}

impl Corpus {
    fn new() -> Self {
        let cases = Fixture::all().into_iter().flat_map(|(_, fixture)| fixture.cases).collect();
        Corpus { cases, weights: HashMap::new() }
    }

    fn weights(&mut self, index: usize) -> Vec<u8> {
        let cases = &self.cases;
        let write = || {
            let folder = tempfile::tempdir().expect("a folder for the checkpoint");
            let (case, path) = (cases[index].clone(), folder.path().to_path_buf());
            on_engine(move || case.write(&path)).expect("a fixture can be written");
            fs::read(folder.path().join("model.safetensors")).expect("and read again")
        };
        self.weights.entry(index).or_insert_with(write).clone()
    }

    fn run(&mut self, case: u64, folder: &Path) -> Result<()> {
        let mut random = Random(case.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        if random.one_in(8) {
            return self.run_consistent(&mut random, folder);
        }
        let index = random.below(self.cases.len());
        let other = random.below(self.cases.len());
        let mut config = self.cases[index].config.clone();
        let (mut header, mut data) = split(&self.weights(index));
        // Most damage to a header is noticed before anything else is looked at.
        let parts = *random.of(&[&[0][..], &[0], &[0], &[0], &[1], &[0, 1], &[0, 2], &[0, 1, 2]]);
        for _ in 0..1 + random.below(3) {
            match random.of(parts) {
                0 => damage_config(&mut random, &mut config, &self.cases[other].config),
                1 => damage_header(&mut random, &mut header),
                _ => damage_bytes(&mut random, &mut data),
            }
        }
        let mut config = config.to_string().into_bytes();
        if random.one_in(32) {
            damage_bytes(&mut random, &mut config);
        }
        if random.one_in(32) {
            // Of two fields with one name the last one counts.
            let name = ["hidden_size", "vocab_size", "model_type"][random.below(3)];
            let field = format!("{{\"{name}\": {},", random.value());
            config.splice(..1, field.into_bytes());
        }
        let mut header = Json::Object(header).to_string().into_bytes();
        if random.one_in(32) {
            damage_bytes(&mut random, &mut header);
        }
        let length = if random.one_in(32) { random.integer() } else { header.len() as i64 };
        let mut weights = [&length.to_le_bytes()[..], &header, &data].concat();
        if random.one_in(32) {
            damage_bytes(&mut random, &mut weights);
        }
        let put = |name: &str, bytes: &[u8]| fs::write(folder.join(name), bytes).expect("written");
        put("config.json", &config);
        put("model.safetensors", &weights);
        attempt(folder.to_path_buf(), random.one_in(64))
    }
}

impl Corpus {
    /// A config that is odd, and tensors that fit it.
    fn run_consistent(&mut self, random: &mut Random, folder: &Path) -> Result<()> {
        let index = random.below(self.cases.len());
        let other = random.below(self.cases.len());
        let mut config = self.cases[index].config.clone();
        for _ in 0..1 + random.below(2) {
            damage_config(random, &mut config, &self.cases[other].config);
        }
        for _ in 0..random.below(3) {
            shrink(random, &mut config);
        }
        let (header, data) = split(&self.weights(index));
        let mut tensors = tensors(&header, &data);
        fs::write(folder.join("config.json"), config.to_string()).expect("written");
        let generates = random.one_in(8);
        let (mut outcome, mut given) = (Ok(()), BTreeSet::new());
        for _ in 0..500 {
            fs::write(folder.join("model.safetensors"), join(&tensors)).expect("written");
            outcome = attempt(folder.to_path_buf(), generates);
            match &outcome {
                Err(Error::TensorShape { name, .. }) if given.contains(name) => break,
                Err(Error::TensorShape { name, expected, .. }) => {
                    given.insert(name.clone());
                    let sizes = expected.iter().map(|n| usize::try_from(*n).unwrap_or(usize::MAX));
                    let size = sizes.clone().try_fold(1, usize::checked_mul);
                    let Some(size) = size.filter(|size| *size <= 1 << 18) else { break };
                    let data = (0..size).flat_map(|_| random.small().to_le_bytes()).collect();
                    tensors.insert(name.clone(), ("F32".into(), sizes.collect(), data));
                }
                // Absurd configs ask for more and more.
                Err(Error::MissingTensor(name)) if given.len() < 200 => {
                    tensors.insert(name.clone(), ("F32".into(), Vec::new(), vec![0; 4]));
                }
                Err(Error::UnusedTensors(names)) => {
                    names.iter().for_each(|name| drop(tensors.remove(name)));
                }
                _ => break,
            }
        }
        outcome
    }
}

/// Type, shape and data of tensors.
type Tensors = BTreeMap<String, (String, Vec<usize>, Vec<u8>)>;

fn tensors(header: &Map<String, Json>, data: &[u8]) -> Tensors {
    let read = |(name, entry): (&String, &Json)| {
        let list = |field: &str| -> Option<Vec<usize>> {
            entry.get(field)?.as_array()?.iter().map(|n| Some(n.as_u64()? as usize)).collect()
        };
        let [start, end] = list("data_offsets")?[..] else { return None };
        let dtype = entry["dtype"].as_str()?.to_string();
        Some((name.clone(), (dtype, list("shape")?, data[start..end].to_vec())))
    };
    header.iter().filter_map(read).collect()
}

fn join(tensors: &Tensors) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, (dtype, shape, bytes)) in tensors {
        let start = data.len();
        data.extend_from_slice(bytes);
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(name.clone(), entry);
    }
    let header = Json::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}

/// Makes a size of the config small and odd.
fn shrink(random: &mut Random, config: &mut Json) {
    let mut all = Vec::new();
    places(config, "", &mut all);
    let size = |place: &&String| config.pointer(place).is_some_and(Json::is_i64);
    let sizes: Vec<_> = all.iter().filter(size).cloned().collect();
    if !sizes.is_empty() {
        let place = random.of(&sizes);
        *config.pointer_mut(place).expect("it is there") = json!(1 + random.below(9));
    }
}

/// Loads and runs a checkpoint.
fn attempt(folder: PathBuf, generates: bool) -> Result<()> {
    // What can be told without weights is told without panics too.
    block_on(mynah::inspect(folder.clone(), None)).ok();
    block_on(async {
        let model = Model::load(folder).await.map_err(Error::into_cause)?;
        let prompt = Prompt::Tokens(vec![0, 1, 2]);
        model.score(prompt.clone(), 2).await?;
        if generates {
            let options = model.default_options().max_tokens(2);
            let mut stream = model.generate(prompt, &options)?;
            while let Some(event) = stream.next().await {
                if let Event::Finished(_) = event? {
                    break;
                }
            }
        }
        Ok(())
    })
}

fn split(weights: &[u8]) -> (Map<String, Json>, Vec<u8>) {
    let length = u64::from_le_bytes(weights[..8].try_into().expect("eight bytes")) as usize;
    let header = serde_json::from_slice(&weights[8..8 + length]).expect("a good header");
    (header, weights[8 + length..].to_vec())
}

/// The places of all values below an object or a list.
fn places(value: &Json, at: &str, all: &mut Vec<String>) {
    let below: Vec<(String, &Json)> = match value {
        Json::Object(map) => map.iter().map(|(name, value)| (name.clone(), value)).collect(),
        Json::Array(list) => list.iter().enumerate().map(|(i, v)| (i.to_string(), v)).collect(),
        _ => Vec::new(),
    };
    for (name, value) in below {
        let place = format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
        places(value, &place, all);
        all.push(place);
    }
}

fn damage_config(random: &mut Random, config: &mut Json, other: &Json) {
    let mut all = Vec::new();
    places(config, "", &mut all);
    if all.is_empty() {
        return;
    }
    let place = random.of(&all).clone();
    match random.below(8) {
        // Two sizes whose product stays.
        0 | 1 => {
            let second = random.of(&all).clone();
            let shift = 1 + random.below(6);
            let size = |place: &str| config.pointer(place).and_then(Json::as_i64);
            if let (Some(a), Some(b)) = (size(&place), size(&second)) {
                *config.pointer_mut(&place).expect("it is there") =
                    json!(a.wrapping_shl(shift as u32));
                *config.pointer_mut(&second).expect("it is there") = json!(b >> shift);
            }
        }
        // A field of another model.
        2 => {
            if let (Some(config), Some(other)) = (config.as_object_mut(), other.as_object()) {
                let (name, value) = other.iter().nth(random.below(other.len())).expect("a field");
                config.insert(name.clone(), value.clone());
            }
        }
        // A field of the config that is not written.
        3 => {
            let value = random.value();
            if let Some(config) = config.as_object_mut() {
                config.insert((*random.of(FIELDS)).into(), value);
            }
        }
        4 => {
            let (parent, name) = place.rsplit_once('/').expect("a place has a parent");
            match config.pointer_mut(parent) {
                Some(Json::Object(map)) => drop(map.remove(name)),
                Some(Json::Array(list)) => drop(list.pop()),
                _ => {}
            }
        }
        _ => *config.pointer_mut(&place).expect("it is there") = random.value(),
    }
}

/// Fields that some family reads.
const FIELDS: &[&str] = &[
    "attention_bias",
    "attention_k_eq_v",
    "conv_L_cache",
    "decoder_sparse_step",
    "final_logit_softcapping",
    "full_attn_idxs",
    "global_head_dim",
    "head_dim",
    "hidden_size_per_layer_input",
    "layer_types",
    "mlp_bias",
    "num_experts_per_tok",
    "num_global_key_value_heads",
    "num_key_value_heads",
    "num_kv_shared_layers",
    "num_local_experts",
    "quantization",
    "quantization_config",
    "query_pre_attn_scalar",
    "rope_local_base_freq",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "rope_traditional",
    "sliding_window",
    "sliding_window_pattern",
    "ssm_state_size",
    "text_config",
    "tie_word_embeddings",
    "time_step_limit",
    "use_double_wide_mlp",
    "vocab_size_per_layer_input",
];

fn damage_header(random: &mut Random, header: &mut Map<String, Json>) {
    let names: Vec<String> = header.keys().cloned().collect();
    if names.is_empty() {
        return;
    }
    let name = random.of(&names).clone();
    let second = random.of(&names).clone();
    match random.below(8) {
        0 => drop(header.remove(&name)),
        1 => drop(header.insert(format!("{name}.more"), header[&name].clone())),
        2 => {
            let (a, b) = (header[&name].clone(), header[&second].clone());
            header.insert(name, b);
            header.insert(second, a);
        }
        3 => drop(header.insert(name, random.value())),
        // As many bytes, seen in another way.
        4 | 5 => {
            let types = ["F32", "F16", "BF16", "U8", "U32", "I64", "F8_E4M3", "BOOL", "F64"];
            let dtype = *random.of(&types);
            if let Some(Json::Array(shape)) = header[&name].get_mut("shape") {
                match random.below(4) {
                    0 => shape.reverse(),
                    1 => shape.push(json!(1)),
                    2 => shape.insert(0, json!(1)),
                    _ => {}
                }
            }
            if random.one_in(2) && header[&name].is_object() {
                header[&name]["dtype"] = json!(dtype);
            }
        }
        _ => {
            let mut all = Vec::new();
            places(&header[&name], "", &mut all);
            if !all.is_empty() {
                let place = random.of(&all).clone();
                *header[&name].pointer_mut(&place).expect("it is there") = random.value();
            }
        }
    }
}

fn damage_bytes(random: &mut Random, bytes: &mut Vec<u8>) {
    if bytes.is_empty() {
        return;
    }
    let at = random.below(bytes.len());
    let end = (at + 1 + random.below(16)).min(bytes.len());
    match random.below(6) {
        0 => bytes.truncate(at),
        1 => drop(bytes.drain(at..end)),
        2 => drop(bytes.splice(at..at, random.0.to_le_bytes())),
        3 => bytes[at..end].fill(0xff),
        4 => bytes[at..end].fill(0),
        _ => bytes[at] ^= 1 << random.below(8),
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, count: usize) -> usize {
        (self.next() % count.max(1) as u64) as usize
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    /// A weight.
    fn small(&mut self) -> f32 {
        self.below(2001) as f32 / 4000.0 - 0.25
    }

    fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    /// A number at which something changes.
    fn integer(&mut self) -> i64 {
        let edge = 1i64 << self.below(63);
        let near = edge.wrapping_add(self.below(3) as i64 - 1);
        if self.one_in(4) { near.wrapping_neg() } else { near }
    }

    fn value(&mut self) -> Json {
        match self.below(16) {
            0 => Json::Null,
            1 => json!(self.one_in(2)),
            2 => json!(*self.of(&["", "full_attention", "sliding_attention", "yarn", "llama3"])),
            3 => json!([]),
            4 => json!({}),
            5 => json!([self.integer(), self.integer()]),
            6 => json!(vec!["full_attention"; self.below(5)]),
            7 => json!({"rope_type": "linear", "factor": self.integer()}),
            8 => json!(*self.of(&[
                0.0,
                -0.0,
                0.5,
                -1.5,
                1e-30,
                1e30,
                1e300,
                -1e300,
                f64::MIN_POSITIVE
            ])),
            9 => json!({"__float__": *self.of(&["NaN", "Infinity", "-Infinity"])}),
            10 => json!(u64::MAX),
            11 => {
                let kinds =
                    ["linear", "dynamic", "llama3", "yarn", "longrope", "proportional", "default"];
                json!({
                    "rope_type": *self.of(&kinds), "factor": self.below(9),
                    "original_max_position_embeddings": self.integer(),
                    "beta_fast": self.below(40), "beta_slow": self.below(40),
                    "low_freq_factor": self.below(5), "high_freq_factor": self.below(5),
                    "long_factor": vec![1.0; self.below(17)], "mscale": self.below(3),
                    "partial_rotary_factor": self.below(100) as f64 / 64.0,
                })
            }
            12..14 => json!(1 + self.below(130)),
            _ => json!(self.integer()),
        }
    }
}
