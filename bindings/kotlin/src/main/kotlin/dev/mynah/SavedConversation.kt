package dev.mynah

import kotlinx.serialization.EncodeDefault
import kotlinx.serialization.ExperimentalSerializationApi
import kotlinx.serialization.SerialName
import kotlinx.serialization.Serializable
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonElement

/** A conversation in the file `transcript.json`, which the Swift package reads and writes too. */
@Serializable
internal class SavedConversation(val transcript: List<ChatMessage>, val options: SavedChatOptions) {
    fun toJson(): String = json.encodeToString(this)

    companion object {
        @OptIn(ExperimentalSerializationApi::class)
        private val json = Json {
            ignoreUnknownKeys = true
            explicitNulls = false
        }

        /** The conversation of a file with this text. */
        fun fromJson(text: String, file: Any): SavedConversation = try {
            json.decodeFromString(text)
        } catch (error: IllegalArgumentException) {
            // The decoder wraps the exceptions of `ContentSerializer`.
            generateSequence<Throwable>(error) { it.cause }.firstNotNullOfOrNull { it as? MynahException }
                ?.let { throw it }
            // The other lines repeat the file.
            val reason = "$file: not a saved conversation: ${error.message?.lineSequence()?.first()}"
            throw MynahException(MynahException.Code.Damaged, reason)
        }
    }
}

@OptIn(ExperimentalSerializationApi::class)
@Serializable
internal class SavedChatOptions(
    val overflow: SavedOverflow? = null,
    val cacheBits: Int? = null,
    val checkpointBytes: Long? = null,
    @EncodeDefault val template: SavedTemplateOptions = SavedTemplateOptions(),
) {
    constructor(options: ChatOptions) : this(
        options.overflow?.let(::SavedOverflow),
        options.cacheBits,
        options.checkpointBytes,
        SavedTemplateOptions(options.template),
    )

    fun restore(): ChatOptions {
        val saved = this
        return ChatOptions {
            overflow = saved.overflow?.restore()
            cacheBits = saved.cacheBits
            checkpointBytes = saved.checkpointBytes
            template = saved.template.restore()
        }
    }
}

/** The field of the case is present, and the others are absent. */
@Serializable
internal class SavedOverflow(
    val error: Map<String, JsonElement>? = null,
    val dropOldest: DropOldest? = null,
    val window: Window? = null,
) {
    @Serializable
    class DropOldest(val reserve: Int)

    @Serializable
    class Window(@SerialName("_0") val positions: Int, val keep: Int)

    constructor(overflow: Overflow) : this(
        if (overflow is Overflow.Error) emptyMap() else null,
        (overflow as? Overflow.DropOldest)?.run { DropOldest(reserve) },
        (overflow as? Overflow.Window)?.run { Window(positions, keep) },
    )

    fun restore(): Overflow? = when {
        error != null -> Overflow.Error
        dropOldest != null -> Overflow.DropOldest(dropOldest.reserve)
        window != null -> Overflow.Window(window.positions, window.keep)
        // A later version of Mynah wrote another case.
        else -> null
    }
}

@OptIn(ExperimentalSerializationApi::class)
@Serializable
internal class SavedTemplateOptions(
    @EncodeDefault val addGenerationPrompt: Boolean = true,
    @EncodeDefault val continueFinalMessage: Boolean = false,
    val enableThinking: Boolean? = null,
    val reasoningEffort: String? = null,
    @EncodeDefault val extraContext: Map<String, JsonElement> = emptyMap(),
    val template: String? = null,
    val tools: List<ToolDefinition> = emptyList(),
    val sanitizeControlTokens: Boolean = true,
) {
    constructor(options: ChatTemplateOptions) : this(
        options.addGenerationPrompt,
        options.continueFinalMessage,
        options.enableThinking,
        options.reasoningEffort,
        options.extraContext,
        options.template,
        options.tools,
        options.sanitizeControlTokens,
    )

    fun restore(): ChatTemplateOptions {
        val saved = this
        return ChatTemplateOptions {
            addGenerationPrompt = saved.addGenerationPrompt
            continueFinalMessage = saved.continueFinalMessage
            enableThinking = saved.enableThinking
            reasoningEffort = saved.reasoningEffort
            extraContext = saved.extraContext
            template = saved.template
            tools = saved.tools
            sanitizeControlTokens = saved.sanitizeControlTokens
        }
    }
}
