//! What a checkpoint is, from its config and the headers of its files; no weights are read.

use crate::{
    api::{
        defaults,
        download::{config, download_adapter},
        location::{Found, Location},
    },
    checkpoint::{files::Files, quantization::Quantization, scope::Scope, shards},
    engine::Engine,
    error::{Error, Result},
    families::{self, family, model_type},
    hub,
    layers::cache_plan::CachePlan,
    mlx::{
        self,
        quantized::{Format, Mode},
    },
    models::decode_step::prefill,
    text::{ChatTemplate, Tokenizer},
};
use mlx_rs::Array;
use safetensors::tensor::{Dtype, TensorInfo};
use serde::Serialize;
use serde_json::Value as Json;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
};

/// What is known of a checkpoint before it is loaded.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// The `model_type` of its config.
    pub model_type: String,
    /// The first `model_type` of the family that reads it.
    pub family: Option<&'static str>,
    /// Why it will not load, as far as all but the values of its weights tells.
    pub problem: Option<String>,
    /// What it can do, such as `text`; nothing when it will not load.
    pub capabilities: Vec<&'static str>,
    /// Number of layers.
    pub layers: Option<u64>,
    /// Width of the residual stream.
    pub hidden_size: Option<u64>,
    /// Number of weights; a quantized one counts as one.
    pub parameters: u64,
    /// Size of the weights.
    pub bytes: u64,
    /// How many tensors have each type, packed ones aside.
    pub dtypes: BTreeMap<String, usize>,
    /// How matrices are packed, the usual way first.
    pub quantization: Vec<Packing>,
    /// The longest sequence that it was made for, if it says so.
    pub context: Option<usize>,
    /// Whether it takes text, not only tokens.
    pub tokenizer: bool,
    /// Whether it takes messages.
    pub chat_template: bool,
    /// Whether a licence must be accepted to fetch it, where a hub was asked.
    pub gated: Option<bool>,
    /// Fields of its config that the model does not use and that are not known to be harmless.
    pub ignored_fields: Vec<String>,
    /// What it takes to run; `None` when it will not load.
    pub memory: Option<Memory>,
}

/// What running a checkpoint takes, in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// How long the sequence is that this holds for, in tokens.
    pub context: usize,
    /// The weights as they are in memory.
    pub weights: u64,
    /// What the model remembers of one sequence.
    pub cache: u64,
    /// Both, and room for what is computed on the way.
    pub needed: u64,
    /// What this device lets a program use, if that is known.
    pub device: Option<u64>,
    /// Whether it suffices.
    pub fits: Option<bool>,
}

/// One way of packing matrices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Packing {
    /// The scheme, such as `affine`.
    pub mode: &'static str,
    /// Bits of one weight.
    pub bits: i32,
    /// Weights that share a scale.
    pub group_size: i32,
    /// How many matrices are packed so.
    pub matrices: usize,
}

/// Looks at a checkpoint without reading its weights. `context` is how many tokens a sequence shall
/// have room for; by default as many as the model was made for, and at most 4096.
///
/// # Errors
/// [`Error::Io`]; [`Error::Config`] and [`Error::Checkpoint`] for files that cannot be understood;
/// [`Error::Option`] for a context that no model has.
/// What is merely not supported is no error but a [`Inspection::problem`].
pub async fn inspect(location: impl Into<Location>, context: Option<usize>) -> Result<Inspection> {
    inspect_with(location.into(), None, context).await
}

/// As [`inspect`], of a model that shall be loaded with an adapter. That counts for the memory, and
/// that it does not fit is a problem.
///
/// # Errors
/// Those of [`inspect`], and of [`download_adapter`].
pub async fn inspect_with_adapter(
    location: impl Into<Location>,
    adapter: impl Into<Location>,
    context: Option<usize>,
) -> Result<Inspection> {
    let adapter = match adapter.into().resolve()? {
        Found::Here(files) => files,
        Found::Hub(source) => download_adapter(&source).await?.into(),
    };
    inspect_with(location.into(), Some(adapter), context).await
}

