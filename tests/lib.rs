//! Fixtures: checkpoints whose weights are a formula of each tensor's name, and the numbers that
//! the reference computes from them.

#[path = "speech_input.rs"]
pub mod speech;

/// A model hub for tests.
pub mod hub {
    pub mod content;
    pub mod server;
}

use mlx_rs::{Array, Dtype};
use mynah::{
    Bound, CachePlan, CacheQuantization, Engine, Result,
    internals::{Format, Input, LanguageModel, Media, Mode, Quantized, Scope, families},
};
use serde::Deserialize;
use serde_json::Value as Json;
use std::{
    collections::{BTreeMap, HashMap},
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    rc::Rc,
    sync::{OnceLock, RwLock},
    time::SystemTime,
};

/// MLX counts the memory of the whole process: a test that measures it holds this lock for writing,
/// and every other test of the same binary for reading.
pub static BUSY: RwLock<()> = RwLock::new(());

/// All cases of one family.
#[derive(Clone, Deserialize)]
pub struct Fixture {
    /// The cases.
    pub cases: Vec<Case>,
}

/// One configuration of a family.
#[derive(Clone, Deserialize)]
pub struct Case {
    /// What is special about it.
    pub name: String,
    /// Its `config.json`.
    pub config: Json,
    tensors: BTreeMap<String, Tensor>,
    #[serde(default)]
    quantized: BTreeMap<String, (i32, i32, String)>,
    dtype: Option<String>,
    adapter: Option<Adapter>,
    /// Tensors that move the result of the reference by nothing, with the reason in the script.
    #[serde(default)]
    pub insensitive: Vec<String>,
    /// The sequence.
    pub tokens: Vec<u32>,
    /// The tokens whose log-probabilities are given.
    pub probes: Vec<u32>,
    /// After each position, or each of `every`, the log-probability of each probe.
    pub logprobs: Vec<Vec<f32>>,
    /// The same, token by token, where the reference itself differs.
    pub steps: Option<Vec<Vec<f32>>>,
    /// Prompts with pictures.
    #[serde(default)]
    pub prompts: Vec<Prompt>,
    /// What comes out of caches that are kept in other ways.
    #[serde(default)]
    pub caches: Vec<Kept>,
    /// Positions from one row to the next.
    #[serde(default = "one")]
    pub every: usize,
    /// In half precision: how far the reference moves between half precision and float32, the largest
    /// difference of a log-probability. `tests/fixtures/spread.json` holds it.
    #[serde(skip)]
    pub spread: Option<f32>,
    /// The same for the case in bfloat16, where it is in float32.
    #[serde(skip)]
    bfloat16_spread: Option<f32>,
}

/// A prompt with pictures.
#[derive(Clone, Deserialize)]
pub struct Prompt {
    /// The expanded prompt.
    pub tokens: Vec<u32>,
    media: Vec<BTreeMap<String, MediaTensor>>,
    /// After each position, the log-probability of each probe.
    pub logprobs: Vec<Vec<f32>>,
}

/// A tensor of a processor: a formula of its name, or numbers.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum MediaTensor {
    Formula { shape: Vec<i32> },
    Numbers { values: Json },
}

impl MediaTensor {
    fn array(&self, name: &str) -> Array {
        match self {
            MediaTensor::Formula { shape } => {
                let unit = bits(name, size(shape)).map(|z| (z >> 40) as f32 / (1 << 23) as f32);
                Array::from_slice(&unit.map(|u| u - 1.0).collect::<Vec<_>>(), shape)
            }
            MediaTensor::Numbers { values } => {
                let (mut shape, mut first) = (Vec::new(), values);
                while let Some(entries) = first.as_array() {
                    shape.push(entries.len() as i32);
                    first = &entries[0];
                }
                let mut flat = Vec::new();
                flatten(values, &mut flat);
                if flat.iter().all(|number| number.fract() == 0.0) {
                    let whole: Vec<i32> = flat.iter().map(|number| *number as i32).collect();
                    return Array::from_slice(&whole, &shape);
                }
                Array::from_slice(&flat, &shape)
            }
        }
    }
}

fn flatten(values: &Json, into: &mut Vec<f32>) {
    match values {
        Json::Array(values) => values.iter().for_each(|value| flatten(value, into)),
        value => into.push(value.as_f64().unwrap() as f32),
    }
}

