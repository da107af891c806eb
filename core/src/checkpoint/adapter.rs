//! Adapters: the results of fine-tuning, LoRA, DoRA or whole tensors, in a folder of their own, as
//! [mlx-lm](https://github.com/ml-explore/mlx-lm/blob/main/mlx_lm/LORA.md) or
//! [PEFT](https://github.com/huggingface/peft) writes it.
//!
//! mlx-lm names tensors by its own modules, PEFT by those of transformers, and a checkpoint has the
//! names of one of them. So an adapter fits wherever the two agree, up to wrappers and stacks of
//! experts. Where mlx-lm renames the modules of a published checkpoint, its adapters fit only a
//! checkpoint that mlx-lm has converted. A tensor that matches no matrix is an error.

use crate::{
    checkpoint::{
        config::{self, Positive, Size},
        files::Files,
        shards,
    },
    error::{Error, List, Result},
    mlx,
};
use mlx_rs::Array;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value as Json;
use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    path::PathBuf,
};

const CONFIG: &str = "adapter_config.json";
const MLX_LM: &str = "adapters.safetensors";
const PEFT: &str = "adapter_model.safetensors";

/// The files of adapters: the config, and the tensors of either tool.
pub(crate) const FILES: [&str; 3] = [CONFIG, MLX_LM, PEFT];

/// Fields of PEFT's config that change the computation, unless they are off.
const OFF: &[&str] = &[
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "ensure_weight_tying",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
];

/// Initializations that leave the matrices of the model as they are.
const INITIALIZATIONS: &[&str] = &["eva", "gaussian", "orthogonal"];

/// An adapter, while a model is read.
pub(crate) struct Adapter {
    file: PathBuf,
    unread: RefCell<BTreeMap<String, Tensor>>,
    /// `None` for a full fine-tune.
    pub lora: Option<Lora>,
    is_peft: bool,
}

struct Tensor {
    /// Its name in the file.
    name: String,
    values: Array,
}

/// The common facts of all LoRA deltas.
#[derive(Clone, Copy)]
pub(crate) struct Lora {
    pub rank: i32,
    scale: f32,
    /// Whether it is a DoRA.
    has_magnitude: bool,
}

#[derive(Deserialize)]
struct MlxLmConfig {
    lora_parameters: MlxLmParameters,
}

#[derive(Deserialize)]
struct MlxLmParameters {
    rank: Size,
    scale: Positive,
}

#[derive(Deserialize)]
struct PeftConfig {
    r: Size,
    lora_alpha: Positive<f64>,
    use_rslora: Option<bool>,
    use_dora: Option<bool>,
}

/// A text that differs between different adapters.
///
/// # Errors
/// As [`Files::fingerprint`].
pub(crate) fn fingerprint(files: &Files) -> Result<String> {
    let file = file(&config(files)?);
    files.hash(CONFIG, &[file.to_string()].into())
}

impl Adapter {
    /// Opens the adapter in a folder.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a kind that is not supported, those of the file of tensors, and
    /// [`Error::Adapter`] for two tensors of one matrix.
    pub fn open(files: &Files) -> Result<Self> {
        let config = config(files)?;
        let (name, is_peft) = (file(&config), file(&config) == PEFT);
        let lora = if is_peft { Some(peft(&config)?) } else { mlx_lm(&config)? };
        let mut unread = BTreeMap::<_, Tensor>::new();
        let file = files.path(name);
        for (name, values) in shards::file(files, name)? {
            let (usual, is_transposed) =
                if is_peft { usual_peft(&name) } else { (usual(&name), false) };
            let values = if is_transposed { values.t() } else { values };
            if let Some(other) = unread.insert(usual, Tensor { name: name.clone(), values }) {
                let reason = format!("`{name}` and `{}` name the same tensor", other.name);
                return Err(Error::Adapter { file, reason });
            }
        }
        Ok(Adapter { file, unread: RefCell::new(unread), lora, is_peft })
    }

