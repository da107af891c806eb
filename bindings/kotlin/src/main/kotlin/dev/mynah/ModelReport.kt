package dev.mynah

import dev.mynah.core.Inspection
import dev.mynah.core.MemoryNeed as CoreMemoryNeed
import dev.mynah.core.QuantizationFormat as CoreFormat

/**
 * Facts about a model that is not loaded.
 *
 * @property modelType the `model_type` of the config
 * @property problem why the model cannot be loaded, if a reason is known
 * @property layers number of layers
 * @property hiddenSize the hidden size
 * @property parameterCount number of parameters; a quantized one counts as one
 * @property bytes size of the weights on the disk, in bytes
 * @property quantization the quantization formats, the most frequent first
 * @property contextLength the longest sequence, in tokens, if the config limits it
 * @property hasTokenizer whether it has a tokenizer
 * @property hasChatTemplate whether it has a chat template
 * @property isGated whether the hub demands that a licence is accepted first; null for local files
 * @property memory the memory that it needs; null if it cannot be loaded
 */
@ConsistentCopyVisibility
data class ModelReport internal constructor(
    val modelType: String,
    val problem: String?,
    val layers: Int?,
    val hiddenSize: Int?,
    val parameterCount: Long,
    val bytes: Long,
    val quantization: List<QuantizationFormat>,
    val contextLength: Int?,
    val hasTokenizer: Boolean,
    val hasChatTemplate: Boolean,
    val isGated: Boolean?,
    val memory: MemoryNeed?,
)

/**
 * The memory that a model needs, in bytes.
 *
 * @property contextLength the length of the sequence, in tokens, for which the numbers hold
 * @property weights the weights
 * @property cache the KV cache of one sequence
 * @property needed weights, KV cache and intermediate results
 * @property device the memory that this device lets a process use, if known
 * @property fits whether [needed] fits, if known
 */
@ConsistentCopyVisibility
data class MemoryNeed internal constructor(
    val contextLength: Int,
    val weights: Long,
    val cache: Long,
    val needed: Long,
    val device: Long?,
    val fits: Boolean?,
)

/**
 * A quantization format.
 *
 * @property mode the mode, such as `affine`
 * @property bits bits per weight
 * @property groupSize the group size
 * @property matrices number of matrices in this format
 */
@ConsistentCopyVisibility
data class QuantizationFormat internal constructor(
    val mode: String,
    val bits: Int,
    val groupSize: Int,
    val matrices: Int,
)

internal fun Inspection.toMynah() = ModelReport(
    modelType = modelType,
    problem = problem,
    layers = layers?.toCount(),
    hiddenSize = hiddenSize?.toCount(),
    parameterCount = parameters.toLong(),
    bytes = bytes.toLong(),
    quantization = quantization.map { it.toMynah() },
    contextLength = context?.toCount(),
    hasTokenizer = tokenizer,
    hasChatTemplate = chatTemplate,
    isGated = gated,
    memory = memory?.toMynah(),
)

private fun CoreFormat.toMynah() =
    QuantizationFormat(mode, bits.toMynah(), groupSize.toMynah(), matrices.toCount())

private fun CoreMemoryNeed.toMynah() = MemoryNeed(
    context.toCount(),
    weights.toLong(),
    cache.toLong(),
    needed.toLong(),
    device?.toLong(),
    fits,
)
