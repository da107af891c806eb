package mynah

import java.io.IOException
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
import kotlinx.serialization.SerializationException
import kotlinx.serialization.json.Json
import mynah.core.Session as CoreSession

/**
 * A conversation, and the model's memory of it: what has been computed is not computed again. Calls
 * from many coroutines queue. It ends with its model.
 */
class ChatSession private constructor(
    private val model: Model,
    private val core: CoreSession,
    messages: List<Message>,
) : AutoCloseable {
    private val messages = MutableStateFlow(messages)
    private val turns = Mutex()

    /**
     * A conversation that begins.
     *
     * @param instructions what the model shall be, before all messages
     * @param transcript what has been said already
     * @throws MynahException when the options make no sense
     */
    constructor(
        model: Model,
        instructions: String? = null,
        transcript: List<Message> = emptyList(),
        options: SessionOptions = SessionOptions(),
    ) : this(
        model,
        call { model.core.session(options.toCore()) },
        listOfNotNull(instructions?.let(Message::system)) + transcript,
    )

    /** What has been said. A message is in it while it is answered, the answer once it has ended. */
    val transcript: StateFlow<List<Message>> = this.messages.asStateFlow()

    /**
     * How many tokens the model remembers at the moment.
     *
     * @throws MynahException when the session is closed
     */
    val tokensUsed: Int get() = call { core.tokensUsed() }.toCount()

    /**
     * Says something and gives the whole answer.
     *
     * @throws MynahException
     */
    suspend fun respond(
        message: String,
        parameters: GenerationParameters = GenerationParameters(),
        template: TemplateOptions = TemplateOptions(),
    ): GenerationResult = streamResponse(message, parameters, template).result()

    /**
     * Says something when it is collected, and gives the answer as it comes. An answer whose
     * collector stops stays in the transcript as far as it came. One that fails leaves the transcript
     * as it was.
     *
     * The flow throws [MynahException].
     */
    fun streamResponse(
        message: String,
        parameters: GenerationParameters = GenerationParameters(),
        template: TemplateOptions = TemplateOptions(),
    ): Flow<GenerationEvent> = flow {
        turns.withLock {
            val before = messages.value
            val asked = before + Message.user(message)
            val answer = StringBuilder()
            fun answered() = asked + Message.assistant(answer.toString())
            try {
                val prompt = Prompt.Chat(asked, template).toCore()
                val start = { core.generate(prompt, parameters.toCore()).also { messages.value = asked } }
                generation(start).collect { event ->
                    answer.append(event.text)
                    emit(event)
                }
                messages.value = answered()
            } catch (error: MynahException) {
                messages.value = before
                throw error
            } catch (stop: Throwable) {
                if (answer.isNotEmpty()) messages.value = answered()
                throw stop
            }
        }
    }

    /**
     * A conversation of its own that goes on from here.
     *
     * @throws MynahException when the model has been unloaded
     */
    suspend fun fork(): ChatSession =
        turns.withLock { ChatSession(model, open { core.fork() }, messages.value) }

    /**
     * Writes the conversation into a directory: `transcript.json`, and what the model remembers as
     * `cache.safetensors`, unless that is unwanted.
     *
     * @throws MynahException
     * @throws IOException
     */
    suspend fun save(directory: Path, includingCache: Boolean = true): Unit = turns.withLock {
        val cache = directory.resolve(CACHE)
        withContext(Dispatchers.IO) {
            directory.createDirectories()
            cache.deleteIfExists()
            // A file that is replaced is never half of one.
            val file = directory.resolve("$TRANSCRIPT.new")
            file.writeText(Json.encodeToString(messages.value))
            file.moveTo(directory.resolve(TRANSCRIPT), overwrite = true)
        }
        if (includingCache && tokensUsed > 0) await { core.save(cache.pathString) }
    }

    /** Frees what the model remembers. */
    override fun close() = core.close()

    /** How conversations come back. */
    companion object {
        private const val TRANSCRIPT = "transcript.json"
        private const val CACHE = "cache.safetensors"

        /**
         * A conversation as [save] has written it, perhaps in another process. The options must be
         * those that it had.
         *
         * @throws MynahException when the files are damaged, or were saved by another model or
         * under other options
         * @throws IOException when they cannot be read
         */
        suspend fun restore(
            directory: Path,
            model: Model,
            options: SessionOptions = SessionOptions(),
        ): ChatSession {
            val file = directory.resolve(TRANSCRIPT)
            val cache = directory.resolve(CACHE)
            val (text, hasCache) = withContext(Dispatchers.IO) { file.readText() to cache.exists() }
            val transcript = try {
                Json.decodeFromString<List<Message>>(text)
            } catch (error: SerializationException) {
                throw MynahException.Damaged("$file: ${error.message}")
            }
            if (!hasCache) return ChatSession(model, transcript = transcript, options = options)
            val session = open { model.core.restoreSession(cache.pathString, options.toCore()) }
            return ChatSession(model, session, transcript)
        }
    }
}
