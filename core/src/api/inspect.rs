//! Inspection of a checkpoint by its config and the headers of its files, without its weights. The
//! formats of its matrices are those that the reader of weights recorded.

use crate::{
    api::{
        defaults,
        download::{CONFIG, MODEL, download_adapter},
        location::{Found, Location},
    },
    checkpoint::{
        file_rules::FileRules,
        files::Files,
        quantization::Quantization,
        scope::{ReadMatrix, Scope},
        shards,
    },
    engine::Engine,
    error::{Error, Result},
    families::{self, Entry, Recommended, model_type},
    hub,
    layers::cache_plan::CachePlan,
    mlx::{self, quantized::Format},
    models::{
        decode_step::prefill,
        network::{Kind, Network},
    },
    text::{ChatTemplate, Tokenizer},
};
use mlx_rs::Array;
use safetensors::tensor::TensorInfo;
use serde::Serialize;
use serde_json::Value as Json;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    fs,
};

/// The facts of a checkpoint before it is loaded.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// The `model_type` of its config.
    pub model_type: String,
    /// The first `model_type` of the family that reads it.
    pub family: Option<&'static str>,
    /// Why it cannot be loaded, as far as everything but the values of its weights shows.
    pub problem: Option<String>,
    /// Its capabilities, such as `text`; empty when it cannot be loaded.
    pub capabilities: Vec<&'static str>,
    /// Number of layers.
    pub layers: Option<u64>,
    /// Width of the residual stream.
    pub hidden_size: Option<u64>,
    /// Number of parameters. A quantized one counts as one; where no family reads the tensors, packed
    /// integers count as they are stored.
    pub parameters: u64,
    /// Size of the weights in bytes.
    pub bytes: u64,
    /// How many tensors have each type, without those of quantized matrices.
    pub dtypes: BTreeMap<String, usize>,
    /// The formats of quantized matrices, the most frequent first; empty where no family reads them.
    pub quantization: Vec<Packing>,
    /// The longest sequence in tokens that it was trained for, if the config gives one.
    pub context: Option<usize>,
    /// Whether it has a tokenizer; without one it takes and gives tokens only.
    pub tokenizer: bool,
    /// Whether it has a chat template.
    pub chat_template: bool,
    /// Whether a licence must be accepted before the download; `None` for local files.
    pub gated: Option<bool>,
    /// Fields of its config that the model does not use and that are not known to be harmless.
    pub ignored_fields: Vec<String>,
    /// The memory that it needs; `None` when it cannot be loaded.
    pub memory: Option<Memory>,
}

/// The memory that a model needs, in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// The length of the sequence for which this holds, in tokens.
    pub context: usize,
    /// The weights in memory.
    pub weights: u64,
    /// The KV cache and other state of one sequence.
    pub cache: u64,
    /// Weights, cache, and a margin for activations.
    pub needed: u64,
    /// The memory that this device lets a program use, if that is known.
    pub device: Option<u64>,
    /// Whether `needed` is at most `device`.
    pub fits: Option<bool>,
}

/// One quantization format, and how many matrices have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Packing {
    /// The mode, such as `affine`.
    pub mode: &'static str,
    /// Bits of one element.
    pub bits: i32,
    /// Elements that share a scale.
    pub group_size: i32,
    /// How many matrices have this format.
    pub matrices: usize,
}

/// Inspects a checkpoint without reading its weights. `context` is the length in tokens of the
/// sequence for which memory is estimated; by default what the model was trained for, at most 4096.
///
/// # Errors
/// [`Error::Io`]; [`Error::Config`] and [`Error::Checkpoint`] for damaged files; [`Error::Option`]
/// for a context of more than 2^24 tokens. An unsupported checkpoint is not an error but an
/// [`Inspection::problem`].
pub async fn inspect(location: impl Into<Location>, context: Option<usize>) -> Result<Inspection> {
    inspect_with(location.into(), None, context).await
}

/// As [`inspect`], with an adapter. Its memory counts, and a misfit between the two is an
/// [`Inspection::problem`].
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
    let name = location.to_string();
    let inspection = match location.resolve()? {
        Found::Here(files) => inspect_files(files, adapter, context).await,
        Found::Hub(source) => inspect_hub(&source, adapter, context).await,
    };
    inspection.map_err(Error::of_model(name))
}

