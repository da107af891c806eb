package dev.mynah

import dev.mynah.core.ChatTemplateOptions as CoreTemplateOptions
import dev.mynah.core.Prompt as CorePrompt
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonPrimitive

/** What the model continues. */
sealed interface Prompt {
    /**
     * A message of the user, through the checkpoint's chat template. Without a template the model
     * continues the text.
     *
     * @property text the message
     */
    data class Text(val text: String) : Prompt

    /**
     * Raw text that the model continues, without a chat template.
     *
     * @property text the text
     */
    data class Raw(val text: String) : Prompt

    /**
     * Token ids, unchanged.
     *
     * @property tokens the ids
     */
    data class Tokens(val tokens: List<Int>) : Prompt

    /**
     * Messages, through the checkpoint's chat template.
     *
     * @property messages the messages
     * @property options how the template renders them
     */
    data class Chat(
        val messages: List<ChatMessage>,
        val options: ChatTemplateOptions = ChatTemplateOptions(),
    ) : Prompt {
        constructor(vararg messages: ChatMessage) : this(messages.asList())
    }
}

/** How the chat template renders messages. [Builder] documents the fields. */
class ChatTemplateOptions private constructor(fields: Fields) {
    private val values = Builder(fields.copy())

    /** Options with the fields that [build] sets. */
    constructor(build: Builder.() -> Unit = {}) : this(Builder(Fields()).apply(build).fields)

    val addGenerationPrompt: Boolean get() = values.addGenerationPrompt
    val continueFinalMessage: Boolean get() = values.continueFinalMessage
    val enableThinking: Boolean? get() = values.enableThinking
    val reasoningEffort: String? get() = values.reasoningEffort
    val extraContext: Map<String, JsonElement> get() = values.extraContext
    val tools: List<ToolDefinition> get() = values.tools
    val template: String? get() = values.template
    val sanitizeControlTokens: Boolean get() = values.sanitizeControlTokens

    /** An edited copy. */
    fun with(edit: Builder.() -> Unit): ChatTemplateOptions =
        ChatTemplateOptions(Builder(values.fields.copy()).apply(edit).fields)

    override fun equals(other: Any?) = other is ChatTemplateOptions && other.values.fields == values.fields

    override fun hashCode() = values.fields.hashCode()

    override fun toString() = "ChatTemplateOptions${values.fields}"

    /** The fields of [ChatTemplateOptions]. */
    @OptionsDsl
    class Builder internal constructor(internal val fields: Fields) {
        /** Ends with the header of an assistant's message, so that the model answers; true by default. */
        var addGenerationPrompt: Boolean by fields.field(true)

        /** Leaves the last message open, so that the model continues it. */
        var continueFinalMessage: Boolean by fields.field(false)

        /**
         * Sets the template variable `enable_thinking`: whether the model reasons before it answers. Null
         * leaves that to the template.
         */
        var enableThinking: Boolean? by fields.field(null)

        /** Sets the template variable `reasoning_effort`, such as `low` or `high`. */
        var reasoningEffort: String? by fields.field(null)

        /** Further variables of the template. */
        var extraContext: Map<String, JsonElement> by fields.field(emptyMap())

        /** The functions that the model may call. */
        var tools: List<ToolDefinition> by fields.field(emptyList())

        /** Which of several named templates to use, such as `rag`. */
        var template: String? by fields.field(null)

        /**
         * Encodes control tokens in messages as plain text, so that only those of the template have a meaning;
         * true by default.
         */
        var sanitizeControlTokens: Boolean by fields.field(true)
    }
}

internal fun Prompt.toCore(): CorePrompt = when (this) {
    is Prompt.Text -> CorePrompt.Text(text)
    is Prompt.Raw -> CorePrompt.Raw(text)
    is Prompt.Tokens -> CorePrompt.Tokens(tokens.toCoreTokens())
    is Prompt.Chat -> CorePrompt.Chat(messages.map { it.toCore() }, options.toCore())
}

internal fun ChatTemplateOptions.toCore(): CoreTemplateOptions {
    val variables = extraContext.toMutableMap()
    enableThinking?.let { variables["enable_thinking"] = JsonPrimitive(it) }
    reasoningEffort?.let { variables["reasoning_effort"] = JsonPrimitive(it) }
    val texts = variables.mapValues { (_, value) -> value.toString() }
    val definitions = tools.map { it.toCore() }
    return CoreTemplateOptions(
        addGenerationPrompt, continueFinalMessage, texts, definitions, template, sanitizeControlTokens,
    )
}

internal fun List<Int>.toCoreTokens() = map { it.toCore("a token") }
