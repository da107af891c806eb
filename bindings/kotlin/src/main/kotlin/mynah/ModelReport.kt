package mynah

import mynah.core.Inspection
import mynah.core.MemoryNeed as CoreMemoryNeed
import mynah.core.Packing as CorePacking

/**
 * What is known of a checkpoint before it is loaded.
 *
 * @property modelType the `model_type` of its config
 * @property problem why it will not load, as far as is known
 * @property layers number of layers
 * @property hiddenSize width of the residual stream
 * @property parameters number of weights; a quantized one counts as one
 * @property bytes size of the weights
 * @property quantization how matrices are packed, the usual way first
 * @property context the longest sequence that it was made for, in tokens, if it says so
 * @property hasTokenizer whether it takes text, not only tokens
 * @property hasChatTemplate whether it takes messages
 * @property isGated whether a licence must be accepted to fetch it, where a hub was asked
 * @property memory what it takes to run; null when it will not load
 */
data class ModelReport(
    val modelType: String,
    val problem: String?,
    val layers: Int?,
    val hiddenSize: Int?,
    val parameters: Long,
    val bytes: Long,
    val quantization: List<Packing>,
    val context: Int?,
    val hasTokenizer: Boolean,
    val hasChatTemplate: Boolean,
    val isGated: Boolean?,
    val memory: MemoryNeed?,
)

/**
 * What running a checkpoint takes, in bytes.
 *
 * @property context how long the sequence is that this holds for, in tokens
 * @property weights the weights as they are in memory
 * @property cache what the model remembers of one sequence
 * @property needed both, and room for what is computed on the way
 * @property device what this device lets a program use, if that is known
 * @property fits whether it suffices
 */
data class MemoryNeed(
    val context: Int,
    val weights: Long,
    val cache: Long,
    val needed: Long,
    val device: Long?,
    val fits: Boolean?,
)

/**
 * One way of packing matrices.
 *
 * @property mode the scheme, such as `affine`
 * @property bits bits of one weight
 * @property groupSize weights that share a scale
 * @property matrices how many matrices are packed so
 */
data class Packing(val mode: String, val bits: Int, val groupSize: Int, val matrices: Int)

internal fun Inspection.toMynah() = ModelReport(
    modelType = modelType,
    problem = problem,
    layers = layers?.toCount(),
    hiddenSize = hiddenSize?.toCount(),
    parameters = parameters.toLong(),
    bytes = bytes.toLong(),
    quantization = quantization.map { it.toMynah() },
    context = context?.toCount(),
    hasTokenizer = tokenizer,
    hasChatTemplate = chatTemplate,
    isGated = gated,
    memory = memory?.toMynah(),
)

private fun CorePacking.toMynah() = Packing(mode, bits.toMynah(), groupSize.toMynah(), matrices.toCount())

private fun CoreMemoryNeed.toMynah() = MemoryNeed(
    context.toCount(),
    weights.toLong(),
    cache.toLong(),
    needed.toLong(),
    device?.toLong(),
    fits,
)