async fn inspect_hub(
    source: &hub::Source,
    adapter: Option<Files>,
    context: Option<usize>,
) -> Result<Inspection> {
    let headers = hub::remote_headers(source, MODEL).await?;
    let inspection = inspect_files(headers.files.clone(), adapter, context).await?;
    Ok(Inspection { gated: headers.gated, ..inspection })
}

async fn inspect_files(
    files: Files,
    adapter: Option<Files>,
    context: Option<usize>,
) -> Result<Inspection> {
    let found = files.json(CONFIG)?;
    let family = families::family(&files, found.as_ref());
    let config = match (&family, found) {
        (_, Some(config)) => config,
        (Ok(_), None) => Json::default(),
        (Err(_), None) => return Err(Error::config("", "there is no such file")),
    };
    let model_type = match &family {
        Ok(family) => family.name(&config).to_string(),
        Err(_) => model_type(&config)?.to_string(),
    };
    let text = defaults::text_config(&config);
    let number = |names: &[&str]| names.iter().find_map(|name| text.get(name)?.as_u64());
    let template = ChatTemplate::load(&files);
    let recommended = family.as_ref().map_or(Recommended::NOTHING, |family| family.recommended);
    let mut inspection = Inspection {
        family: family.as_ref().ok().map(|family| family.model_types[0]),
        problem: None,
        capabilities: Vec::new(),
        layers: number(&["num_hidden_layers", "n_layer", "num_layers"]),
        hidden_size: number(&["hidden_size", "n_embd", "d_model"]),
        parameters: 0,
        bytes: 0,
        dtypes: BTreeMap::new(),
        quantization: Vec::new(),
        context: defaults::context(&config, &recommended),
        tokenizer: Tokenizer::file(&files)?.is_some(),
        chat_template: matches!(template, Ok(Some(_))) || recommended.chat_template.is_some(),
        gated: None,
        ignored_fields: Vec::new(),
        memory: None,
        model_type,
    };
    let rules = family.as_ref().map_or(&FileRules::USUAL, |family| &family.files);
    let (headers, family) = match (headers(&files, rules), family) {
        (Ok(headers), family) => (headers, family),
        // That the model is not supported says more than that its weights are missing.
        (Err(_), Err(error)) | (Err(error), Ok(_)) => return Err(error),
    };
    let quantization = Quantization::of_checkpoint(&files, &config).unwrap_or_default();
    let usual = inspection.context.map_or(USUAL, |promised| promised.min(USUAL));
    let length = context.unwrap_or(usual);
    let kind = family.as_ref().ok().map(|family| family.build.kind());
    let rehearsal = match family {
        Err(error) => Err(error),
        Ok(family) => {
            let rehearse = move || rehearse(family, &files, adapter.as_ref(), &config, length);
            let rehearsal: Rehearsal = Engine::get()?.run(rehearse).await?;
            Ok(Rehearsal { memory: template.and(rehearsal.memory), ..rehearsal })
        }
    };
    let Rehearsal { record, ignored_fields, memory } = rehearsal.unwrap_or_else(Rehearsal::failed);
    inspection.count(headers, &record, &quantization);
    inspection.ignored_fields = ignored_fields;
    match memory {
        Ok(memory) => {
            inspection.memory = Some(memory);
            inspection.capabilities.extend(kind.map(capability));
        }
        Err(error) => inspection.problem = Some(error.to_string()),
    }
    Ok(inspection)
}

/// The default length of a sequence in tokens.
const USUAL: usize = 4096;
/// The longest sequence in tokens, so that the sizes of caches fit 32 bits.
const LONGEST: usize = 1 << 24;

/// The word for what models of this kind do.
fn capability(kind: Kind) -> &'static str {
    match kind {
        Kind::Language => "text",
        Kind::Transcriber => "transcription",
        Kind::Speaker => "speech",
        Kind::Detector => "voice activity",
        Kind::Codec => "audio codec",
        Kind::Embedder => "embedding",
        Kind::Reranker => "reranking",
    }
}

/// The outcome of building a model without its weights.
struct Rehearsal {
    /// The matrices that the reader of weights made, up to an error.
    record: Vec<ReadMatrix>,
    /// The fields of the config that the model does not use; empty after an error.
    ignored_fields: Vec<String>,
    memory: Result<Memory>,
}

