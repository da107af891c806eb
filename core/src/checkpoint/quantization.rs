//! The statements of a config about the quantization of its weights; shapes and types of tensors say
//! the rest.

use crate::{
    checkpoint::{config::Json, files::Files},
    error::{Error, Result},
    mlx::quantized::{Format, Mode},
};
use mlx_rs::{Array, Dtype};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};

/// The file into which NVIDIA's ModelOpt writes what others write into `config.json`.
const MODEL_OPT: &str = "hf_quant_config.json";

/// Tensors of other tools' checkpoints that no model here needs.
const SUPERFLUOUS: &[&str] = &[
    // Scales of activations and of KV caches, which stay in floating point here.
    "input_scale",
    "input_global_scale",
    "activation_scale",
    "q_scale",
    "k_scale",
    "v_scale",
    // The shape of the matrix, which the config gives too.
    "weight_shape",
];

/// What the config of a checkpoint says about its quantized tensors.
#[derive(Default)]
pub(crate) struct Quantization {
    /// Formats of single paths; `None` where the config says `false`.
    paths: BTreeMap<String, Option<Format>>,
    /// How `qweight` is packed.
    pub layout: Option<PackedLayout>,
    /// Whether integers have zero points; else the zero is in the middle.
    pub has_zeros: bool,
    /// The blocks of 8-bit floats that share a scale.
    pub block: Option<Block>,
    /// Whether the scales of those blocks are powers of two.
    pub powers_of_two: bool,
    /// Whether ternary weights are divided by their scale.
    pub divides_ternary: bool,
    /// Whether another tool than MLX quantized the weights.
    pub is_foreign: bool,
    /// The error of a method that is not known, for weights that it has changed.
    unknown: Option<Unknown>,
    /// By path below the language model, the sizes of blocks of inputs that matrices expect rotated.
    rotations: HashMap<String, i64>,
}

/// A field that names an unknown method.
#[derive(Clone)]
struct Unknown {
    path: String,
    method: String,
}

impl Unknown {
    fn error(self) -> Error {
        let reason = format!("`{}` is not supported", self.method);
        Error::Quantization { path: self.path, reason }
    }
}

/// The layouts of packed integers in a tensor named `qweight`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum PackedLayout {
    /// 32 bits hold outputs, the even ones first.
    Awq,
    /// 32 bits hold inputs; zero points are stored less one.
    Gptq,
    /// 32 bits hold inputs.
    GptqV2,
}

/// A block of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub rows: i32,
    pub columns: i32,
}

impl Block {
    /// No larger than a matrix.
    pub fn within(self, output: i32, input: i32) -> Block {
        Block { rows: self.rows.min(output).max(1), columns: self.columns.min(input).max(1) }
    }

    /// How many blocks a matrix has along its outputs and its inputs, partial ones included.
    pub fn counts(self, output: i32, input: i32) -> [i32; 2] {
        [(output - 1) / self.rows + 1, (input - 1) / self.columns + 1]
    }
}

impl Quantization {
    /// Reads `config.json` and, where that says nothing, the file of NVIDIA's ModelOpt.
    pub(crate) fn of_checkpoint(files: &Files, config: impl Into<Json>) -> Result<Self> {
        let config = config.into();
        if statement(&config).is_none()
            && let Some(separate) = files.json(MODEL_OPT)?.map(Json::from)
            && separate.is_object()
        {
            let said = Statement { path: MODEL_OPT.into(), object: &separate };
            return Self::foreign(&said, "modelopt");
        }
        Self::read(&config)
    }

    pub(crate) fn read(config: impl Into<Json>) -> Result<Self> {
        let config = config.into();
        let Some(said) = statement(&config) else { return Ok(Self::default()) };
        // mlx-lm writes the same twice.
        let is_same = |other: &&Json| other.to_value() == said.object.to_value();
        config.get("quantization_config").filter(is_same).into_iter().for_each(Json::mark_all);
        match said.get("quant_method").and_then(Json::as_str) {
            None | Some("mxfp4" | "mxfp8") => {}
            Some(method) => return Self::foreign(&said, method),
        }
        let mut paths = BTreeMap::new();
        for path in said.object.names() {
            let Some(value) = said.object.get(path) else { continue };
            if value.as_bool() == Some(false) {
                paths.insert(path.into(), None);
            } else if value.is_object() {
                let format = Format::read(&format!("{}.{path}", said.path), value)?;
                paths.insert(path.into(), Some(format));
            }
        }
        Ok(Quantization { paths, rotations: rotations(&config), ..Self::default() })
    }

    /// The size of the blocks of inputs that the matrix at this path expects rotated.
    pub(super) fn rotated_block(&self, path: &str) -> Option<i64> {
        self.rotations.get(path.strip_prefix("language_model.").unwrap_or(path)).copied()
    }

