package mynah

import kotlinx.serialization.Serializable
import kotlinx.serialization.json.JsonElement
import mynah.core.Message as CoreMessage
import mynah.core.Prompt as CorePrompt
import mynah.core.TemplateOptions as CoreTemplateOptions

/** What to continue. */
sealed interface Prompt {
    /** Text, with the tokens that the tokenizer puts around it. */
    data class Text(val text: String) : Prompt

    /** A conversation, through the checkpoint's chat template. */
    data class Chat(val messages: List<Message>, val options: TemplateOptions = TemplateOptions()) : Prompt {
        constructor(vararg messages: Message) : this(messages.asList())
    }

    /** Token ids, as they are. */
    data class Tokens(val ids: List<Int>) : Prompt
}

/**
 * One message of a conversation.
 *
 * @property role who speaks: `system`, `user`, `assistant`, or what else the template knows
 * @property content what is said
 * @property reasoning what the assistant thought before it spoke
 * @property name the name of the speaker
 */
@Serializable
data class Message(
    val role: String,
    val content: String,
    val reasoning: String? = null,
    val name: String? = null,
) {
    companion object {
        /** What the model shall be. */
        fun system(content: String) = Message("system", content)

        /** A question. */
        fun user(content: String) = Message("user", content)

        /** An answer. */
        fun assistant(content: String) = Message("assistant", content)
    }
}

/**
 * How to render a conversation.
 *
 * @property addGenerationPrompt whether to end with the header of an assistant's message; by default it does
 * @property continueFinalMessage whether to end inside of the last message, so that the model goes on with it
 * @property variables more variables for the template, such as `enable_thinking`
 * @property template which of several templates, such as `rag`
 */
data class TemplateOptions(
    val addGenerationPrompt: Boolean? = null,
    val continueFinalMessage: Boolean? = null,
    val variables: Map<String, JsonElement> = emptyMap(),
    val template: String? = null,
)

internal fun Prompt.toCore(): CorePrompt = when (this) {
    is Prompt.Text -> CorePrompt.Text(text)
    is Prompt.Chat -> CorePrompt.Chat(messages.map { it.toCore() }, options.toCore())
    is Prompt.Tokens -> CorePrompt.Tokens(ids.toCore())
}

internal fun Message.toCore() = CoreMessage(role, content, reasoning, name)

internal fun TemplateOptions.toCore() = CoreTemplateOptions(
    addGenerationPrompt,
    continueFinalMessage,
    variables.mapValues { (_, value) -> value.toString() },
    template,
)

internal fun List<Int>.toCore() = map { it.toCore("a token") }
