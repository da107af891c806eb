package dev.mynah

import kotlin.coroutines.coroutineContext
import kotlinx.coroutines.async
import kotlinx.coroutines.awaitAll
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.ensureActive
import kotlinx.serialization.KSerializer
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import kotlinx.serialization.serializer

/**
 * A function that a model may call.
 *
 * ```kotlin
 * @Serializable
 * class Place(val city: String, val days: Int? = null)
 *
 * val weather = Tool.of<Place>("weather", "The weather of the next days.") { place -> JsonPrimitive(21) }
 * val session = ChatSession(model, tools = listOf(weather))
 * ```
 */
interface Tool<A> {
    /** Letters, digits, `_`, `-` and `.`. */
    val name: String

    /** What the tool does and when to call it, for the model. */
    val description: String

    /** Reads the arguments. */
    val serializer: KSerializer<A>

    /** The JSON schema of the arguments. By default it follows from [serializer]. */
    val parameters: JsonObject get() = jsonSchema(serializer.descriptor)

    /**
     * Calls the function. The model reads the result: a string as it is, any other value as JSON. What it
     * throws is a result too.
     */
    suspend fun call(arguments: A): JsonElement

    companion object {
        /** A tool whose arguments are a serializable type. */
        inline fun <reified A> of(
            name: String,
            description: String = "",
            noinline body: suspend (A) -> JsonElement,
        ): Tool<A> = of(name, description, serializer<A>(), body)

        /** A tool with a serializer of its arguments. */
        fun <A> of(
            name: String,
            description: String,
            serializer: KSerializer<A>,
            body: suspend (A) -> JsonElement,
        ): Tool<A> = object : Tool<A> {
            override val name = name
            override val description = description
            override val serializer = serializer

            override suspend fun call(arguments: A) = body(arguments)
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

/**
 * The result of a call.
 *
 * @property call the call
 * @property text what the model reads
 * @property isError whether the tool failed, or the call was refused
 */
data class ToolResult(val call: ToolCall, val text: String, val isError: Boolean)

/** The tools of a conversation. */
internal class Toolbox(val tools: List<Tool<*>>, val options: ToolOptions) {
    /** What the model learns of them. */
    val definitions get() = tools.map { ToolDefinition(it.name, it.description, it.parameters) }

    /** How often results may go back to the model. */
    val rounds get() = if (tools.isEmpty()) 0 else options.maxRounds

    /**
     * The results of the calls of an answer in their order, and of the calls whose arguments do not fit.
     * Calls run at the same time. Only a cancellation is thrown.
     */
    suspend fun results(answer: GenerationResult): List<ToolResult> = coroutineScope {
        val results = answer.toolCalls.map { call -> async { result(call) } }.awaitAll()
        val refused = answer.rejectedToolCalls.filter { it.name != null }.mapIndexed { index, rejected ->
            val call = ToolCall("rejected$index", rejected.name.orEmpty(), JsonObject(emptyMap()))
            ToolResult(call, "Error: ${rejected.reason}.", isError = true)
        }
        results + refused
    }

    private suspend fun result(call: ToolCall): ToolResult {
        fun failed(reason: String) = ToolResult(call, "Error: $reason", isError = true)
        if (!options.approve(call)) return failed("the user did not allow this call.")
        val tool = tools.find { it.name == call.name } ?: return failed("there is no tool `${call.name}`.")
        return try {
            ToolResult(call, tool.run(call.arguments), isError = false)
        } catch (error: Exception) {
            // A tool may throw a cancellation of its own accord; then the model reads it.
            coroutineContext.ensureActive()
            failed(error.message ?: error.toString())
        }
    }

    private suspend fun <A> Tool<A>.run(arguments: JsonObject): String {
        val result = call(Json.decodeFromJsonElement(serializer, arguments))
        return if (result is JsonPrimitive && result.isString) result.content else result.toString()
    }
}