impl Rehearsal {
    fn failed(error: Error) -> Self {
        Rehearsal { record: Vec::new(), ignored_fields: Vec::new(), memory: Err(error) }
    }
}

/// Builds the model and passes a token through it without computing anything, which shows errors in
/// names and shapes, the size of every array, and the fields of the config that the model does not
/// use. On the engine's thread.
fn rehearse(
    family: &Entry,
    files: &Files,
    adapter: Option<&Files>,
    config: &Json,
    context: usize,
) -> Result<Rehearsal> {
    Ok(match Scope::open_with(files, &family.files, adapter, config) {
        Err(error) => Rehearsal::failed(error),
        Ok(scope) => {
            let built = family.network(&scope, files);
            let built = built.and_then(|network| {
                Ok((families::ignored_fields(&scope)?, measure(network, &scope, context)?))
            });
            let (ignored_fields, memory) = match built {
                Ok((fields, memory)) => (fields, Ok(memory)),
                Err(error) => (Vec::new(), Err(error)),
            };
            Rehearsal { record: scope.record(), ignored_fields, memory }
        }
    })
}

fn measure(network: Network, scope: &Scope, context: usize) -> Result<Memory> {
    let weights = scope.reading()?.total() as u64;
    let cache = match network {
        Network::Language(network) => {
            let mut cache = network.cache(&CachePlan::new(context));
            prefill(&*network, &Array::from_slice(&[0_i32], &[1, 1]), &mut cache)?;
            cache.reserve(i32::try_from(context).unwrap_or(i32::MAX))?;
            cache.arrays().iter().map(|array| array.nbytes() as u64).sum::<u64>()
        }
        _ => 0,
    };
    // Activations of a chunk of the prompt, buffers that MLX keeps for reuse, and the program.
    let margin = (weights + cache) / 10 + (256 << 20);
    let needed = weights + cache + margin;
    let device = device_memory();
    let fits = device.map(|size| needed <= size);
    Ok(Memory { context, weights, cache, needed, device, fits })
}

/// How many bytes of memory a program may use here, if that is known.
fn device_memory() -> Option<u64> {
    mlx::device_memory().or_else(|| {
        let table = fs::read_to_string("/proc/meminfo").ok()?;
        let total = table.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        total.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|size| size << 10)
    })
}

/// The headers of all tensors by name.
fn headers(files: &Files, rules: &FileRules) -> Result<HashMap<String, TensorInfo>> {
    let headers = shards::headers(files, rules)?;
    let owned = |(name, info): (String, &TensorInfo)| (name, info.clone());
    Ok(headers.iter().flat_map(|header| header.tensors().into_iter().map(owned)).collect())
}

impl Inspection {
    /// Counts the tensors by the record of the reader. Tensors that it has not read count as their
    /// headers describe them.
    fn count(
        &mut self,
        mut tensors: HashMap<String, TensorInfo>,
        record: &[ReadMatrix],
        quantization: &Quantization,
    ) {
        let size = |info: &TensorInfo| (info.data_offsets.1 - info.data_offsets.0) as u64;
        self.bytes = tensors.values().map(size).sum();
        let mut formats = HashMap::<Format, usize>::new();
        for matrix in record {
            self.parameters += matrix.elements;
            matrix.companions.iter().for_each(|name| drop(tensors.remove(name)));
            let info = tensors.remove(&matrix.name);
            match (matrix.format, info) {
                (Some(format), _) => *formats.entry(format).or_default() += 1,
                (None, Some(info)) => self.count_dtype(&info),
                (None, None) => {}
            }
        }
        for (_, info) in tensors.iter().filter(|(name, _)| !quantization.is_superfluous(name)) {
            self.parameters += info.shape.iter().product::<usize>() as u64;
            self.count_dtype(info);
        }
        let packing = |(format, matrices): (Format, usize)| Packing {
            mode: format.mode.name(),
            bits: format.bits,
            group_size: format.group,
            matrices,
        };
        self.quantization = formats.into_iter().map(packing).collect();
        self.quantization.sort_by_key(|p| (Reverse(p.matrices), p.mode, p.bits, p.group_size));
    }

    fn count_dtype(&mut self, info: &TensorInfo) {
        *self.dtypes.entry(format!("{:?}", info.dtype)).or_default() += 1;
    }
}