    /// Replaces tensors of a checkpoint by the whole tensors of the adapter.
    ///
    /// # Errors
    /// [`Error::TensorShape`].
    pub fn replace(&self, tensors: &mut HashMap<String, Array>) -> Result<()> {
        if self.lora.is_some() && !self.is_peft {
            return Ok(());
        }
        let mut unread = self.unread.borrow_mut();
        for (name, tensor) in tensors {
            let Some(Tensor { name, values }) = unread.remove(&usual(name)) else { continue };
            if values.shape() != tensor.shape() {
                return Err(misshaped(name, &values, tensor.shape()));
            }
            *tensor = values;
        }
        Ok(())
    }

    /// The factor of the LoRA deltas.
    pub fn scale(&self) -> f32 {
        self.lora.map_or(1.0, |lora| lora.scale)
    }

    /// Whether the adapter is a DoRA.
    pub fn has_magnitude(&self) -> bool {
        self.lora.is_some_and(|lora| lora.has_magnitude)
    }

    /// Whether the delta of a table of embeddings is also that of the head that is tied to it:
    /// mlx-lm has one module for both, transformers has two.
    pub fn adapts_tied_head(&self) -> bool {
        !self.is_peft
    }

    /// Takes a tensor by mlx-lm's name for it, if the adapter has it.
    ///
    /// # Errors
    /// [`Error::TensorShape`]; [`Error::Adapter`] when it holds integers.
    pub fn take(&self, name: &str, shape: &[i32]) -> Result<Option<Array>> {
        let tensor = self.unread.borrow_mut().remove(&usual(name));
        let Some(Tensor { name, values }) = tensor else { return Ok(None) };
        if values.shape() != shape {
            return Err(misshaped(name, &values, shape));
        }
        if !mlx::is_floating(&values) {
            return Err(self.wrong(format!("tensor `{name}` holds {:?}", values.dtype())));
        }
        Ok(Some(values))
    }

    /// An error about its tensors.
    pub fn wrong(&self, reason: String) -> Error {
        Error::Adapter { file: self.file.clone(), reason }
    }

    /// An error about a missing tensor.
    pub fn missing(&self, name: &str) -> Error {
        self.wrong(format!("has no tensor `{name}`"))
    }

    /// An error if the model has taken not all tensors.
    ///
    /// # Errors
    /// [`Error::Adapter`].
    pub fn finish(&self) -> Result<()> {
        let unread = self.unread.take();
        if unread.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = unread.into_values().map(|tensor| tensor.name).collect();
        Err(self.wrong(format!("the model has no matrices for {}", List(&names))))
    }
}

fn config(files: &Files) -> Result<Json> {
    files.json(CONFIG)?.ok_or_else(|| wrong("", "there is no such file"))
}

/// The file of tensors that belongs to a config.
fn file(config: &Json) -> &'static str {
    if config.get("peft_type").is_some_and(|kind| !kind.is_null()) { PEFT } else { MLX_LM }
}

fn mlx_lm(config: &Json) -> Result<Option<Lora>> {
    let kind = match config.get("fine_tune_type") {
        None => Some("lora"),
        Some(kind) => kind.as_str(),
    };
    let has_magnitude = match kind {
        Some("full") => return Ok(None),
        Some("lora") => false,
        Some("dora") => true,
        _ => return Err(unsupported("fine_tune_type", "not `lora`, `dora` or `full`")),
    };
    let MlxLmParameters { rank, scale } = read::<MlxLmConfig>(config)?.lora_parameters;
    Ok(Some(Lora { rank: *rank, scale: *scale, has_magnitude }))
}

fn peft(config: &Json) -> Result<Lora> {
    if config.get("peft_type").and_then(Json::as_str) != Some("LORA") {
        return Err(unsupported("peft_type", "only `LORA` is supported"));
    }
    let is_off = |value: &Json| match value {
        Json::Null | Json::Bool(false) => true,
        Json::Array(list) => list.is_empty(),
        Json::Object(map) => map.is_empty(),
        _ => false,
    };
    let is_on = |field: &&&str| config.get(**field).is_some_and(|value| !is_off(value));
    if let Some(field) = OFF.iter().find(is_on) {
        return Err(unsupported(field, "not supported"));
    }
    if config.get("bias").is_some_and(|bias| bias != "none") {
        return Err(unsupported("bias", "only `none` is supported"));
    }
    if let Some(Json::String(way)) = config.get("init_lora_weights")
        && !INITIALIZATIONS.contains(&&**way)
    {
        let reason = format!("`{way}` changes the matrices of the model");
        return Err(unsupported("init_lora_weights", &reason));
    }
    let PeftConfig { r, lora_alpha, use_rslora, use_dora } = read(config)?;
    let rank = f64::from(*r);
    let divisor = if use_rslora == Some(true) { rank.sqrt() } else { rank };
    let scale = (*lora_alpha / divisor) as f32;
    Ok(Lora { rank: *r, scale, has_magnitude: use_dora == Some(true) })
}

