package dev.mynah

import dev.mynah.core.CacheBits as CoreBits
import dev.mynah.core.Overflow as CoreOverflow
import dev.mynah.core.SessionOptions as CoreOptions

/**
 * Options of a conversation. Fields that are null are those of the loaded model. [Builder] documents
 * the fields.
 *
 * ```kotlin
 * ChatSession(model, options = ChatOptions { overflow = Overflow.DropOldest(reserve = 512) })
 * ```
 */
class ChatOptions private constructor(fields: Fields) {
    private val values = Builder(fields.copy())

    /** Options with the fields that [build] sets. */
    constructor(build: Builder.() -> Unit = {}) : this(Builder(Fields()).apply(build).fields)

    val overflow: Overflow? get() = values.overflow
    val cacheBits: Int? get() = values.cacheBits
    val checkpointBytes: Long? get() = values.checkpointBytes
    val template: ChatTemplateOptions get() = values.template

    /** An edited copy. */
    fun with(edit: Builder.() -> Unit): ChatOptions =
        ChatOptions(Builder(values.fields.copy()).apply(edit).fields)

    override fun equals(other: Any?) = other is ChatOptions && other.values.fields == values.fields

    override fun hashCode() = values.fields.hashCode()

    override fun toString() = "ChatOptions${values.fields}"

    /** The fields of [ChatOptions]. */
    @OptionsDsl
    class Builder internal constructor(internal val fields: Fields) {
        /** What the session does when its context is full. */
        var overflow: Overflow? by fields.field(null)

        /** Quantizes the KV cache in 4 or 8 bits. */
        var cacheBits: Int? by fields.field(null)

        /** The most bytes for checkpoints of recurrent states, which cannot be rewound otherwise. */
        var checkpointBytes: Long? by fields.field(null)

        /** How the chat template renders the messages. */
        var template: ChatTemplateOptions by fields.field(ChatTemplateOptions())
    }
}

/** What a session does when its context is full. */
sealed interface Overflow {
    /** It refuses a prompt that does not fit and ends an answer at the end of the context. */
    data object Error : Overflow

    /**
     * It drops the oldest turns from the prompt.
     *
     * @property reserve tokens that stay free for the answer
     */
    data class DropOldest(val reserve: Int) : Overflow

    /**
     * It keeps the first tokens (attention sinks) and the latest ones in a ring buffer.
     *
     * @property positions tokens in the KV cache in all
     * @property keep how many of them are attention sinks
     */
    data class Window(val positions: Int, val keep: Int = 4) : Overflow
}

internal fun ChatOptions.toCore() = CoreOptions(
    overflow = overflow?.toCore(),
    quantization = cacheBits?.let { cacheBits("cacheBits", it) },
    checkpointBytes = checkpointBytes?.toCore("checkpointBytes"),
)

internal fun cacheBits(name: String, bits: Int, groupSize: Int = 64, after: Int = 0) = CoreBits(
    // The core refuses values that are too large; the largest byte is one of them.
    bits.toCore(name).coerceAtMost(UByte.MAX_VALUE.toUInt()).toUByte(),
    groupSize.toCore("groupSize"),
    after.toCore("after"),
)

internal fun Overflow.toCore(): CoreOverflow = when (this) {
    Overflow.Error -> CoreOverflow.Error
    is Overflow.DropOldest -> CoreOverflow.DropOldest(reserve.toCore("reserve"))
    is Overflow.Window -> CoreOverflow.Ring(positions.toCore("positions"), keep.toCore("keep"))
}