impl Prompt {
    /// The prompt with the tensors of its pictures. On the engine's thread.
    pub fn input(&self) -> Input {
        let media = self.media.iter().enumerate().map(|(i, tensors)| {
            let tensors = tensors
                .iter()
                .map(|(name, tensor)| (name.clone(), tensor.array(&format!("media.{i}.{name}"))));
            Media::new(i as u64 + 1, tensors.collect())
        });
        Input { tokens: self.tokens.clone(), media: media.collect() }
    }
}

/// A cache that is kept in another way than the plain one; 0 is none.
#[derive(Clone, Debug, Deserialize)]
pub struct Kept {
    bits: i32,
    group_size: i32,
    /// From which position on it is quantized.
    pub start: usize,
    bound: usize,
    /// Where pieces of the sequence end that are computed at once; the rest is token by token.
    pub cuts: Vec<usize>,
    /// As those of the case.
    pub logprobs: Vec<Vec<f32>>,
}

impl Kept {
    /// The plan of such a cache.
    pub fn plan(&self) -> CachePlan {
        let mut plan = CachePlan::default();
        if self.bits > 0 {
            let quantization = CacheQuantization::new(self.bits, self.group_size, self.start);
            plan.quantization = Some(quantization.unwrap());
        }
        if self.bound > 0 {
            plan.bound = Some(Bound::new(self.bound, 4).unwrap());
        }
        plan
    }
}

/// What is added to the model of a case, or changed in it.
#[derive(Clone, Deserialize)]
struct Adapter {
    config: Json,
    tensors: BTreeMap<String, Vec<i32>>,
    dtype: Option<String>,
}

fn one() -> usize {
    1
}

/// A tensor by the formula of its name: floats of this shape, or of a type and in a range.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
pub enum Tensor {
    /// Floats.
    Float(Vec<i32>),
    /// Of another type or range.
    Typed(Typed),
}

impl Tensor {
    /// Its values. On the engine's thread.
    pub fn array(&self, name: &str) -> Result<Array> {
        match self {
            Tensor::Typed(typed) => typed.array(name),
            Tensor::Float(shape) => Ok(floats(name, shape)),
        }
    }
}

/// A tensor with a type, and values in a range, of any size, or of groups.
#[derive(Clone, Deserialize)]
pub struct Typed {
    shape: Vec<i32>,
    dtype: String,
    from: Option<f64>,
    to: Option<f64>,
    group: Option<i32>,
    /// Elements that have other values, by their flat index.
    #[serde(default)]
    set: Vec<(usize, f32)>,
}

impl Fixture {
    /// The fixtures of all families, by name; those of another folder where `MYNAH_FIXTURES` names one.
    pub fn all() -> Vec<(String, Fixture)> {
        static ALL: OnceLock<Vec<(String, Fixture)>> = OnceLock::new();
        ALL.get_or_init(Self::read_families).clone()
    }

    /// What transformers computes from checkpoints that it saved itself, by the model type.
    pub fn of_transformers() -> Vec<(String, Fixture)> {
        Self::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/transformers"))
    }

    fn read_families() -> Vec<(String, Fixture)> {
        match env::var_os("MYNAH_FIXTURES") {
            Some(folder) => Self::read(&PathBuf::from(folder)),
            None => Self::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/families")),
        }
    }

    fn read(folder: &Path) -> Vec<(String, Fixture)> {
        let mut paths: Vec<PathBuf> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
        paths.sort();
        let spreads = fs::read_to_string(folder.join("../spread.json")).unwrap_or("{}".into());
        let spreads: HashMap<String, HashMap<String, f32>> =
            serde_json::from_str(&spreads).unwrap();
        let read = |path: &PathBuf| {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            let text = fs::read_to_string(path).unwrap();
            let mut fixture: Fixture =
                serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path:?}: {e}"));
            let spread = |case: &str| spreads.get(&name)?.get(case).copied();
            for case in &mut fixture.cases {
                case.spread = spread(&case.name);
                case.bfloat16_spread = spread(&format!("{} in bfloat16", case.name));
            }
            (name, fixture)
        };
        paths.iter().map(read).collect()
    }
}

impl Case {
    fn layers(&self) -> i64 {
        let nested =
            ["text_config", "llm_config"].into_iter().find_map(|name| self.config.get(name));
        nested.unwrap_or(&self.config)["num_hidden_layers"].as_i64().unwrap_or(0)
    }

