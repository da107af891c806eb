package dev.mynah

import dev.mynah.core.GenerationStream as CoreStream
import dev.mynah.core.Session as CoreSession
import dev.mynah.core.partialJson
import java.io.IOException
import java.nio.file.NoSuchFileException
import java.nio.file.Path
import kotlin.io.path.createDirectories
import kotlin.io.path.deleteIfExists
import kotlin.io.path.exists
import kotlin.io.path.moveTo
import kotlin.io.path.pathString
import kotlin.io.path.readText
import kotlin.io.path.writeText
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.sync.Mutex
import kotlinx.coroutines.sync.withLock
import kotlinx.coroutines.withContext
import kotlinx.serialization.DeserializationStrategy
import kotlinx.serialization.json.JsonObject

/**
 * A conversation. Its KV cache stays between turns, so that a turn computes only its own tokens.
 *
 * Any coroutine may use it; calls wait for each other in their order. The transcript keeps the collected
 * part of an answer whose collection ends early. An answer that fails leaves the transcript unchanged.
 *
 * @property model the model, which the session does not close
 */
class ChatSession private constructor(
    val model: Model,
    private val core: CoreSession,
    transcript: List<ChatMessage>,
    private val options: ChatOptions,
    private val toolbox: Toolbox,
) : AutoCloseable {
    private val messages = MutableStateFlow(transcript)
    private val responding = MutableStateFlow(false)
    private val turns = Mutex()

    /**
     * A conversation with a system prompt and the transcript so far. The model may call the tools; see
     * [streamResponse].
     *
     * @throws MynahException when an option is invalid or the model is unloaded
     */
    constructor(
        model: Model,
        instructions: String? = null,
        tools: List<Tool<*>> = emptyList(),
        transcript: List<ChatMessage> = emptyList(),
        options: ChatOptions = ChatOptions(),
        toolOptions: ToolOptions = ToolOptions(),
    ) : this(
        model,
        call { model.core.session(options.toCore()) },
        listOfNotNull(instructions?.let(ChatMessage::system)) + transcript,
        options,
        Toolbox(tools, toolOptions),
    )

    /** The messages, the system prompt included. An answer is part of it when it has ended. */
    val transcript: StateFlow<List<ChatMessage>> = messages.asStateFlow()

    /** Whether an answer is running. */
    val isResponding: StateFlow<Boolean> = responding.asStateFlow()

    /**
     * The use of the context. It changes while the session computes.
     *
     * @throws MynahException when the session is closed
     */
    val context: ContextUsage
        get() = ContextUsage(call { core.tokensUsed() }.toCount(), model.info.contextLength)

    /**
     * Answers a prompt and waits for the whole answer.
     *
     * @throws MynahException
     */
    suspend fun respond(input: Prompt, parameters: GenerationParameters? = null): Response<String> {
        val result = streamResponse(input, parameters).result()
        return Response(result.text, result)
    }

    /**
     * Answers a message of the user and waits for the whole answer.
     *
     * @throws MynahException
     */
    suspend fun respond(text: String, parameters: GenerationParameters? = null): Response<String> =
        respond(Prompt.Text(text), parameters)

    /**
     * Answers a message of the user when the flow is collected.
     *
     * The flow throws [MynahException].
     */
    fun streamResponse(text: String, parameters: GenerationParameters? = null): Flow<GenerationEvent> =
        streamResponse(Prompt.Text(text), parameters)

    /**
     * Answers a prompt when the flow is collected: a message of the user, or messages that continue the
     * transcript. An empty list of messages asks for an answer to the transcript. [ChatOptions.template]
     * renders all messages.
     *
     * The session calls the tools for which the model asks, and the flow goes on with the answer to their
     * results. Calls of one answer run at the same time, and the model reads also what a tool throws, or
     * what is wrong with a call. [GenerationParameters.toolChoice] holds for the first answer; later ones
     * may call tools or not. Cancelling the coroutine stops the calls too. Without tools of the session,
     * calls are events only.
     *
     * The flow throws [MynahException].
     */
    fun streamResponse(input: Prompt, parameters: GenerationParameters? = null): Flow<GenerationEvent> = flow {
        turns.withLock {
            val before = messages.value
            val answer = PartialAnswer()
            var asked = before + input.messages()
            var options = parameters
            var rounds = toolbox.rounds
            var isOver = false
            try {
                while (!isOver) {
                    var end: GenerationEvent.Finished? = null
                    generation { start(asked, options) }.collect { event ->
                        answer.add(event)
                        if (event is GenerationEvent.Finished) end = event else emit(event)
                    }
                    val finished = checkNotNull(end) { "a generation has an end" }
                    val results = if (rounds-- > 0) toolbox.results(finished.result) else emptyList()
                    if (results.isEmpty()) {
                        messages.value = asked + answer.message(finished.result.toolCalls)
                        isOver = true
                        emit(finished)
                    } else {
                        val calls = answer.message(results.map { it.call })
                        asked = asked + calls + results.map { ChatMessage.tool(it.call, it.text) }
                        messages.value = asked
                        answer.clear()
                        options = (parameters ?: GenerationParameters()).with { toolChoice = ToolChoice.Auto }
                        results.forEach { emit(GenerationEvent.CallResult(it)) }
                    }
                }
            } catch (error: Throwable) {
                // The calls of an answer that is cut short have no results.
                val calls = if (toolbox.tools.isEmpty()) answer.calls else emptyList()
                when {
                    isOver -> {}
                    error is MynahException -> messages.value = before
                    !answer.isEmpty(calls) -> messages.value = asked + answer.message(calls)
                }
                throw error
            } finally {
                responding.value = false
            }
        }
    }

    /** Begins to answer messages. */
    private fun start(asked: List<ChatMessage>, parameters: GenerationParameters?): CoreStream {
        val template = options.template.with { tools = tools + toolbox.definitions }
        return core.generate(Prompt.Chat(asked, template).toCore(), parameters.toCore()).also {
            messages.value = asked
            responding.value = true
        }
    }

    /**
     * Answers a prompt with a value. The answer is held to the JSON schema, which by default follows from
     * the type.
     *
     * @throws MynahException
     */
    suspend fun <T> respond(
        input: Prompt,
        deserializer: DeserializationStrategy<T>,
        schema: JsonObject = jsonSchema(deserializer.descriptor),
        parameters: GenerationParameters? = null,
    ): Response<T> {
        val typed = (parameters ?: GenerationParameters()).with { output = OutputFormat.Schema(schema) }
        val result = streamResponse(input, typed).result()
        return Response(value(deserializer, result), result)
    }

    /**
     * Answers a prompt with a value that is there in parts while the model writes it. The last element has
     * the value.
     *
     * The flow throws [MynahException].
     */
    fun <T> streamResponse(
        input: Prompt,
        deserializer: DeserializationStrategy<T>,
        schema: JsonObject = jsonSchema(deserializer.descriptor),
        parameters: GenerationParameters? = null,
    ): Flow<Partial<T>> = flow {
        val typed = (parameters ?: GenerationParameters()).with { output = OutputFormat.Schema(schema) }
        val text = StringBuilder()
        streamResponse(input, typed).collect { event ->
            when (event) {
                is GenerationEvent.Text -> {
                    text.append(event.text)
                    partialJson(text.toString())?.let { emit(partial(deserializer, it)) }
                }
                // The next answer begins.
                is GenerationEvent.CallResult -> text.clear()
                is GenerationEvent.Finished -> value(deserializer, event.result)
                else -> {}
            }
        }
    }

    /**
     * A new conversation with a copy of the transcript and of the KV cache.
     *
     * @throws MynahException when the model is unloaded
     */
    suspend fun fork(): ChatSession =
        turns.withLock { ChatSession(model, open { core.fork() }, messages.value, options, toolbox) }

    /**
     * Writes the conversation to a directory: transcript and options to `transcript.json`, and by default
     * the KV cache to `cache.safetensors`.
     *
     * @throws MynahException when the KV cache cannot be written
     * @throws IOException when the transcript cannot be written
     */
    suspend fun save(directory: Path, includingCache: Boolean = true): Unit = turns.withLock {
        val cache = directory.resolve(CACHE)
        withContext(Dispatchers.IO) {
            directory.createDirectories()
            cache.deleteIfExists()
            // Replacing the file in one step never leaves a partial one.
            val file = directory.resolve("$TRANSCRIPT.new")
            file.writeText(SavedConversation(messages.value, SavedChatOptions(options)).toJson())
            file.moveTo(directory.resolve(TRANSCRIPT), overwrite = true)
        }
        if (includingCache && context.used > 0) await { core.save(cache.pathString) }
    }

    /** Frees the KV cache. */
    override fun close() = core.close()

    /** Opens saved conversations. */
    companion object {
        private const val TRANSCRIPT = "transcript.json"
        private const val CACHE = "cache.safetensors"

        /**
         * Opens a conversation that [save] has written, perhaps in another process. A KV cache that cannot
         * be used, because its file is damaged or another model, version or option wrote it, is dropped:
         * the transcript opens, and the next answer computes the whole prompt, with
         * [GenerationResult.Stats.cachedTokens] 0.
         *
         * @throws MynahException when the transcript does not exist or is damaged, when its options are
         * invalid for the model, or when the model is unloaded
         * @throws IOException when the transcript cannot be read
         */
        suspend fun restore(
            directory: Path,
            model: Model,
            tools: List<Tool<*>> = emptyList(),
            toolOptions: ToolOptions = ToolOptions(),
        ): ChatSession {
            val file = directory.resolve(TRANSCRIPT)
            val cache = directory.resolve(CACHE)
            val (text, hasCache) = withContext(Dispatchers.IO) {
                try {
                    file.readText() to cache.exists()
                } catch (_: NoSuchFileException) {
                    val reason = "$file does not exist; pass the directory of a saved conversation"
                    throw MynahException(MynahException.Code.NotFound, reason)
                }
            }
            val saved = SavedConversation.fromJson(text, file)
            val options = saved.options.restore()
            val core = try {
                if (hasCache) open { model.core.restoreSession(cache.pathString, options.toCore()) } else null
            } catch (_: MynahException) {
                // The constructor throws the errors of the model and of its options.
                null
            }
            val transcript = saved.transcript
            return if (core == null) ChatSession(model, null, tools, transcript, options, toolOptions)
            else ChatSession(model, core, transcript, options, Toolbox(tools, toolOptions))
        }
    }
}

