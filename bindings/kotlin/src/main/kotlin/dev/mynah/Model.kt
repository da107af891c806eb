package dev.mynah

import dev.mynah.core.LoadedModel as CoreLoaded
import dev.mynah.core.Model as CoreModel
import dev.mynah.core.ModelInfo as CoreInfo
import dev.mynah.core.ModelKind
import dev.mynah.core.loadModel
import dev.mynah.core.supportedModelTypes
import kotlinx.coroutines.NonCancellable
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.filterIsInstance
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.flow.onEach
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withContext

/**
 * A language model in memory. Any coroutine may use it; concurrent generations take turns on the engine
 * thread. [close] or [unload] frees its memory; the garbage collector frees it late.
 *
 * ```kotlin
 * Model.load("org/name").use { model ->
 *     model.generate("Why is the sky blue?").text().collect { print(it) }
 * }
 * ```
 */
class Model internal constructor(internal val core: CoreModel) : AutoCloseable {
    private val isUnloaded = MutableStateFlow(false)

    /** Facts about the model. */
    val info: ModelInfo = call { core.info() }.toMynah()

    /** The state of the model and its changes. */
    val events: StateFlow<LifecycleState> = LifecycleFlow(isUnloaded)

    /** The parameters that the checkpoint recommends. */
    val defaultGenerationParameters: GenerationParameters = call { core.defaultParameters() }.toMynah()

    /**
     * The memory of this model; [Device.memory] is that of all models and of intermediate results.
     *
     * @throws MynahException when the model is unloaded
     */
    suspend fun memory(): ModelMemory =
        await { core.memory() }.run { ModelMemory(weights.toLong(), caches.toLong()) }

    /**
     * Answers a prompt. Each collector starts a generation of its own, which computes only a few tokens
     * ahead of its collector: a collector that pauses pauses the device. The generation stops before its
     * next token when the collecting coroutine is cancelled or the collection ends. See [ChatSession] for
     * conversations.
     *
     * The flow throws [MynahException].
     */
    fun generate(input: Prompt, parameters: GenerationParameters? = null): Flow<GenerationEvent> =
        generation { core.generate(input.toCore(), parameters.toCore()) }

    /**
     * Answers a message of the user.
     *
     * The flow throws [MynahException].
     */
    fun generate(prompt: String, parameters: GenerationParameters? = null): Flow<GenerationEvent> =
        generate(Prompt.Text(prompt), parameters)

    /**
     * Answers a message of the user, and waits for the whole answer.
     *
     * @throws MynahException
     */
    suspend fun generateText(prompt: String, parameters: GenerationParameters? = null): GenerationResult =
        generate(prompt, parameters).result()

    /**
     * Answers messages, and waits for the whole answer.
     *
     * @throws MynahException
     */
    suspend fun generateText(
        messages: List<ChatMessage>,
        parameters: GenerationParameters? = null,
        templateOptions: ChatTemplateOptions = ChatTemplateOptions(),
    ): GenerationResult = generate(Prompt.Chat(messages, templateOptions), parameters).result()

    /**
     * The tokens of a text, by default with the special tokens that the tokenizer adds.
     *
     * @throws MynahException when the model has no tokenizer
     */
    suspend fun encode(text: String, addSpecialTokens: Boolean = true): List<Int> =
        await { core.encode(text, addSpecialTokens) }.map { it.toMynah() }

    /**
     * The text of tokens, by default without the text of special tokens.
     *
     * @throws MynahException when the model has no tokenizer
     */
    suspend fun decode(tokens: List<Int>, skipSpecialTokens: Boolean = true): String =
        await { core.decode(tokens.toCoreTokens(), skipSpecialTokens) }

    /**
     * The number of tokens of a prompt.
     *
     * @throws MynahException when the prompt is invalid or longer than the context
     */
    suspend fun countTokens(prompt: Prompt): Int = await { core.tokens(prompt.toCore()) }.size

    /**
     * The text that the chat template makes of messages.
     *
     * @throws MynahException when the model has no chat template, or the template refuses the messages
     */
    suspend fun renderChatTemplate(
        messages: List<ChatMessage>,
        options: ChatTemplateOptions = ChatTemplateOptions(),
    ): String = await { core.renderChatTemplate(messages.map { it.toCore() }, options.toCore()) }

    /**
     * Suspends the device, which all models share, until [resume]. The same as [Device.suspend].
     *
     * @throws MynahException when the device fails
     */
    suspend fun suspend() = Device.suspend()

    /**
     * Resumes the device after [suspend]. The same as [Device.resume].
     *
     * @throws MynahException when the device cannot be used
     */
    fun resume() = Device.resume()

    /**
     * Frees the memory of the model even if sessions and generations use it, and returns once it is free.
     * Running generations end with [MynahException.Code.Unloaded], and later calls throw it. Unloading
     * twice has no effect.
     *
     * @throws MynahException when the device fails
     */
    suspend fun unload() = ending { await { core.unload() } }