async fn inspect_with(
    location: Location,
    adapter: Option<Files>,
    context: Option<usize>,
) -> Result<Inspection> {
    if context.is_some_and(|tokens| tokens > LONGEST) {
        return Err(Error::option("context", format!("more than {LONGEST} tokens")));
    }
    match location.resolve()? {
        Found::Here(files) => inspect_files(files, adapter, context).await,
        Found::Hub(source) => {
            let outline = hub::outline(&source).await?;
            let inspection = inspect_files(outline.files.clone(), adapter, context).await?;
            Ok(Inspection { gated: outline.gated, ..inspection })
        }
    }
}

async fn inspect_files(
    files: Files,
    adapter: Option<Files>,
    context: Option<usize>,
) -> Result<Inspection> {
    let config = config(&files)?;
    let model_type = model_type(&config)?.to_string();
    let text = config.get("text_config").unwrap_or(&config);
    let number = |names: &[&str]| names.iter().find_map(|name| text.get(name)?.as_u64());
    let mut inspection = Inspection {
        family: families::find(&model_type).ok().map(|family| family.model_types[0]),
        problem: None,
        capabilities: Vec::new(),
        layers: number(&["num_hidden_layers", "n_layer", "num_layers"]),
        hidden_size: number(&["hidden_size", "n_embd", "d_model"]),
        parameters: 0,
        bytes: 0,
        dtypes: BTreeMap::new(),
        quantization: Vec::new(),
        context: defaults::context(&config),
        tokenizer: Tokenizer::file(&files)?.is_some(),
        chat_template: matches!(ChatTemplate::load(&files), Ok(Some(_)))
            || families::family(&config)
                .is_ok_and(|family| family.recommended.chat_template.is_some()),
        gated: None,
        ignored_fields: Vec::new(),
        memory: None,
        model_type,
    };
    let quantization = Quantization::of_checkpoint(&files, &config).unwrap_or_default();
    inspection.count(&headers(&files)?, &config, &quantization);
    let usual = inspection.context.map_or(USUAL, |promised| promised.min(USUAL));
    let length = context.unwrap_or(usual);
    let memory = match problem(&config, &files) {
        Err(error) => Err(error),
        Ok(()) => {
            Engine::get()?.run(move || rehearse(&files, adapter.as_ref(), &config, length)).await
        }
    };
    match memory {
        Ok((memory, ignored_fields)) => {
            inspection.memory = Some(memory);
            inspection.ignored_fields = ignored_fields;
            inspection.capabilities.push("text");
        }
        Err(error) => inspection.problem = Some(error.to_string()),
    }
    Ok(inspection)
}

/// How long a sequence is that nobody has said anything about, in tokens.
const USUAL: usize = 4096;
/// No context is longer, so that the sizes of caches fit 32 bits.
const LONGEST: usize = 1 << 24;

/// Builds the model and passes a token through it without computing anything: what is wrong with
/// names and shapes shows, how large everything would be, and which fields of the config the model
/// does not use. On the engine's thread.
fn rehearse(
    files: &Files,
    adapter: Option<&Files>,
    config: &Json,
    context: usize,
) -> Result<(Memory, Vec<String>)> {
    let scope = Scope::open_with(files, adapter, config)?;
    let network = families::build(&scope)?;
    let ignored = families::ignored_fields(&scope)?;
    let weights = scope.reading()?.total() as u64;
    let mut cache = network.cache(&CachePlan::new(context));
    prefill(&*network, &Array::from_slice(&[0_i32], &[1, 1]), &mut cache)?;
    cache.reserve(i32::try_from(context).unwrap_or(i32::MAX))?;
    let cache = cache.arrays().iter().map(|array| array.nbytes() as u64).sum::<u64>();
    // Activations of a chunk of the prompt, buffers that MLX keeps for reuse, and the program.
    let margin = (weights + cache) / 10 + (256 << 20);
    let needed = weights + cache + margin;
    let device = device_memory();
    let fits = device.map(|size| needed <= size);
    Ok((Memory { context, weights, cache, needed, device, fits }, ignored))
}

/// How many bytes of memory a program may use here, if that is known.
fn device_memory() -> Option<u64> {
    mlx::device_memory().or_else(|| {
        let table = fs::read_to_string("/proc/meminfo").ok()?;
        let total = table.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        total.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|size| size << 10)
    })
}

fn problem(config: &Json, files: &Files) -> Result<()> {
    family(config)?;
    Quantization::of_checkpoint(files, config)?;
    ChatTemplate::load(files)?;
    Ok(())
}

