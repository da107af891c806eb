package mynah

import mynah.core.LoadOptions as CoreOptions
import mynah.core.MemoryPolicy as CorePolicy

/**
 * How to load a model; what is not given is as its checkpoint says.
 *
 * @property maxContextLength the longest sequence, in tokens, where that shall be shorter than what
 * the model was made for
 * @property session how its sessions remember where they do not say otherwise, and how it does without
 * one; by default in full precision, and under a [MemoryPolicy.Budget] as loses least of what fits
 * @property memory how much memory all models of the process may take together, from now on; by default
 * what [Device.setMemoryLimit] says
 * @property offline makes no request: what is not on the disk is [MynahException.Offline]
 * @property adapter what fine-tuning added to the model: a LoRA or DoRA adapter of mlx-lm or PEFT, or
 * mlx-lm's layers as a whole
 * @property overrides what its files do not say, or say wrongly
 * @property prewarm computes a first token before the model is there, so that nobody waits later for
 * what is compiled at first use
 * @property downloader brings its files here in place of the library
 */
data class LoadOptions(
    val maxContextLength: Int? = null,
    val session: SessionOptions? = null,
    val memory: MemoryPolicy? = null,
    val offline: Boolean = false,
    val adapter: ModelSource? = null,
    val overrides: ModelOverrides = ModelOverrides(),
    val prewarm: Boolean = false,
    val downloader: Downloader? = null,
)

/** How much memory all models of the process may take together. */
sealed interface MemoryPolicy {
    /**
     * What does not fit is refused.
     *
     * @property bytes so many
     */
    data class Budget(val bytes: Long) : MemoryPolicy

    /** As much as the system gives. */
    data object Unlimited : MemoryPolicy
}

/**
 * What the files of a model do not say, or say wrongly.
 *
 * @property extraEndTokens further tokens that end the text
 * @property tokenizer where the tokenizer and the chat template are, if not beside the weights
 * @property chatTemplate a chat template instead of those of the files, in Jinja
 */
data class ModelOverrides(
    val extraEndTokens: Set<String> = emptySet(),
    val tokenizer: ModelSource? = null,
    val chatTemplate: String? = null,
)

internal fun LoadOptions.toCore() = CoreOptions(
    context = maxContextLength?.toCore("maxContextLength"),
    session = session?.toCore(),
    memory = when (memory) {
        null -> null
        is MemoryPolicy.Budget -> CorePolicy.Budget(memory.bytes.toCore("a budget"))
        MemoryPolicy.Unlimited -> CorePolicy.Unlimited
    },
    offline = offline,
    endTokens = overrides.extraEndTokens.toList(),
    adapter = adapter?.toCore(),
    tokenizer = overrides.tokenizer?.toCore(),
    chatTemplate = overrides.chatTemplate,
    prewarm = prewarm,
)