/** What was collected of an answer. */
private class PartialAnswer {
    private val text = StringBuilder()
    private val reasoning = StringBuilder()
    val calls = mutableListOf<ToolCall>()

    fun add(event: GenerationEvent) {
        when (event) {
            is GenerationEvent.Text -> text.append(event.text)
            is GenerationEvent.Reasoning -> reasoning.append(event.text)
            is GenerationEvent.Call -> calls += event.call
            else -> {}
        }
    }

    fun clear() {
        text.clear()
        reasoning.clear()
        calls.clear()
    }

    fun isEmpty(calls: List<ToolCall>) = text.isEmpty() && reasoning.isEmpty() && calls.isEmpty()

    /** The message of the transcript. */
    fun message(calls: List<ToolCall>): ChatMessage {
        val content = if (text.isEmpty() && calls.isNotEmpty()) emptyList() else listOf(Content.Text("$text"))
        return ChatMessage(Role.Assistant, content, reasoning.toString().ifEmpty { null }, toolCalls = calls)
    }
}

/** The messages that a prompt adds to a transcript. */
private fun Prompt.messages(): List<ChatMessage> = when (this) {
    is Prompt.Text -> listOf(ChatMessage.user(text))
    is Prompt.Chat -> messages
    is Prompt.Raw, is Prompt.Tokens -> throw MynahException(
        MynahException.Code.InvalidRequest,
        "a conversation takes messages, not raw text or tokens; use `Model.generate` for those",
    )
}

/**
 * An answer with its statistics.
 *
 * @property content the answer
 * @property result the outcome of the generation
 */
@ConsistentCopyVisibility
data class Response<out T> internal constructor(val content: T, val result: GenerationResult) {
    override fun toString() = content.toString()
}

/**
 * The use of the context, in tokens.
 *
 * @property used tokens in the KV cache
 * @property limit the longest sequence, if there is a limit
 */
@ConsistentCopyVisibility
data class ContextUsage internal constructor(val used: Int, val limit: Int?)