fn read<T: DeserializeOwned>(config: &Json) -> Result<T> {
    config::read(&config.into()).map_err(|error| match error {
        Error::Config { field, reason, .. } => wrong(&field, &reason),
        error => error,
    })
}

fn unsupported(field: &str, reason: &str) -> Error {
    Error::Unsupported { file: CONFIG.into(), field: field.into(), reason: reason.into() }
}

fn wrong(field: &str, reason: &str) -> Error {
    Error::Config { file: CONFIG.into(), field: field.into(), reason: reason.into() }
}

fn misshaped(name: String, found: &Array, expected: &[i32]) -> Error {
    Error::TensorShape { name, found: found.shape().to_vec(), expected: expected.to_vec() }
}

/// A name in the form in which names are compared: without the wrappers of whole models, which
/// converters nest in different ways, and with one word for stacks of experts.
fn usual(name: &str) -> String {
    let is_wrapper = |part: &&str| ["model", "language_model", "transformer"].contains(part);
    let mut parts: Vec<&str> = name.split('.').skip_while(is_wrapper).collect();
    for part in &mut parts {
        if ["switch_mlp", "switch_glu"].contains(part) {
            *part = "experts";
        }
    }
    parts.dedup_by(|one, other| *one == "experts" && one == other);
    parts.join(".")
}

/// mlx-lm's name for a tensor of PEFT's, and whether mlx-lm stores it transposed.
fn usual_peft(name: &str) -> (String, bool) {
    const SUFFIXES: &[(&str, &str, bool)] = &[
        (".lora_A.weight", ".lora_a", true),
        (".lora_B.weight", ".lora_b", true),
        (".lora_embedding_A", ".lora_a", true),
        (".lora_embedding_B", ".lora_b", true),
        (".lora_magnitude_vector", ".m", false),
        // PEFT saves the whole table of embeddings beside its delta.
        (".base_layer.weight", ".weight", false),
    ];
    let name = usual(name.strip_prefix("base_model.model.").unwrap_or(name));
    let theirs = |(theirs, ours, is_transposed): &(&str, &str, bool)| {
        Some((name.strip_suffix(theirs)?.to_string() + ours, *is_transposed))
    };
    SUFFIXES.iter().find_map(theirs).unwrap_or((name.clone(), false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_both_tools_are_compared_without_wrappers() {
        for (one, other) in [
            ("model.layers.0.mlp.up_proj", "language_model.model.layers.0.mlp.up_proj"),
            ("model.layers.0.mlp.up_proj", "model.language_model.layers.0.mlp.up_proj"),
            ("transformer.h.0.attn.c_attn", "model.h.0.attn.c_attn"),
            ("model.layers.0.mlp.switch_mlp.up_proj", "model.layers.0.mlp.experts.up_proj"),
            ("layers.0.experts.switch_glu.up_proj", "layers.0.experts.up_proj"),
        ] {
            assert_eq!(usual(one), usual(other));
        }
        assert_ne!(usual("mlp.experts.0.up_proj"), usual("mlp.switch_mlp.up_proj"));
        assert_ne!(usual("mlp.up_proj"), usual("mlp.experts.up_proj"));
        let factor = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
        assert_eq!(usual_peft(factor), ("layers.0.self_attn.q_proj.lora_a".into(), true));
        let whole = "base_model.model.lm_head.weight";
        assert_eq!(usual_peft(whole), ("lm_head.weight".into(), false));
    }
}