fn headers(files: &Files) -> Result<HashMap<String, TensorInfo>> {
    let headers = shards::headers(files)?;
    let owned = |(name, info): (String, &TensorInfo)| (name, info.clone());
    let tensors = headers.iter().flat_map(|header| header.tensors().into_iter().map(owned));
    Ok(with_usual_names(tensors.collect()))
}

impl Inspection {
    fn count(
        &mut self,
        tensors: &HashMap<String, TensorInfo>,
        config: &Json,
        quantization: &Quantization,
    ) {
        let said = config.get("quantization").or(config.get("quantization_config"));
        let group = said.and_then(|said| said.get("group_size")).and_then(Json::as_u64);
        let group = |path: &str| {
            let named = quantization.of(path).flatten().map(|format| format.group);
            named.unwrap_or(group.unwrap_or(64) as i32).max(1)
        };
        let bits = packed_bits(config);
        let mut packings = HashMap::<(&'static str, i32, i32), usize>::new();
        for (name, info) in tensors {
            self.bytes += (info.data_offsets.1 - info.data_offsets.0) as u64;
            let elements = info.shape.iter().product::<usize>() as u64;
            if belongs_to_packed(name, tensors) || quantization.is_superfluous(name) {
                continue;
            }
            let packing = packing(name, info, tensors, group);
            match packing.or_else(|| foreign_packing(name, info, tensors, bits)) {
                Some(format) => {
                    self.parameters += elements * info.dtype.bitsize() as u64 / format.bits as u64;
                    *packings
                        .entry((format.mode.name(), format.bits, format.group))
                        .or_default() += 1;
                }
                None => {
                    self.parameters += elements;
                    *self.dtypes.entry(format!("{:?}", info.dtype)).or_default() += 1;
                }
            }
        }
        self.quantization = packings
            .into_iter()
            .map(|((mode, bits, group_size), matrices)| Packing {
                mode,
                bits,
                group_size,
                matrices,
            })
            .collect();
        self.quantization.sort_by_key(|p| (usize::MAX - p.matrices, p.mode, p.bits, p.group_size));
    }
}

/// With the usual names for what belongs to a matrix that is called `path` and not `path.weight`, as
/// [`Scope::parameter`] has them.
fn with_usual_names(tensors: HashMap<String, TensorInfo>) -> HashMap<String, TensorInfo> {
    let companion = |name: &str| {
        ["_weight_scale_inv", "_weight_scale_2", "_weight_scale", "_scale_inv", "_scale"]
            .into_iter()
            .filter_map(|suffix| Some((name.strip_suffix(suffix)?.to_string(), suffix)))
            .find(|(path, _)| !path.ends_with(".weight") && tensors.contains_key(path))
    };
    let matrices: HashSet<String> =
        tensors.keys().filter_map(|name| Some(companion(name)?.0)).collect();
    let usual = |name: &String| match companion(name) {
        Some((path, suffix)) => {
            let part = suffix.trim_start_matches("_weight");
            format!("{path}.weight{part}")
        }
        None if matrices.contains(name) => format!("{name}.weight"),
        None => name.clone(),
    };
    tensors.iter().map(|(name, info)| (usual(name), info.clone())).collect()
}

/// Whether a tensor only says how to unpack another one.
fn belongs_to_packed(name: &str, tensors: &HashMap<String, TensorInfo>) -> bool {
    let has = |name: String| tensors.contains_key(&name);
    if let Some(path) = name.strip_suffix("_scales") {
        return has(format!("{path}_blocks"));
    }
    let Some((path, part)) = name.rsplit_once('.') else { return false };
    let beside = |part: &str| tensors.get(&format!("{path}.{part}"));
    match part {
        "scales" | "biases" if beside("weight").is_some() => beside("scales").is_some(),
        "scales" | "qzeros" | "g_idx" => beside("qweight").is_some(),
        "scale" => beside("weight").is_some_and(|weight| weight.dtype.bitsize() == 8),
        "global_scale"
        | "weight_scale"
        | "weight_scale_inv"
        | "weight_scale_2"
        | "weight_global_scale"
        | "weight_zero_point"
        | "weight_g_idx" => beside("weight").or(beside("weight_packed")).is_some(),
        _ => false,
    }
}

/// How a matrix is packed. The config knows the group; the bits follow from the shapes.
fn packing(
    name: &str,
    info: &TensorInfo,
    tensors: &HashMap<String, TensorInfo>,
    group: impl Fn(&str) -> i32,
) -> Option<Format> {
    if let Some(path) = name.strip_suffix("_blocks") {
        tensors.get(&format!("{path}_scales"))?;
        return Some(Format { mode: Mode::Mxfp4, bits: 4, group: 32 });
    }
    let path = name.strip_suffix(".weight")?;
    let scales = tensors.get(&format!("{path}.scales"))?;
    let bits_of_group = 32 * *info.shape.last()? / (*scales.shape.last()?).max(1);
    let format = |mode, bits, group| Some(Format { mode, bits, group });
    match (scales.dtype, bits_of_group) {
        (Dtype::U8, 64) => format(Mode::Nvfp4, 4, 16),
        (Dtype::U8, 128) => format(Mode::Mxfp4, 4, 32),
        (Dtype::U8, _) => format(Mode::Mxfp8, 8, 32),
        (_, bits) => {
            let group = group(path);
            format(Mode::Affine, (bits as i32 / group).max(1), group)
        }
    }
}

/// The bits of integers in the words of compressed-tensors, which do not tell themselves.
fn packed_bits(config: &Json) -> usize {
    let groups = config.pointer("/quantization_config/config_groups").and_then(Json::as_object);
    let bits = |group: &Json| group.pointer("/weights/num_bits")?.as_u64();
    let bits = groups.and_then(|groups| groups.values().find_map(bits));
    bits.filter(|bits| [2, 4, 8].contains(bits)).unwrap_or(4) as usize
}

/// How MLX will hold a matrix that another tool packed.
fn foreign_packing(
    name: &str,
    info: &TensorInfo,
    tensors: &HashMap<String, TensorInfo>,
    packed_bits: usize,
) -> Option<Format> {
    let (path, part) = name.rsplit_once('.')?;
    let beside = |part: &str| tensors.get(&format!("{path}.{part}"));
    let scales = || ["weight_scale", "weight_scale_inv", "scale"].into_iter().find_map(beside);
    let last = |info: &TensorInfo| info.shape.last().copied();
    let integers = |bits: usize, inputs: usize, groups: usize| {
        let large = inputs.checked_div(groups)?;
        let group = [128, 64, 32].into_iter().find(|group| large % group == 0)?;
        Some(Format { mode: Mode::Affine, bits: bits as i32, group: group as i32 })
    };
    match (part, info.dtype) {
        ("qweight", _) => {
            let scales = beside("scales")?;
            let [.., groups, outputs] = scales.shape[..] else { return None };
            let [.., rows, columns] = info.shape[..] else { return None };
            let bits = match beside("qzeros") {
                Some(zeros) => (32 * last(zeros)?).checked_div(outputs)?,
                None => 4,
            };
            let per_row = if columns == outputs { 32_usize.checked_div(bits)? } else { 1 };
            integers(bits, rows * per_row, groups)
        }
        ("weight_packed", Dtype::I32) => {
            integers(packed_bits, last(info)? * 32 / packed_bits, last(beside("weight_scale")?)?)
        }
        ("weight_packed" | "weight", Dtype::U8 | Dtype::I8) => {
            let scales = scales()?;
            if scales.dtype.bitsize() != 8 {
                // Ternary, with one scale.
                return (scales.shape == [1]).then(|| integers(2, last(info)?, 1)).flatten();
            }
            match (2 * last(info)?).checked_div(last(scales)?)? {
                16 => Some(Format { mode: Mode::Nvfp4, bits: 4, group: 16 }),
                32 => Some(Format { mode: Mode::Mxfp4, bits: 4, group: 32 }),
                _ => Some(Format { mode: Mode::Mxfp8, bits: 8, group: 32 }),
            }
        }
        ("weight", Dtype::F8_E4M3) => {
            let scales = scales()?;
            let is_exponent = scales.dtype.bitsize() == 8;
            is_exponent.then_some(Format { mode: Mode::Mxfp8, bits: 8, group: 32 })
        }
        _ => None,
    }
}