    fn foreign(said: &Statement, method: &str) -> Result<Self> {
        let mut quantization = Quantization { is_foreign: true, ..Self::default() };
        match method {
            "awq" => {
                said.allow("bits", &[4.into()])?;
                for field in ["version", "format", "checkpoint_format"] {
                    said.allow(field, &["gemm".into(), "GEMM".into()])?;
                }
                quantization.has_zeros = !said.is("zero_point", false);
                quantization.layout = Some(PackedLayout::Awq);
            }
            "gptq" => {
                let (mut layout, formats) =
                    (PackedLayout::Gptq, ["gptq", "gptq_v2"].map(Value::from));
                for field in ["format", "checkpoint_format"] {
                    said.allow(field, &formats)?;
                    if said.is(field, "gptq_v2") {
                        layout = PackedLayout::GptqV2;
                    }
                }
                quantization.has_zeros = true;
                quantization.layout = Some(layout);
            }
            "fp8" => {
                said.allow("fmt", &["e4m3".into(), "float8_e4m3fn".into()])?;
                quantization.block = said.block("weight_block_size")?;
                quantization.powers_of_two = said.is("scale_fmt", "ue8m0");
            }
            "bitnet" => {
                quantization.divides_ternary = !said.is("linear_class", "autobitlinear");
            }
            "compressed-tensors" => {
                (quantization.block, quantization.has_zeros) = said.compressed_tensors()?;
            }
            "modelopt" => said.model_opt()?,
            _ => {
                let path = format!("{}.quant_method", said.path);
                let unknown = Some(Unknown { path, method: method.into() });
                return Ok(Quantization { unknown, ..Self::default() });
            }
        }
        Ok(quantization)
    }

    /// An error if the method is not known, whatever the weights are.
    pub(crate) fn refuse_unknown(&self) -> Result<()> {
        self.unknown.clone().map_or(Ok(()), |unknown| Err(unknown.error()))
    }

    /// An error if the method is not known and has changed the weights: some matrix does not hold
    /// floating-point numbers. A config often keeps the method of a source that was dequantized.
    pub(crate) fn check(&self, tensors: &HashMap<String, Array>) -> Result<()> {
        let is_packed = |tensor: &Array| {
            let packed = [Dtype::Uint8, Dtype::Int8, Dtype::Int16, Dtype::Uint32, Dtype::Int32];
            tensor.ndim() > 1 && packed.contains(&tensor.dtype())
        };
        let Some(unknown) = &self.unknown else { return Ok(()) };
        if tensors.values().any(is_packed) {
            return Err(unknown.clone().error());
        }
        tracing::warn!(
            "{}: `{}` is not known; the weights are not quantized and are used as they are",
            unknown.path,
            unknown.method
        );
        Ok(())
    }

    /// The precision to which all floating-point tensors are converted: that of the scales of packed
    /// integers, as in the reference, because other tools leave the rest in another precision.
    pub(crate) fn precision(&self, tensors: &HashMap<String, Array>) -> Option<Dtype> {
        self.layout?;
        let packed = tensors.keys().filter_map(|name| name.strip_suffix(".qweight")).min()?;
        let dtype = tensors.get(&format!("{packed}.scales"))?.dtype();
        matches!(dtype, Dtype::Float16 | Dtype::Bfloat16 | Dtype::Float32).then_some(dtype)
    }

    /// Whether no model needs a tensor.
    pub(crate) fn is_superfluous(&self, name: &str) -> bool {
        let ends = |suffix: &&str| {
            name.strip_suffix(suffix).is_some_and(|rest| rest.ends_with(['.', '_']))
        };
        self.is_foreign && SUPERFLUOUS.iter().any(ends)
    }

    /// The statement of the config about one path; the outer `None` when it does not name it.
    pub(crate) fn of(&self, path: &str) -> Option<Option<Format>> {
        self.paths.get(path).copied()
    }
}

/// An object of a config, and its path.
struct Statement<'a> {
    path: String,
    object: &'a Json,
}

/// The statement of a config about quantization, in any of the usual fields.
fn statement(config: &Json) -> Option<Statement<'_>> {
    ["quantization", "quantization_config", "text_config.quantization_config"].into_iter().find_map(
        |path| {
            let object = path.split('.').try_fold(config, |value, field| value.get(field))?;
            object.is_object().then(|| Statement { path: path.into(), object })
        },
    )
}

impl<'a> Statement<'a> {
    fn wrong(&self, field: &str, reason: String) -> Error {
        Error::Quantization { path: format!("{}.{field}", self.path), reason }
    }