    /**
     * Like [unload], but blocks the thread, for at most one step of the device. A coroutine on a thread
     * that must not block calls [unload].
     */
    override fun close() {
        // An interrupted thread closes the model too, and stays interrupted.
        var isInterrupted = Thread.interrupted()
        try {
            // No dispatcher: if all threads of the default one close models, none is left to resume them.
            runBlocking { withContext(NonCancellable) { ending { call { core.unload() } } } }
        } catch (_: InterruptedException) {
            isInterrupted = true
        } finally {
            if (isInterrupted) Thread.currentThread().interrupt()
        }
    }

    private inline fun ending(unload: () -> Unit) {
        try {
            unload()
        } catch (error: MynahException) {
            if (error.code != MynahException.Code.Unloaded) throw error
        } finally {
            core.close()
            isUnloaded.value = true
        }
    }

    /** Loads models. */
    companion object {
        /** The supported values of `model_type`. */
        val supportedArchitectures: List<String> by lazy { call { supportedModelTypes() } }

        /**
         * Loads a model by `org/name`, `org/name@revision` or the path of a directory, and downloads it
         * first if it is not on the disk. [onProgress] receives the events before [LoadEvent.Ready]; an
         * exception that it throws cancels the load. Cancelling the coroutine stops the download and keeps
         * the bytes on the disk.
         *
         * @throws MynahException
         */
        suspend fun load(
            id: String,
            options: LoadOptions = LoadOptions(),
            onProgress: (LoadEvent) -> Unit = {},
        ): Model = load(ModelSource.Named(id), options, onProgress)

        /**
         * Loads a model, and downloads it first if it is not on the disk.
         *
         * @throws MynahException
         */
        suspend fun load(
            source: ModelSource,
            options: LoadOptions = LoadOptions(),
            onProgress: (LoadEvent) -> Unit = {},
        ): Model =
            loading(source, options)
                .onEach { if (it !is LoadEvent.Ready) onProgress(it) }
                .filterIsInstance<LoadEvent.Ready>()
                .first()
                .model

        /**
         * Loads a model each time that the flow is collected.
         *
         * The flow throws [MynahException].
         */
        fun loading(id: String, options: LoadOptions = LoadOptions()): Flow<LoadEvent> =
            loading(ModelSource.Named(id), options)

        /**
         * Loads a model each time that the flow is collected, and ends with [LoadEvent.Ready]. Progress
         * events are coalesced for slow collectors.
         *
         * The flow throws [MynahException].
         */
        fun loading(source: ModelSource, options: LoadOptions = LoadOptions()): Flow<LoadEvent> = flow {
            val downloader = options.downloader?.let(::DownloaderBridge)
            open { loadModel(source.toCore(), ModelKind.LANGUAGE, options.toCore(), downloader) }.use { loading ->
                while (true) emit((await { loading.next() } ?: break).toMynah())
                emit(LoadEvent.Ready(Model(open { (loading.model() as CoreLoaded.Language).model })))
            }
        }

        /**
         * Inspects a model by its name or path.
         *
         * @throws MynahException when its files cannot be downloaded or parsed
         */
        suspend fun inspect(id: String, context: Int? = null): ModelReport =
            inspect(ModelSource.Named(id), context)

        /**
         * Inspects a model and the memory that it needs, from its small files only. [context] is the
         * length of the sequence, in tokens, for which the memory is computed; by default the longest one
         * of the config, at most 4096.
         *
         * @throws MynahException when its files cannot be downloaded or parsed; a model that is only
         * unsupported has a [ModelReport.problem]
         */
        suspend fun inspect(source: ModelSource, context: Int? = null): ModelReport =
            await { dev.mynah.core.inspect(source.toCore(), context?.toCore("context")) }.toMynah()
    }
}

/**
 * The memory that one model uses, in bytes.
 *
 * @property weights the weights
 * @property caches the KV caches of its sessions
 */
@ConsistentCopyVisibility
data class ModelMemory internal constructor(val weights: Long, val caches: Long)

/**
 * Facts about a loaded model.
 *
 * @property modelType the `model_type` of the config
 * @property contextLength the longest sequence, in tokens, if the config or [LoadOptions] limit it
 * @property vocabularySize the number of token embeddings
 * @property endTokens the end-of-sequence tokens
 */
@ConsistentCopyVisibility
data class ModelInfo internal constructor(
    val modelType: String,
    val contextLength: Int?,
    val vocabularySize: Int,
    val endTokens: Set<Int>,
)

private fun CoreInfo.toMynah() =
    ModelInfo(modelType, context?.toCount(), vocabulary.toMynah(), endTokens.map { it.toMynah() }.toSet())
