//! Inspection of a checkpoint without its weights.

use crate::{error::MynahError, source::ModelSource};
use mynah::Location;

/// Facts about a checkpoint that is not loaded.
#[derive(Clone, Debug, uniffi::Record)]
pub struct Inspection {
    /// The `model_type` of the config.
    pub model_type: String,
    /// Why the checkpoint cannot be loaded, if a reason is known.
    pub problem: Option<String>,
    /// Number of layers.
    pub layers: Option<u64>,
    /// The hidden size.
    pub hidden_size: Option<u64>,
    /// Number of parameters; a quantized one counts as one.
    pub parameters: u64,
    /// Size of the weights, in bytes.
    pub bytes: u64,
    /// The quantization formats, the most frequent first.
    pub quantization: Vec<QuantizationFormat>,
    /// The longest sequence, in tokens, if the config limits it.
    pub context: Option<u64>,
    /// Whether it has a tokenizer.
    pub tokenizer: bool,
    /// Whether it has a chat template.
    pub chat_template: bool,
    /// Whether the hub demands that a licence is accepted first; none for local files.
    pub gated: Option<bool>,
    /// The memory that it needs; none when it cannot be loaded.
    pub memory: Option<MemoryNeed>,
}

/// The memory that a checkpoint needs, in bytes.
#[derive(Clone, Debug, uniffi::Record)]
pub struct MemoryNeed {
    /// The length of the sequence, in tokens, for which the numbers hold.
    pub context: u64,
    /// The weights.
    pub weights: u64,
    /// The KV cache of one sequence.
    pub cache: u64,
    /// Weights, KV cache and intermediate results.
    pub needed: u64,
    /// The memory that this device lets a process use, if known.
    pub device: Option<u64>,
    /// Whether `needed` fits, if known.
    pub fits: Option<bool>,
}

/// One quantization format.
#[derive(Clone, Debug, uniffi::Record)]
pub struct QuantizationFormat {
    /// The mode, such as `affine`.
    pub mode: String,
    /// Bits per weight.
    pub bits: u32,
    /// The group size.
    pub group_size: u32,
    /// Number of matrices in this format.
    pub matrices: u64,
}

/// Inspects a checkpoint without its weights. `context` is the length of the sequence, in tokens, for
/// which the memory is computed; by default the longest one of the config, at most 4096.
///
/// # Errors
/// When its files cannot be downloaded or parsed. A checkpoint that is only unsupported has a `problem`.
#[uniffi::export]
pub async fn inspect(source: ModelSource, context: Option<u32>) -> Result<Inspection, MynahError> {
    let context = context.map(|context| context as usize);
    let inspection = mynah::inspect(Location::try_from(source)?, context).await?;
    let memory = |memory: mynah::Memory| MemoryNeed {
        context: memory.context as u64,
        weights: memory.weights,
        cache: memory.cache,
        needed: memory.needed,
        device: memory.device,
        fits: memory.fits,
    };
    let format = |format: mynah::Packing| QuantizationFormat {
        mode: format.mode.into(),
        bits: format.bits.unsigned_abs(),
        group_size: format.group_size.unsigned_abs(),
        matrices: format.matrices as u64,
    };
    Ok(Inspection {
        model_type: inspection.model_type,
        problem: inspection.problem,
        layers: inspection.layers,
        hidden_size: inspection.hidden_size,
        parameters: inspection.parameters,
        bytes: inspection.bytes,
        quantization: inspection.quantization.into_iter().map(format).collect(),
        context: inspection.context.map(|context| context as u64),
        tokenizer: inspection.tokenizer,
        chat_template: inspection.chat_template,
        gated: inspection.gated,
        memory: inspection.memory.map(memory),
    })
}