    fn expand<T: Clone>(&self, map: &BTreeMap<String, T>) -> Vec<(String, T)> {
        let each = |(name, value): (&String, &T)| -> Vec<(String, T)> {
            if !name.contains('*') {
                return vec![(name.clone(), value.clone())];
            }
            let layer = |i: i64| (name.replace('*', &i.to_string()), value.clone());
            (0..self.layers()).map(layer).collect()
        };
        map.iter().flat_map(each).collect()
    }

    /// Whether it computes in half precision.
    pub fn is_half(&self) -> bool {
        self.dtype.is_some()
    }

    /// The same checkpoint in bfloat16.
    pub fn in_bfloat16(self) -> Self {
        Case { dtype: Some("BF16".into()), spread: self.bfloat16_spread, ..self }
    }

    /// The same checkpoint with another shape of one entry.
    pub fn with_shape(mut self, name: &str, shape: &[i32]) -> Self {
        let entry = self.tensors.get_mut(name).unwrap_or_else(|| panic!("{name} is no entry"));
        *entry = Tensor::Float(shape.to_vec());
        self
    }

    /// The tensors of the checkpoint. On the engine's thread.
    pub fn checkpoint(&self) -> Result<HashMap<String, Array>> {
        let formats: HashMap<_, _> = self.expand(&self.quantized).into_iter().collect();
        let dtype = precision(self.dtype.as_deref().unwrap_or("F32"));
        let mut tensors = HashMap::new();
        for (name, tensor) in self.expand(&self.tensors) {
            let array = match &tensor {
                Tensor::Typed(typed) => typed.array(&name)?,
                Tensor::Float(shape) => floats(&name, shape).as_dtype(dtype)?,
            };
            let path = name.strip_suffix(".weight").unwrap_or(&name);
            if let Some((bits, group, mode)) = formats.get(path) {
                let mode = match mode.as_str() {
                    "affine" => Mode::Affine,
                    "mxfp4" => Mode::Mxfp4,
                    "mxfp8" => Mode::Mxfp8,
                    "nvfp4" => Mode::Nvfp4,
                    other => panic!("{other} is no mode"),
                };
                let format = Format { mode, bits: *bits, group: *group };
                let matrix = Quantized::of(&array, format)?;
                tensors.insert(format!("{path}.weight"), matrix.weight);
                tensors.insert(format!("{path}.scales"), matrix.scales);
                if let Some(biases) = matrix.biases {
                    tensors.insert(format!("{path}.biases"), biases);
                }
            } else {
                tensors.insert(name, array);
            }
        }
        Ok(tensors)
    }

    /// Whether something is added to the model or changed in it.
    pub fn has_adapter(&self) -> bool {
        self.adapter.is_some()
    }

    /// Tensors as if they were its checkpoint, with its adapter, if it has one. On the engine's thread.
    pub fn scope(&self, tensors: HashMap<String, Array>) -> Result<Scope> {
        self.with_lora(Scope::new(tensors, &self.config)?)
    }

    /// A scope over its checkpoint with its adapter, if it has one. On the engine's thread.
    pub fn with_lora(&self, scope: Scope) -> Result<Scope> {
        if !self.has_adapter() {
            return Ok(scope);
        }
        let folder = tempfile::tempdir().unwrap();
        self.write_adapter(folder.path())?;
        scope.with_adapter(&folder.path().into())
    }

    /// Writes its adapter as the tool that trained it would. On the engine's thread.
    pub fn write_adapter(&self, folder: &Path) -> Result<()> {
        let Adapter { config, tensors, dtype } = self.adapter.as_ref().expect("it has an adapter");
        let dtype = precision(dtype.as_deref().unwrap_or("F32"));
        let value = |(name, shape): (String, Vec<i32>)| {
            let values = floats(&format!("adapter.{name}"), &shape).as_dtype(dtype)?;
            Ok((name, values))
        };
        let tensors: Result<HashMap<String, Array>> =
            self.expand(tensors).into_iter().map(value).collect();
        let is_peft = config.get("peft_type").is_some();
        let file = if is_peft { "adapter_model.safetensors" } else { "adapters.safetensors" };
        fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
        Array::save_safetensors(tensors?, None, folder.join(file)).unwrap();
        Ok(())
    }

    /// The model, with nothing left unread. On the engine's thread.
    pub fn model(&self) -> Result<Rc<dyn LanguageModel>> {
        let scope = self.scope(self.checkpoint()?)?;
        let model = families::build(&scope)?;
        scope.finish(|_| {})?;
        Ok(model)
    }

