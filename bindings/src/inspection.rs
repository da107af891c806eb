//! What a checkpoint is, before it is loaded.

use crate::{error::MynahError, source::ModelSource};
use mynah::Location;

/// What is known of a checkpoint before it is loaded.
#[derive(Clone, Debug, uniffi::Record)]
pub struct Inspection {
    /// The `model_type` of its config.
    pub model_type: String,
    /// Why it will not load, as far as is known.
    pub problem: Option<String>,
    /// Number of layers.
    pub layers: Option<u64>,
    /// Width of the residual stream.
    pub hidden_size: Option<u64>,
    /// Number of weights; a quantized one counts as one.
    pub parameters: u64,
    /// Size of the weights, in bytes.
    pub bytes: u64,
    /// How matrices are packed, the usual way first.
    pub quantization: Vec<Packing>,
    /// The longest sequence that it was made for, in tokens, if it says so.
    pub context: Option<u64>,
    /// Whether it takes text, not only tokens.
    pub tokenizer: bool,
    /// Whether it takes messages.
    pub chat_template: bool,
    /// Whether a licence must be accepted to fetch it, where a hub was asked.
    pub gated: Option<bool>,
    /// What it takes to run; none when it will not load.
    pub memory: Option<MemoryNeed>,
}

/// What running a checkpoint takes, in bytes.
#[derive(Clone, Debug, uniffi::Record)]
pub struct MemoryNeed {
    /// How long the sequence is that this holds for, in tokens.
    pub context: u64,
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
#[derive(Clone, Debug, uniffi::Record)]
pub struct Packing {
    /// The scheme, such as `affine`.
    pub mode: String,
    /// Bits of one weight.
    pub bits: u32,
    /// Weights that share a scale.
    pub group_size: u32,
    /// How many matrices are packed so.
    pub matrices: u64,
}

/// Looks at a checkpoint without reading its weights. `context` is how many tokens a sequence shall
/// have room for; by default as many as the model was made for, and at most 4096.
///
/// # Errors
/// When its files cannot be fetched or understood; what is merely not supported is a `problem`.
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
    let packing = |packing: mynah::Packing| Packing {
        mode: packing.mode.into(),
        bits: packing.bits.unsigned_abs(),
        group_size: packing.group_size.unsigned_abs(),
        matrices: packing.matrices as u64,
    };
    Ok(Inspection {
        model_type: inspection.model_type,
        problem: inspection.problem,
        layers: inspection.layers,
        hidden_size: inspection.hidden_size,
        parameters: inspection.parameters,
        bytes: inspection.bytes,
        quantization: inspection.quantization.into_iter().map(packing).collect(),
        context: inspection.context.map(|context| context as u64),
        tokenizer: inspection.tokenizer,
        chat_template: inspection.chat_template,
        gated: inspection.gated,
        memory: inspection.memory.map(memory),
    })
}