    fn at(&self, field: &str) -> Option<Statement<'a>> {
        let object = self.get(field)?;
        object.is_object().then(|| Statement { path: format!("{}.{field}", self.path), object })
    }

    /// A field that is not null.
    fn get(&self, field: &str) -> Option<&'a Json> {
        self.object.get(field).filter(|value| !value.is_null())
    }

    fn is(&self, field: &str, value: impl Into<Value>) -> bool {
        self.get(field).is_some_and(|found| found.to_value() == value.into())
    }

    /// An error unless the field is missing, null or one of these.
    fn allow(&self, field: &str, values: &[Value]) -> Result<()> {
        match self.get(field) {
            None => Ok(()),
            Some(value) if values.contains(&value.to_value()) => Ok(()),
            Some(value) => Err(self.wrong(field, format!("{value} is not supported"))),
        }
    }

    fn block(&self, field: &str) -> Result<Option<Block>> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let size = |i: usize| {
            let size = value.as_array()?.get(i)?.as_i64().filter(|size| *size > 0)?;
            i32::try_from(size).ok()
        };
        match (size(0), size(1)) {
            (Some(rows), Some(columns)) => Ok(Some(Block { rows, columns })),
            _ => Err(self.wrong(field, format!("{value} is not a number of rows and of columns"))),
        }
    }

    /// The block of 8-bit floats, and whether integers have zero points.
    fn compressed_tensors(&self) -> Result<(Option<Block>, bool)> {
        let formats = [
            "pack-quantized",
            "float-quantized",
            "naive-quantized",
            "nvfp4-pack-quantized",
            "mxfp4-pack-quantized",
            "mxfp8-quantized",
            "mixed-precision",
            "dense",
        ]
        .map(Value::from);
        self.allow("format", &formats)?;
        if let Some(sparsity) = self.at("sparsity_config") {
            sparsity.allow("format", &["dense".into()])?;
        }
        if self
            .at("transform_config")
            .is_some_and(|transforms| transforms.object.names().next().is_some())
        {
            let reason = "weights that were rotated are not supported".into();
            return Err(self.wrong("transform_config", reason));
        }
        let Some(groups) = self.at("config_groups") else { return Ok((None, false)) };
        let (mut block, mut symmetric, mut asymmetric) = (None, false, false);
        for name in groups.object.names() {
            let Some(group) = groups.at(name) else { continue };
            group.allow("format", &formats)?;
            let Some(weights) = group.at("weights") else { continue };
            let found = weights.block("block_structure")?;
            if found.is_some() && block.is_some() && found != block {
                let reason = "groups of layers have blocks of different sizes".into();
                return Err(weights.wrong("block_structure", reason));
            }
            block = block.or(found);
            match weights.is("symmetric", false) {
                true => asymmetric = true,
                false => symmetric = true,
            }
        }
        Ok((block, asymmetric && !symmetric))
    }

    fn model_opt(&self) -> Result<()> {
        let nested = self.at("quantization");
        let said = nested.as_ref().unwrap_or(self);
        let algorithms = ["NVFP4", "FP8"].map(Value::from);
        let Some(layers) = said.at("quantized_layers") else {
            return said.allow("quant_algo", &algorithms);
        };
        said.allow("quant_algo", &["MIXED_PRECISION".into()])?;
        for name in layers.object.names() {
            if let Some(layer) = layers.at(name) {
                layer.allow("quant_algo", &algorithms)?;
            }
        }
        Ok(())
    }
}

/// The matrices that the manifest of a Hadamard pack lists with a block.
fn rotations(config: &Json) -> HashMap<String, i64> {
    let modules = config.get("modules").and_then(Json::as_array);
    let rotation = |module: &Json| {
        let block = module.get("block")?.as_i64().filter(|block| *block > 0)?;
        Some((module.get("path")?.as_str()?.to_string(), block))
    };
    modules.into_iter().flatten().filter_map(rotation).collect()
}

impl Format {
    fn read(path: &str, fields: &Json) -> Result<Self> {
        let wrong = |reason: &str| Error::Quantization { path: path.into(), reason: reason.into() };
        let given = |name: &str| fields.get(name).filter(|value| !value.is_null());
        let mode = match given("mode").map(Json::as_str) {
            None | Some(Some("affine")) => Mode::Affine,
            Some(Some("mxfp4")) => Mode::Mxfp4,
            Some(Some("mxfp8")) => Mode::Mxfp8,
            Some(Some("nvfp4")) => Mode::Nvfp4,
            Some(_) => return Err(wrong("the mode is not affine, mxfp4, mxfp8 or nvfp4")),
        };
        let (bits, group) = match mode {
            Mode::Affine => (4, 64),
            Mode::Mxfp4 => (4, 32),
            Mode::Mxfp8 => (8, 32),
            Mode::Nvfp4 => (4, 16),
        };
        let number = |name: &str, default: i32| match given(name) {
            None => Ok(default),
            Some(value) => value
                .as_i64()
                .and_then(|n| i32::try_from(n).ok())
                .ok_or_else(|| wrong(&format!("{name} is not a number"))),
        };
        Ok(Format { mode, bits: number("bits", bits)?, group: number("group_size", group)? })
    }
}