    /// Writes the checkpoint as a model repository would hold it. On the engine's thread.
    pub fn write(&self, folder: &Path) -> Result<()> {
        fs::write(folder.join("config.json"), self.config.to_string()).unwrap();
        let tensors = self.checkpoint()?;
        Array::save_safetensors(&tensors, None, folder.join("model.safetensors")).unwrap();
        Ok(())
    }
}

/// The checkpoint of a codec, a detector or a speaker.
#[derive(Clone, Deserialize)]
pub struct AudioCheckpoint {
    config: Option<Json>,
    #[serde(default)]
    files: BTreeMap<String, String>,
    tensors: BTreeMap<String, Tensor>,
    /// Voices, each a tensor by the formula of its name.
    #[serde(default)]
    voices: BTreeMap<String, Tensor>,
}

impl AudioCheckpoint {
    /// Writes it as a model repository would hold it. On the engine's thread.
    pub fn write(&self, folder: &Path) -> Result<()> {
        if let Some(config) = &self.config {
            fs::write(folder.join("config.json"), config.to_string()).unwrap();
        }
        for (name, content) in &self.files {
            fs::write(folder.join(name), content).unwrap();
        }
        write_tensors(&self.tensors, &folder.join("model.safetensors"))?;
        for (name, tensor) in &self.voices {
            fs::create_dir_all(folder.join("voices")).unwrap();
            let voice = HashMap::from([("voice".to_string(), tensor.array(name)?)]);
            let file = folder.join(format!("voices/{name}.safetensors"));
            Array::save_safetensors(&voice, None, file).unwrap();
        }
        Ok(())
    }
}

/// A file of a picture: its name, its bytes in hexadecimal, its width and height, levels of its pixels
/// as Pillow reads them, and how far others may be from these.
#[derive(Deserialize)]
pub struct PictureFile(pub String, pub String, pub [u32; 2], pub Vec<u8>, pub i32);

impl PictureFile {
    /// The files that `scripts/fixtures` wrote.
    pub fn all() -> Vec<PictureFile> {
        serde_json::from_str(&fs::read_to_string("fixtures/pictures.json").unwrap()).unwrap()
    }

    /// What the file holds.
    pub fn bytes(&self) -> Vec<u8> {
        let digits = |i: usize| u8::from_str_radix(&self.1[2 * i..2 * i + 2], 16).unwrap();
        (0..self.1.len() / 2).map(digits).collect()
    }
}

/// Writes tensors by their formula to a file. On the engine's thread.
pub fn write_tensors(tensors: &BTreeMap<String, Tensor>, file: &Path) -> Result<()> {
    let array = |(name, tensor): (&String, &Tensor)| Ok((name.clone(), tensor.array(name)?));
    let tensors: HashMap<String, Array> = tensors.iter().map(array).collect::<Result<_>>()?;
    Array::save_safetensors(&tensors, None, file).unwrap();
    Ok(())
}

/// Runs something on the engine's thread and waits.
pub fn on_engine<T: Send + 'static>(job: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    block_on(Engine::get()?.run(job))
}

