package mynah

import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.combine
import kotlinx.coroutines.flow.distinctUntilChanged
import kotlinx.coroutines.flow.filterIsInstance
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.flow.onEach
import kotlinx.coroutines.flow.transformWhile
import kotlinx.coroutines.launch
import mynah.core.loadModel
import mynah.core.supportedModelTypes
import mynah.core.Model as CoreModel
import mynah.core.ModelInfo as CoreInfo

/**
 * A language model in memory, which many coroutines may use at once. [close] frees it; one that is
 * forgotten is freed when it is collected as garbage, which may be late.
 */
class Model internal constructor(internal val core: CoreModel) : AutoCloseable {
    /** What is known of it. */
    val info: ModelInfo = call { core.info() }.toMynah()

    private val isUnloaded = MutableStateFlow(false)

    /** What it is now, and then each change, until it is unloaded. */
    val events: Flow<LifecycleEvent> =
        combine(isUnloaded, Device.isPaused) { isUnloaded, isPaused ->
            when {
                isUnloaded -> LifecycleEvent.UNLOADED
                isPaused -> LifecycleEvent.PAUSED
                else -> LifecycleEvent.READY
            }
        }.distinctUntilChanged().transformWhile { event ->
            emit(event)
            event != LifecycleEvent.UNLOADED
        }

    /** What its checkpoint recommends. */
    val defaultGenerationParameters: GenerationParameters = call { core.defaultParameters() }.toMynah()

    /**
     * What it takes now, apart from other models and from what is being computed.
     *
     * @throws MynahException when it has been unloaded
     */
    suspend fun memory(): ModelMemory =
        await { core.memory() }.run { ModelMemory(weights.toLong(), caches.toLong()) }

    /**
     * Continues a prompt, from nothing: see [ChatSession] for conversations. Each collector has a
     * generation of its own, which waits while the collector is busy and ends when the collector
     * does: when its coroutine is cancelled, the device stops after the step that it computes.
     *
     * The flow throws [MynahException].
     */
    fun generate(
        prompt: Prompt,
        parameters: GenerationParameters = GenerationParameters(),
    ): Flow<GenerationEvent> = generation { core.generate(prompt.toCore(), parameters.toCore()) }

    /**
     * Continues a text to the end.
     *
     * @throws MynahException
     */
    suspend fun generateText(
        prompt: String,
        parameters: GenerationParameters = GenerationParameters(),
    ): GenerationResult = generate(Prompt.Text(prompt), parameters).result()

    /**
     * The tokens of a text; with those that the tokenizer puts around it, if wanted.
     *
     * @throws MynahException when it has no tokenizer
     */
    suspend fun encode(text: String, specialTokens: Boolean = true): List<Int> =
        await { core.encode(text, specialTokens) }.map { it.toMynah() }

    /**
     * The text of tokens; without that of special ones, if wanted.
     *
     * @throws MynahException when it has no tokenizer
     */
    suspend fun decode(tokens: List<Int>, skipSpecialTokens: Boolean = true): String =
        await { core.decode(tokens.toCore(), skipSpecialTokens) }

    /**
     * How many tokens a prompt is.
     *
     * @throws MynahException when it makes no sense to the model or is too long
     */
    suspend fun countTokens(prompt: Prompt): Int = await { core.tokens(prompt.toCore()) }.size

    /**
     * A conversation as the text that the model sees.
     *
     * @throws MynahException when it has no chat template, or that does not take these messages
     */
    suspend fun render(messages: List<Message>, options: TemplateOptions = TemplateOptions()): String =
        await { core.render(messages.map { it.toCore() }, options.toCore()) }

    /**
     * Frees its memory, also while sessions and generations use it: those end with
     * [MynahException.Unloaded], and so does whatever is asked of it from then on. Returns once the
     * memory is free; to do it twice does nothing.
     *
     * @throws MynahException when the device has failed
     */
    suspend fun unload() {
        try {
            await { core.unload() }
        } catch (_: MynahException.Unloaded) {
            return
        } finally {
            core.close()
            isUnloaded.value = true
        }
    }

    /** As [unload], but does not wait: the memory is free after the step that is being computed. */
    override fun close() {
        CoroutineScope(Dispatchers.Default).launch(start = CoroutineStart.UNDISPATCHED) {
            try {
                unload()
            } catch (_: MynahException) {
                // A device that has failed has nobody left to tell.
            }
        }
    }

    /** How models come into memory. */
    companion object {
        /** The values of `model_type` that load. */
        val supportedArchitectures: List<String> by lazy { call { supportedModelTypes() } }

        /**
         * Loads a model by a name such as `org/name`, `org/name@revision` or `./directory`.
         * `onProgress` hears of the download, if there is one, and of the weights then. To cancel it
         * stops it, and what was downloaded until then stays on the disk.
         *
         * @throws MynahException
         */
        suspend fun load(
            name: String,
            options: LoadOptions = LoadOptions(),
            onProgress: (LoadEvent) -> Unit = {},
        ): Model = load(ModelSource.Named(name), options, onProgress)

        /**
         * As the other, for a model from anywhere.
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
         * Loads a model each time that it is collected, and ends with [LoadEvent.Ready]. A collector
         * that is slow misses some events before that.
         *
         * The flow throws [MynahException].
         */
        fun loading(source: ModelSource, options: LoadOptions = LoadOptions()): Flow<LoadEvent> = flow {
            val downloader = options.downloader?.let(::DownloaderBridge)
            open { loadModel(source.toCore(), options.toCore(), downloader) }.use { loading ->
                while (true) emit((await { loading.next() } ?: break).toMynah())
                emit(LoadEvent.Ready(Model(open { loading.model() })))
            }
        }

        /**
         * What a model is and what it needs, from its small files: nothing else is fetched. `context` is
         * how many tokens a sequence shall have room for; by default as many as the model was made
         * for, and at most 4096.
         *
         * @throws MynahException when its files cannot be fetched or understood; what is merely not
         * supported is a [ModelReport.problem]
         */
        suspend fun inspect(source: ModelSource, context: Int? = null): ModelReport =
            await { mynah.core.inspect(source.toCore(), context?.toCore("context")) }.toMynah()
    }
}

/** What a model is at the moment. */
enum class LifecycleEvent {
    /** It computes what it is asked for. */
    READY,

    /** The device pauses: it computes nothing, and generations wait. */
    PAUSED,

    /** Its memory is free, or about to be; nothing follows. */
    UNLOADED,
}

/**
 * What one model takes, in bytes.
 *
 * @property weights its weights
 * @property caches what its sessions remember
 */
data class ModelMemory(val weights: Long, val caches: Long)

/**
 * What is known of a model.
 *
 * @property modelType the `model_type` of its config
 * @property context the longest sequence that it was made or loaded for, in tokens, if it says so
 * @property vocabulary how many tokens it has embeddings for
 * @property endTokens the tokens that end its text
 */
data class ModelInfo(
    val modelType: String,
    val context: Int?,
    val vocabulary: Int,
    val endTokens: List<Int>,
)

private fun CoreInfo.toMynah() =
    ModelInfo(modelType, context?.toCount(), vocabulary.toMynah(), endTokens.map { it.toMynah() })
