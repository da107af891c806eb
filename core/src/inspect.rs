//! What a checkpoint is, from its config and the headers of its files; no weights are read.

use crate::{
    config::Json,
    error::{Error, Result},
    files::Files,
    handle,
    loaded::{family, model_type},
    mlx::{Format, Mode},
    text::{ChatTemplate, Tokenizer},
    weights::{Quantization, read_header, shards},
};
use safetensors::{
    SafeTensors,
    tensor::{Dtype, TensorInfo},
};
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
    inspection.count(&headers(&files)?, &config);
    Ok(inspection)
}

fn problem(config: &Json, files: &Files) -> Result<()> {
    family(config)?;
    Quantization::read(config)?;
    ChatTemplate::load(files)?;
    Ok(())
}

fn headers(files: &Files) -> Result<HashMap<String, TensorInfo>> {
    let mut metadata = Vec::new();
    match files {
        Files::Directory(directory) => {
            for shard in shards(directory, files)? {
                metadata.push(read_header(&directory.join(shard))?);
            }
        }
        Files::Embedded(_) => {
            let file = "model.safetensors";
            let damaged = |reason: String| Error::Checkpoint { file: file.into(), reason };
            let bytes = files.read(file)?.ok_or_else(|| damaged("missing".into()))?;
            let header = SafeTensors::read_metadata(&bytes);
            metadata.push(header.map_err(|error| damaged(error.to_string()))?.1);
        }
    }
    let owned = |(name, info): (String, &TensorInfo)| (name, info.clone());
    Ok(metadata.iter().flat_map(|header| header.tensors().into_iter().map(owned)).collect())
}

impl Inspection {
    fn count(&mut self, tensors: &HashMap<String, TensorInfo>, config: &Json) {
        let quantization = Quantization::read(config).unwrap_or_default();
        let said = config.get("quantization").or(config.get("quantization_config"));
        let group = said.and_then(|said| said.get("group_size")).and_then(Json::as_u64);
        let group = |path: &str| {
            let named = quantization.of(path).flatten().map(|format| format.group);
            named.unwrap_or(group.unwrap_or(64) as i32).max(1)
        };
        let mut packings = HashMap::<(&'static str, i32, i32), usize>::new();
        for (name, info) in tensors {
            self.bytes += (info.data_offsets.1 - info.data_offsets.0) as u64;
            let elements = info.shape.iter().product::<usize>() as u64;
            if belongs_to_packed(name, tensors) {
                continue;
            }
            match packing(name, info, tensors, group) {
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
    let path = name.strip_suffix(".scales").or(name.strip_suffix(".biases"));
    path.is_some_and(|path| has(format!("{path}.weight")) && has(format!("{path}.scales")))
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