/// The command `mynah`, from the folder in which Cargo built these tests. Cargo builds it before them
/// only where it is asked to, as `scripts/test` does.
pub fn mynah() -> Command {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    let binary = BINARY.get_or_init(|| {
        const BUILD: &str = "run `cargo build --workspace --all-features --bins`";
        let tests = env::current_exe().unwrap();
        let binary = tests.ancestors().nth(2).unwrap().join("mynah");
        let built = fs::metadata(&binary).and_then(|metadata| metadata.modified());
        let built = built.unwrap_or_else(|error| panic!("{binary:?}: {error}; {BUILD}"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/src");
        assert!(newest(&source) <= built, "{binary:?} is older than its source; {BUILD}");
        binary
    });
    let mut command = Command::new(binary);
    // It needs no compiler and no other program.
    command.env("PATH", "");
    // The tests of the hub set these to its address.
    command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", env::temp_dir().join("mynah-tests"));
    command.env_remove("HF_HUB_CACHE").env_remove("RUST_LOG");
    command
}

/// When the newest file below a folder was changed.
fn newest(folder: &Path) -> SystemTime {
    let changed = |entry: fs::DirEntry| {
        let metadata = entry.metadata().unwrap();
        if metadata.is_dir() { newest(&entry.path()) } else { metadata.modified().unwrap() }
    };
    let entries = fs::read_dir(folder).unwrap().map(|entry| changed(entry.unwrap()));
    entries.max().unwrap_or(SystemTime::UNIX_EPOCH)
}

/// A tensor's name without the indices of layers and experts, which tensors of one kind share.
pub fn kind_of(name: &str) -> Vec<&str> {
    let is_index = |part: &&str| part.bytes().all(|byte| byte.is_ascii_digit());
    name.split('.').filter(|part| !is_index(part)).collect()
}

/// Waits for a future, or for what becomes one.
pub fn block_on<T>(future: impl IntoFuture<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(future.into_future())
}

fn bits(name: &str, count: usize) -> impl Iterator<Item = u64> {
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    (1..=count as u64).map(move |i: u64| {
        let s = i.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(seed);
        let z = (s ^ (s >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

fn size(shape: &[i32]) -> usize {
    shape.iter().map(|n| *n as usize).product()
}

/// The formula of a floating-point tensor; `scripts/fixtures` has the same.
fn floats(name: &str, shape: &[i32]) -> Array {
    let unit = bits(name, size(shape)).map(|z| (z >> 40) as f32 / (1 << 23) as f32 - 1.0);
    let last = name.rsplit('.').next().unwrap_or(name);
    let values: Vec<f32> = if shape.len() >= 2 {
        let stacked = shape.len() == 3 && !name.contains("conv");
        let fan_in = size(if stacked { &shape[2..] } else { &shape[1..] });
        let scale = (3.0 / fan_in as f64).sqrt() as f32;
        unit.map(|u| u * scale).collect()
    } else if name.contains("norm")
        || name.contains(".ln_")
        || [
            "D",
            "m",
            "layer_scalar",
            "scale",
            "per_expert_scale",
            "a_g",
            "head_g",
            "w_g",
            "running_var",
        ]
        .contains(&last)
    {
        unit.map(|u| 1.0 + 0.25 * u).collect()
    } else {
        unit.map(|u| 0.25 * u).collect()
    };
    Array::from_slice(&values, shape)
}

fn precision(name: &str) -> Dtype {
    match name {
        "BF16" => Dtype::Bfloat16,
        "F16" => Dtype::Float16,
        "F32" => Dtype::Float32,
        other => panic!("{other} is no precision"),
    }
}

impl Typed {
    /// The formula of a tensor with a type; `scripts/fixtures` has the same.
    fn array(&self, name: &str) -> Result<Array> {
        let bits = || bits(name, size(&self.shape));
        if let Some(group) = self.group {
            let groups: Vec<i32> = (0..size(&self.shape) as i32).map(|i| i / group).collect();
            return Ok(Array::from_slice(&groups, &self.shape));
        }
        if self.dtype == "SIGN" {
            let sign = |z: u64| if z >> 63 == 1 { 1.0f32 } else { -1.0 };
            return Ok(Array::from_slice(&bits().map(sign).collect::<Vec<_>>(), &self.shape));
        }
        let range = self.from.zip(self.to);
        let integer = |z: u64| {
            let high = z >> 32;
            range.map_or(high, |(from, to)| from as u64 + high % (to - from) as u64)
        };
        if self.dtype == "I32" {
            let words: Vec<i32> = bits().map(|z| integer(z) as i32).collect();
            return Ok(Array::from_slice(&words, &self.shape));
        }
        if self.dtype == "U32" {
            let words: Vec<u32> = bits().map(|z| integer(z) as u32).collect();
            return Ok(Array::from_slice(&words, &self.shape));
        }
        if self.dtype == "U8" {
            let byte = |z: u64| match range {
                Some(_) => integer(z) as u8,
                None if name.ends_with("_scales") => 120 + (z >> 61) as u8,
                None => (z >> 56) as u8,
            };
            return Ok(Array::from_slice(&bits().map(byte).collect::<Vec<u8>>(), &self.shape));
        }
        let (from, to) = range.expect("floats have a range");
        let unit = |z: u64| (z >> 40) as f32 / (1 << 24) as f32;
        let mut floats: Vec<f32> =
            bits().map(|z| from as f32 + unit(z) * (to - from) as f32).collect();
        self.set.iter().for_each(|(place, value)| floats[*place] = *value);
        let floats = Array::from_slice(&floats, &self.shape);
        if self.dtype == "F8_E4M3" {
            return Ok(floats.to_fp8()?);
        }
        Ok(floats.as_dtype(precision(&self.dtype))?)
    }
}

/// A Python with the packages of a name in `scripts/test_python`, which installs them once.
pub fn python(name: &str) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/test_python");
    let output = Command::new(script).arg(name).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "there is no Python for {name}: {errors}");
    String::from_utf8(output.stdout).unwrap().trim().into()
}
