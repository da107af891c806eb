//! What a checkpoint is, from its config and the headers of its files; no weights are read.

use crate::{
    checkpoint,
    config::Json,
    error::{Error, Result},
    files::Files,
    handle,
    loaded::{family, model_type},
    mlx::{Format, Mode},
    quantization::Quantization,
    text::{ChatTemplate, Tokenizer},
};
use safetensors::tensor::{Dtype, TensorInfo};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

/// What is known of a checkpoint before it is loaded.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// The `model_type` of its config.
    pub model_type: String,
    /// Why it will not load, as far as the config tells.
    pub problem: Option<String>,
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

/// Looks at a checkpoint without loading it.
///
/// # Errors
/// [`Error::Io`]; [`Error::Config`] and [`Error::Checkpoint`] for files that cannot be understood.
/// What is merely not supported is no error but a [`Inspection::problem`].
pub fn inspect(files: impl Into<Files>) -> Result<Inspection> {
    let files = files.into();
    let config =
        files.json("config.json")?.ok_or_else(|| Error::config("", "there is no such file"))?;
    let model_type = model_type(&config)?.to_string();
    let text = config.get("text_config").unwrap_or(&config);
    let number = |names: &[&str]| names.iter().find_map(|name| text.get(name)?.as_u64());
    let mut inspection = Inspection {
        problem: problem(&config, &files).err().map(|error| error.to_string()),
        layers: number(&["num_hidden_layers", "n_layer", "num_layers"]),
        hidden_size: number(&["hidden_size", "n_embd", "d_model"]),
        parameters: 0,
        bytes: 0,
        dtypes: BTreeMap::new(),
        quantization: Vec::new(),
        context: handle::context(&config),
        tokenizer: Tokenizer::file(&files)?.is_some(),
        chat_template: matches!(ChatTemplate::load(&files), Ok(Some(_))),
        model_type,
    };
    let quantization = Quantization::of_checkpoint(&files, &config).unwrap_or_default();
    inspection.count(&headers(&files)?, &config, &quantization);
    Ok(inspection)
}

fn problem(config: &Json, files: &Files) -> Result<()> {
    family(config)?;
    Quantization::of_checkpoint(files, config)?;
    ChatTemplate::load(files)?;
    Ok(())
}

fn headers(files: &Files) -> Result<HashMap<String, TensorInfo>> {
    let headers = checkpoint::headers(files)?;
    let owned = |(name, info): (String, &TensorInfo)| (name, info.clone());
    Ok(headers.iter().flat_map(|header| header.tensors().into_iter().map(owned)).collect())
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
        ("weight_packed" | "weight", Dtype::U8) => {
            let scales = beside("weight_scale").or(beside("weight_scale_inv"))?;
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
            let scales = beside("weight_scale").or(beside("weight_scale_inv"))?;
            let is_exponent = scales.dtype.bitsize() == 8;
            is_exponent.then_some(Format { mode: Mode::Mxfp8, bits: 8, group: 32 })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_model_is_what_it_is() {
        let inspection = inspect(crate::DEMO).unwrap();
        let config = crate::DEMO.json("config.json").unwrap().unwrap();
        let vocabulary = config["vocab_size"].as_u64().unwrap();
        assert_eq!((inspection.model_type.as_str(), inspection.problem), ("llama", None));
        assert_eq!((inspection.layers, inspection.hidden_size), (Some(4), Some(128)));
        let (h, ffn, kv, layers) = (128, 384, 64, 4);
        let layer = 2 * h * h + 2 * h * kv + 3 * h * ffn + 2 * h;
        assert_eq!(inspection.parameters, vocabulary * h + layers * layer + h);
        let packing = Packing { mode: "affine", bits: 8, group_size: 64, matrices: 4 * 7 + 1 };
        assert_eq!(inspection.quantization, [packing]);
        assert!(inspection.tokenizer && inspection.chat_template);
        assert_eq!(inspection.context, Some(512));
    }
}
