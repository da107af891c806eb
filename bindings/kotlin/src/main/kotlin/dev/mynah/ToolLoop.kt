package dev.mynah

import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.async
import kotlinx.coroutines.awaitAll
import kotlinx.coroutines.coroutineScope
import kotlinx.serialization.DeserializationStrategy
import kotlinx.serialization.KSerializer
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonPrimitive
import kotlinx.serialization.serializer

/**
 * A function that a model may call.
 *
 * @property definition its name, its description and the schema of its arguments
 */
abstract class Tool(val definition: ToolDefinition) {
    /**
     * Calls the function. The model reads the result: a string as it is, any other value as JSON. What it
     * throws is a result too.
     */
    abstract suspend fun call(call: ToolCall): JsonElement

    companion object {
        /** A tool whose arguments are a serializable type, from which the schema follows. */
        inline fun <reified A> of(
            name: String,
            description: String = "",
            noinline body: suspend (A) -> JsonElement,
        ): Tool = of(name, description, serializer<A>(), body)

        /** A tool with a serializer of its arguments. */
        fun <A> of(
            name: String,
            description: String,
            serializer: KSerializer<A>,
            body: suspend (A) -> JsonElement,
        ): Tool = object : Tool(ToolDefinition(name, description, jsonSchema(serializer.descriptor))) {
            override suspend fun call(call: ToolCall) =
                body(Json.decodeFromJsonElement(serializer, call.arguments))
        }
    }
}

/**
 * How a conversation calls tools.
 *
 * @property maxRounds how often results may go back to the model; the calls of the answer after that are
 * not run
 * @property approve decides whether a call may run; the model learns of a refusal
 */
class ToolOptions(val maxRounds: Int = 8, val approve: suspend (ToolCall) -> Boolean = { true })

/** What the model reads of a call. Only a cancellation is thrown. */
internal suspend fun List<Tool>.result(call: ToolCall, options: ToolOptions): String {
    if (!options.approve(call)) return "Error: the user did not allow this call."
    val tool = find { it.definition.name == call.name } ?: return "Error: there is no tool `${call.name}`."
    return try {
        val result = tool.call(call)
        if (result is JsonPrimitive && result.isString) result.content else result.toString()
    } catch (error: CancellationException) {
        throw error
    } catch (error: Exception) {
        "Error: ${error.message ?: error}"
    }
}

/** The results of calls that run at the same time, in the order of the calls. */
internal suspend fun List<Tool>.results(calls: List<ToolCall>, options: ToolOptions): List<ChatMessage> =
    coroutineScope {
        calls.map { call -> async { ChatMessage.tool(call, result(call, options)) } }.awaitAll()
    }

/** The value of an answer. */
internal fun <T> value(deserializer: DeserializationStrategy<T>, result: GenerationResult): T = try {
    Json.decodeFromString(deserializer, result.text)
} catch (error: IllegalArgumentException) {
    throw MynahException(
        MynahException.Code.InvalidRequest,
        when (result.finishReason) {
            FinishReason.Stop -> "the answer is no ${deserializer.descriptor.serialName}: ${error.message}"
            else -> "the answer ended before the value did; `maxTokens` allows a longer one"
        },
    )
}
