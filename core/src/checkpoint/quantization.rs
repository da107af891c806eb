//! The statements of a config about the quantization of its weights; shapes and types of tensors say
//! the rest.

use crate::{
    checkpoint::{config::Json, files::Files},
    error::{Error, Result},
    mlx::quantized::{Format, Mode},
};
use mlx_rs::{Array, Dtype};
use serde_json::Map;
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
    pub(crate) fn of_checkpoint(files: &Files, config: &Json) -> Result<Self> {
        if statement(config).is_none()
            && let Some(separate) = files.json(MODEL_OPT)?
            && let Some(map) = separate.as_object()
        {
            return Self::foreign(&Statement { path: MODEL_OPT.into(), map }, "modelopt");
        }
        Self::read(config)
    }

    pub(crate) fn read(config: &Json) -> Result<Self> {
        let Some(said) = statement(config) else { return Ok(Self::default()) };
        match said.map.get("quant_method").and_then(Json::as_str) {
            None | Some("mxfp4" | "mxfp8") => {}
            Some(method) => return Self::foreign(&said, method),
        }
        let mut paths = BTreeMap::new();
        for (path, value) in said.map {
            match value {
                Json::Bool(false) => drop(paths.insert(path.clone(), None)),
                Json::Object(fields) => {
                    let format = Format::read(&format!("{}.{path}", said.path), fields)?;
                    paths.insert(path.clone(), Some(format));
                }
                _ => {}
            }
        }
        Ok(Quantization { paths, ..Self::default() })
    }

    fn foreign(said: &Statement, method: &str) -> Result<Self> {
        let mut quantization = Quantization { is_foreign: true, ..Self::default() };
        match method {
            "awq" => {
                said.allow("bits", &[4.into()])?;
                for field in ["version", "format", "checkpoint_format"] {
                    said.allow(field, &["gemm".into(), "GEMM".into()])?;
                }
                quantization.has_zeros = said.map.get("zero_point") != Some(&Json::Bool(false));
                quantization.layout = Some(PackedLayout::Awq);
            }
            "gptq" => {
                let (mut layout, formats) =
                    (PackedLayout::Gptq, ["gptq", "gptq_v2"].map(Json::from));
                for field in ["format", "checkpoint_format"] {
                    said.allow(field, &formats)?;
                    if said.map.get(field).is_some_and(|format| format == "gptq_v2") {
                        layout = PackedLayout::GptqV2;
                    }
                }
                quantization.has_zeros = true;
                quantization.layout = Some(layout);
            }
            "fp8" => {
                said.allow("fmt", &["e4m3".into(), "float8_e4m3fn".into()])?;
                quantization.block = said.block("weight_block_size")?;
                quantization.powers_of_two = said.map.get("scale_fmt") == Some(&"ue8m0".into());
            }
            "bitnet" => {
                let class = said.map.get("linear_class");
                quantization.divides_ternary = class != Some(&"autobitlinear".into());
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
    map: &'a Map<String, Json>,
}

/// The statement of a config about quantization, in any of the usual fields.
fn statement(config: &Json) -> Option<Statement<'_>> {
    ["quantization", "quantization_config", "text_config.quantization_config"].into_iter().find_map(
        |path| {
            let value = path.split('.').try_fold(config, |value, field| value.get(field))?;
            Some(Statement { path: path.into(), map: value.as_object()? })
        },
    )
}

impl<'a> Statement<'a> {
    fn wrong(&self, field: &str, reason: String) -> Error {
        Error::Quantization { path: format!("{}.{field}", self.path), reason }
    }

    fn at(&self, field: &str) -> Option<Statement<'a>> {
        let map = self.map.get(field)?.as_object()?;
        Some(Statement { path: format!("{}.{field}", self.path), map })
    }

    /// An error unless the field is missing, null or one of these.
    fn allow(&self, field: &str, values: &[Json]) -> Result<()> {
        match self.map.get(field) {
            None | Some(Json::Null) => Ok(()),
            Some(value) if values.contains(value) => Ok(()),
            Some(value) => Err(self.wrong(field, format!("{value} is not supported"))),
        }
    }

    fn block(&self, field: &str) -> Result<Option<Block>> {
        let value = match self.map.get(field) {
            None | Some(Json::Null) => return Ok(None),
            Some(value) => value,
        };
        let size = |i| {
            let size = value.get(i)?.as_i64().filter(|size| *size > 0)?;
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
        .map(Json::from);
        self.allow("format", &formats)?;
        if let Some(sparsity) = self.at("sparsity_config") {
            sparsity.allow("format", &["dense".into()])?;
        }
        if self.at("transform_config").is_some_and(|transforms| !transforms.map.is_empty()) {
            let reason = "weights that were rotated are not supported".into();
            return Err(self.wrong("transform_config", reason));
        }
        let Some(groups) = self.at("config_groups") else { return Ok((None, false)) };
        let (mut block, mut symmetric, mut asymmetric) = (None, false, false);
        for name in groups.map.keys() {
            let Some(group) = groups.at(name) else { continue };
            group.allow("format", &formats)?;
            let Some(weights) = group.at("weights") else { continue };
            let found = weights.block("block_structure")?;
            if found.is_some() && block.is_some() && found != block {
                let reason = "groups of layers have blocks of different sizes".into();
                return Err(weights.wrong("block_structure", reason));
            }
            block = block.or(found);
            match weights.map.get("symmetric") {
                Some(Json::Bool(false)) => asymmetric = true,
                _ => symmetric = true,
            }
        }
        Ok((block, asymmetric && !symmetric))
    }

    fn model_opt(&self) -> Result<()> {
        let nested = self.at("quantization");
        let said = nested.as_ref().unwrap_or(self);
        let algorithms = ["NVFP4", "FP8"].map(Json::from);
        let Some(layers) = said.at("quantized_layers") else {
            return said.allow("quant_algo", &algorithms);
        };
        said.allow("quant_algo", &["MIXED_PRECISION".into()])?;
        for name in layers.map.keys() {
            if let Some(layer) = layers.at(name) {
                layer.allow("quant_algo", &algorithms)?;
            }
        }
        Ok(())
    }
}

impl Format {
    fn read(path: &str, fields: &Map<String, Json>) -> Result<Self> {
        let wrong = |reason: &str| Error::Quantization { path: path.into(), reason: reason.into() };
        let mode = match fields.get("mode").map(|mode| mode.as_str()) {
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
        let number = |name: &str, default: i32| match fields.get(name) {
            None => Ok(default),
            Some(value) => value
                .as_i64()
                .and_then(|n| i32::try_from(n).ok())
                .ok_or_else(|| wrong(&format!("{name} is not a number"))),
        };
        Ok(Format { mode, bits: number("bits", bits)?, group: number("group_size", group)? })
    }
}
