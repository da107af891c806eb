package dev.mynah

import dev.mynah.core.LoadOptions as CoreOptions
import dev.mynah.core.MemoryPolicy as CorePolicy
import dev.mynah.core.SessionOptions as CoreSessionOptions

/**
 * How to load a model. The checkpoint decides the rest. [Builder] documents the fields.
 *
 * ```kotlin
 * Model.load("org/name", LoadOptions { memory = MemoryPolicy.Budget(4_000_000_000) })
 * ```
 */
class LoadOptions private constructor(fields: Fields) {
    private val values = Builder(fields.copy())

    /** Options with the fields that [build] sets. */
    constructor(build: Builder.() -> Unit = {}) : this(Builder(Fields()).apply(build).fields)

    val maxContextLength: Int? get() = values.maxContextLength
    val kvCache: KvCacheOptions get() = values.kvCache
    val memory: MemoryPolicy get() = values.memory
    val network: NetworkPolicy get() = values.network
    val adapter: ModelSource? get() = values.adapter
    val overrides: ModelOverrides get() = values.overrides
    val prewarm: Boolean get() = values.prewarm
    val downloader: Downloader? get() = values.downloader

    /** An edited copy. */
    fun with(edit: Builder.() -> Unit): LoadOptions =
        LoadOptions(Builder(values.fields.copy()).apply(edit).fields)

    override fun equals(other: Any?) = other is LoadOptions && other.values.fields == values.fields

    override fun hashCode() = values.fields.hashCode()

    override fun toString() = "LoadOptions${values.fields}"

    /** The fields of [LoadOptions]. */
    @OptionsDsl
    class Builder internal constructor(internal val fields: Fields) {
        /** The longest sequence, in tokens, if it is to be shorter than the config's. */
        var maxContextLength: Int? by fields.field(null)

        /** The default KV cache of its sessions and of generations without one. */
        var kvCache: KvCacheOptions by fields.field(KvCacheOptions.Automatic)

        /** The memory limit of all models of the process together, from now on. */
        var memory: MemoryPolicy by fields.field(MemoryPolicy.Automatic)

        /** Whether the library may use the network. */
        var network: NetworkPolicy by fields.field(NetworkPolicy.AUTOMATIC)

        /**
         * A LoRA or DoRA adapter in the layout of mlx-lm or PEFT, or layers that mlx-lm has fine-tuned as
         * a whole.
         */
        var adapter: ModelSource? by fields.field(null)

        /** Corrections of the model's files. */
        var overrides: ModelOverrides by fields.field(ModelOverrides())

        /** Computes a token during loading, so that the first generation does not wait for compilation. */
        var prewarm: Boolean by fields.field(false)

        /** Downloads the files in place of the library. */
        var downloader: Downloader? by fields.field(null)
    }
}

/** The default KV cache of a model; [ChatOptions] override it. */
sealed interface KvCacheOptions {
    /** Like [Full]; with a [MemoryPolicy.Budget], the most precise cache that fits beside the weights. */
    data object Automatic : KvCacheOptions

    /** The whole context in full precision. */
    data object Full : KvCacheOptions

    /**
     * A ring buffer with the first tokens (attention sinks) and the latest ones.
     *
     * @property positions tokens in the KV cache in all
     * @property keep how many of them are attention sinks
     */
    data class Window(val positions: Int, val keep: Int = 4) : KvCacheOptions

    /**
     * A quantized KV cache.
     *
     * @property bits 4 or 8
     * @property groupSize the group size: 32, 64 or 128
     * @property after the number of tokens from which on the cache is quantized
     */
    data class Quantized(val bits: Int, val groupSize: Int = 64, val after: Int = 0) : KvCacheOptions
}

/**
 * The memory limit of all models of the process together. Loading a model that does not fit throws
 * [MynahException.Code.OutOfMemory].
 */
sealed interface MemoryPolicy {
    /** Keeps the limit of [Device.setMemoryLimit] or of an earlier load; without either there is none. */
    data object Automatic : MemoryPolicy

    /**
     * A limit.
     *
     * @property bytes the limit in bytes
     */
    data class Budget(val bytes: Long) : MemoryPolicy

    /** No limit. */
    data object Unlimited : MemoryPolicy
}

/** Whether the library may use the network. */
enum class NetworkPolicy {
    /**
     * The library asks the hub for the newest commit and downloads only missing files. It uses the files
     * on the disk if the hub is out of reach.
     */
    AUTOMATIC,

    /**
     * The library makes no requests: loading a model that is not on the disk throws
     * [MynahException.Code.Offline].
     */
    OFFLINE,
}

/** Corrections of a model's files. [Builder] documents the fields. */
class ModelOverrides private constructor(fields: Fields) {
    private val values = Builder(fields.copy())

    /** Corrections with the fields that [build] sets. */
    constructor(build: Builder.() -> Unit = {}) : this(Builder(Fields()).apply(build).fields)

    val extraEosTokens: Set<String> get() = values.extraEosTokens
    val tokenizer: ModelSource? get() = values.tokenizer
    val chatTemplate: String? get() = values.chatTemplate

    override fun equals(other: Any?) = other is ModelOverrides && other.values.fields == values.fields

    override fun hashCode() = values.fields.hashCode()

    override fun toString() = "ModelOverrides${values.fields}"

    /** The fields of [ModelOverrides]. */
    @OptionsDsl
    class Builder internal constructor(internal val fields: Fields) {
        /** Further end-of-sequence tokens. */
        var extraEosTokens: Set<String> by fields.field(emptySet())

        /** The source of the tokenizer and the chat template, if not the model's. */
        var tokenizer: ModelSource? by fields.field(null)

        /** A chat template in Jinja that replaces the one of the files. */
        var chatTemplate: String? by fields.field(null)
    }
}

internal fun LoadOptions.toCore() = CoreOptions(
    context = maxContextLength?.toCore("maxContextLength"),
    session = kvCache.toCore(),
    memory = when (val memory = memory) {
        MemoryPolicy.Automatic -> null
        is MemoryPolicy.Budget -> CorePolicy.Budget(memory.bytes.toCore("the memory budget"))
        MemoryPolicy.Unlimited -> CorePolicy.Unlimited
    },
    offline = network == NetworkPolicy.OFFLINE,
    endTokens = overrides.extraEosTokens.sorted(),
    adapter = adapter?.toCore(),
    tokenizer = overrides.tokenizer?.toCore(),
    chatTemplate = overrides.chatTemplate,
    prewarm = prewarm,
)

private fun KvCacheOptions.toCore(): CoreSessionOptions? = when (this) {
    KvCacheOptions.Automatic -> null
    KvCacheOptions.Full -> CoreSessionOptions(overflow = Overflow.Error.toCore())
    is KvCacheOptions.Window -> CoreSessionOptions(overflow = Overflow.Window(positions, keep).toCore())
    is KvCacheOptions.Quantized ->
        CoreSessionOptions(quantization = cacheBits("bits", bits, groupSize, after))
}
