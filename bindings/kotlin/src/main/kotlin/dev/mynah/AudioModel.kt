package dev.mynah

import dev.mynah.core.AudioModel as CoreAudioModel
import dev.mynah.core.LiveAudio as CoreLiveAudio
import dev.mynah.core.LoadedModel as CoreLoaded
import dev.mynah.core.ModelKind
import dev.mynah.core.Segment as CoreSegment
import dev.mynah.core.Transcript as CoreTranscript
import dev.mynah.core.Transcription as CoreTranscription
import dev.mynah.core.TranscriptionEvent as CoreEvent
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.FlowCollector
import kotlinx.coroutines.flow.filterIsInstance
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.launch

/**
 * A model of speech to text in memory. Any coroutine may use it. [close] frees its memory.
 *
 * ```kotlin
 * AudioModel.load("org/name").use { model ->
 *     println(model.transcribe(Media.File(recording)).text)
 * }
 * ```
 */
class AudioModel private constructor(private val core: CoreAudioModel) : AutoCloseable {
    /** The `model_type` of the config. */
    val modelType: String = call { core.modelType() }

    /** Samples a second that the model hears, in Hz. Audio at other rates is resampled. */
    val sampleRate: Int = call { core.sampleRate() }.toMynah()

    /**
     * Writes down what is said, and waits for the whole transcription. Cancelling the coroutine stops the
     * computation.
     *
     * @throws MynahException
     */
    suspend fun transcribe(audio: Media, options: TranscriptionOptions = TranscriptionOptions()): Transcription =
        transcribing(audio, options).filterIsInstance<TranscriptionUpdate.Finished>().first().transcription

    /**
     * Writes down what is said when the flow is collected, and ends with [TranscriptionUpdate.Finished]. A
     * file is read as it is transcribed, so its length is not limited. The computation stops when the
     * collection ends.
     *
     * The flow throws [MynahException].
     */
    fun transcribing(
        audio: Media,
        options: TranscriptionOptions = TranscriptionOptions(),
    ): Flow<TranscriptionUpdate> = flow {
        open { core.transcribe(audio.recording(), options.toCore()) }.use { emitAll(it) }
    }

    /**
     * Finds when the words of a text are said, in a language by its code or English name; English without
     * one. Punctuation belongs to no word, and in Chinese each character is one. The model is a forced
     * aligner.
     *
     * @throws MynahException
     */
    suspend fun align(audio: Media, text: String, language: String? = null): List<AlignedWord> =
        cancelling { core.align(audio.recording(), text, language, it) }
            .map { AlignedWord(it.word, it.start, it.end) }

    /**
     * Writes down what is said in audio that is still coming, at [sampleRate] Hz in one channel. Partial
     * text comes once a second of audio; a segment is final when another one has followed it, at most 30
     * seconds later. The transcription ends after the audio; an exception of the audio ends it too.
     *
     * The flow throws [MynahException].
     */
    fun transcribe(
        live: Flow<FloatArray>,
        sampleRate: Int,
        options: TranscriptionOptions = TranscriptionOptions(),
    ): Flow<TranscriptionUpdate> = flow {
        val (audio, transcription) = await {
            core.transcribeLive(sampleRate.toCore("sampleRate"), options.toCore())
        }
        transcription.use {
            audio.use {
                coroutineScope {
                    val reading = launch { read(live, audio) }
                    emitAll(transcription)
                    reading.cancel()
                }
            }
        }
    }

    private suspend fun read(live: Flow<FloatArray>, audio: CoreLiveAudio) {
        live.collect { samples -> await { audio.push(samples.toBytes()) } }
        call { audio.finish() }
    }

    /**
     * Frees the memory of the model. Running transcriptions end with [MynahException.Code.Unloaded].
     *
     * @throws MynahException when the device fails
     */
    suspend fun unload() = await { core.unload() }

    /** Drops this handle. The memory is free when running transcriptions have ended. */
    override fun close() = core.close()

    /** Loads models. */
    companion object {
        /**
         * Loads a model, and downloads it first if it is not on the disk; see [Model.load]. Options of
         * prompts and caches have no effect.
         *
         * @throws MynahException
         */
        suspend fun load(
            source: ModelSource,
            options: LoadOptions = LoadOptions(),
            onProgress: (LoadEvent) -> Unit = {},
        ): AudioModel = AudioModel((loaded(ModelKind.AUDIO, source, options, onProgress) as CoreLoaded.Audio).model)

        /**
         * Loads a model by its name or the path of a directory.
         *
         * @throws MynahException
         */
        suspend fun load(
            id: String,
            options: LoadOptions = LoadOptions(),
            onProgress: (LoadEvent) -> Unit = {},
        ): AudioModel = load(ModelSource.Named(id), options, onProgress)
    }
}

private suspend fun FlowCollector<TranscriptionUpdate>.emitAll(transcription: CoreTranscription) =
    pulling(transcription::cancel) {
        while (true) emit((await { transcription.next() } ?: break).toMynah())
    }

/** Options of a transcription. [Builder] documents the fields. */
class TranscriptionOptions private constructor(fields: Fields) {
    private val values = Builder(fields.copy())

    /** Options with the fields that [build] sets. */
    constructor(build: Builder.() -> Unit = {}) : this(Builder(Fields()).apply(build).fields)

    val language: String? get() = values.language
    val task: Task get() = values.task
    val timestamps: Timestamps get() = values.timestamps
    val prompt: String? get() = values.prompt
    val temperatures: List<Float> get() = values.temperatures
    val compressionRatioThreshold: Float? get() = values.compressionRatioThreshold
    val logprobThreshold: Float? get() = values.logprobThreshold
    val noSpeechThreshold: Float? get() = values.noSpeechThreshold
    val conditionOnPreviousText: Boolean get() = values.conditionOnPreviousText
    val hallucinationSilenceThreshold: Float? get() = values.hallucinationSilenceThreshold
    val inverseTextNormalization: Boolean get() = values.inverseTextNormalization
    val maxTokens: Int? get() = values.maxTokens
    val seed: Long get() = values.seed

    /** An edited copy. */
    fun with(edit: Builder.() -> Unit): TranscriptionOptions =
        TranscriptionOptions(Builder(values.fields.copy()).apply(edit).fields)

    override fun equals(other: Any?) = other is TranscriptionOptions && other.values.fields == values.fields

    override fun hashCode() = values.fields.hashCode()

    override fun toString() = "TranscriptionOptions${values.fields}"

    /** What is written. */
    enum class Task {
        /** What is said, in its language. */
        TRANSCRIBE,

        /** What is said, in English. */
        TRANSLATE,
    }

    /** Which times the segments have. */
    enum class Timestamps {
        /** None: one segment for each window of the model. */
        NONE,

        /** The beginning and the end of each segment. */
        SEGMENTS,

        /** Those of each word, too. */
        WORDS,
    }

    /**
     * The fields of [TranscriptionOptions]. The defaults are those of OpenAI's code; a model that has no use
     * for an option ignores it.
     */
    @OptionsDsl
    class Builder internal constructor(internal val fields: Fields) {
        /** The language that is spoken, such as `en`; detected when null. */
        var language: String? by fields.field(null)

        /** What is written. */
        var task: Task by fields.field(Task.TRANSCRIBE)

        /** Which times the segments have. */
        var timestamps: Timestamps by fields.field(Timestamps.SEGMENTS)

        /** Text that comes before the recording: names and spellings that the model then prefers. */
        var prompt: String? by fields.field(null)

        /** Sampling temperatures, one after the other until a window passes the thresholds; 0 is greedy. */
        var temperatures: List<Float> by fields.field(usual.temperatures)

        /** A window is too repetitive when its text is this much longer than its compression. */
        var compressionRatioThreshold: Float? by fields.field(usual.compressionRatioThreshold)

        /** A window is a failure when the mean log-probability of its tokens is below this. */
        var logprobThreshold: Float? by fields.field(usual.logprobThreshold)

        /** A failure is silence when the probability of no speech is above this. */
        var noSpeechThreshold: Float? by fields.field(usual.noSpeechThreshold)

        /** Whether the text of a window is the prompt of the next one. */
        var conditionOnPreviousText: Boolean by fields.field(usual.conditionOnPreviousText)

        /**
         * With times of words: text that follows this many seconds of silence and looks invented is
         * dropped.
         */
        var hallucinationSilenceThreshold: Float? by fields.field(usual.hallucinationSilenceThreshold)

        /** Whether numbers are written as digits, with punctuation, where the model has the choice. */
        var inverseTextNormalization: Boolean by fields.field(usual.inverseTextNormalization)

        /** The most tokens of a recording or of a window; the model's limit when null. */
        var maxTokens: Int? by fields.field(null)

        /** The seed of sampling at a temperature above 0. */
        var seed: Long by fields.field(usual.seed.toLong())
    }

    private companion object {
        val usual by lazy { call { dev.mynah.core.defaultTranscribeOptions() } }
    }
}

/** An update of a transcription. Later versions add kinds: a `when` needs an `else`. */
abstract class TranscriptionUpdate internal constructor() {
    /**
     * The next segments, which are final.
     *
     * @property segments the segments
     * @property fraction the fraction of the recording that is transcribed
     */
    data class Segments(val segments: List<Transcription.Segment>, val fraction: Double) : TranscriptionUpdate()

    /**
     * The text after the final segments of live audio; it may change.
     *
     * @property text the text
     * @property start where it begins, in seconds
     */
    data class Partial(val text: String, val start: Double) : TranscriptionUpdate()

    /**
     * The last update.
     *
     * @property transcription the whole transcription
     */
    data class Finished(val transcription: Transcription) : TranscriptionUpdate()
}

/**
 * The text of a recording.
 *
 * @property text the whole text
 * @property language the code of its language, such as `en`, where the model knows it
 * @property segments its segments in order
 * @property tokens the tokens of the text, with those that stand for times
 * @property logprobs the log-probability of each token, where a decoder wrote them
 * @property emotion the emotion that the model hears, where it tells
 * @property event the kind of sound that the model hears, where it tells
 */
@ConsistentCopyVisibility
data class Transcription internal constructor(
    val text: String,
    val language: String?,
    val segments: List<Segment>,
    val tokens: List<Int>,
    val logprobs: List<Float>,
    val emotion: String?,
    val event: String?,
) {
    /**
     * A part of a recording, usually a sentence. Times are in seconds.
     *
     * @property start where it begins
     * @property end where it ends
     * @property text its text
     * @property words its words, if [TranscriptionOptions.timestamps] asks for them
     * @property tokens its tokens, with those that stand for times
     * @property averageLogprob the mean log-probability of the tokens of its window
     * @property compressionRatio how much longer the text of its window is than its compression
     * @property noSpeechProbability the probability that its window has no speech
     * @property temperature the temperature at which its window was decoded
     */
    @ConsistentCopyVisibility
    data class Segment internal constructor(
        val start: Double,
        val end: Double,
        val text: String,
        val words: List<Word>,
        val tokens: List<Int>,
        val averageLogprob: Float,
        val compressionRatio: Float,
        val noSpeechProbability: Float,
        val temperature: Float,
    )

    /**
     * A word with its times in seconds.
     *
     * @property word its text, with the space before it and the punctuation around it
     * @property start where it begins
     * @property end where it ends
     * @property probability the mean probability of its tokens
     */
    @ConsistentCopyVisibility
    data class Word internal constructor(
        val word: String,
        val start: Double,
        val end: Double,
        val probability: Float,
    )
}

private fun TranscriptionOptions.toCore() = dev.mynah.core.TranscribeOptions(
    language = language,
    translate = task == TranscriptionOptions.Task.TRANSLATE,
    timestamps = when (timestamps) {
        TranscriptionOptions.Timestamps.NONE -> dev.mynah.core.Timestamps.NONE
        TranscriptionOptions.Timestamps.SEGMENTS -> dev.mynah.core.Timestamps.SEGMENTS
        TranscriptionOptions.Timestamps.WORDS -> dev.mynah.core.Timestamps.WORDS
    },
    prompt = prompt,
    temperatures = temperatures,
    compressionRatioThreshold = compressionRatioThreshold,
    logprobThreshold = logprobThreshold,
    noSpeechThreshold = noSpeechThreshold,
    conditionOnPreviousText = conditionOnPreviousText,
    hallucinationSilenceThreshold = hallucinationSilenceThreshold,
    inverseTextNormalization = inverseTextNormalization,
    maxTokens = maxTokens?.toCore("maxTokens"),
    seed = seed.toULong(),
)

private fun CoreEvent.toMynah(): TranscriptionUpdate = when (this) {
    is CoreEvent.Segments -> TranscriptionUpdate.Segments(segments.map { it.toMynah() }, share.toDouble())
    is CoreEvent.Partial -> TranscriptionUpdate.Partial(text, start)
    is CoreEvent.Finished -> TranscriptionUpdate.Finished(transcript.toMynah())
}

private fun CoreTranscript.toMynah() = Transcription(
    text, language, segments.map { it.toMynah() }, tokens.map { it.toMynah() }, logprobs, emotion, event,
)

private fun CoreSegment.toMynah() = Transcription.Segment(
    start, end, text, words.map { Transcription.Word(it.word, it.start, it.end, it.probability) },
    tokens.map { it.toMynah() }, avgLogprob, compressionRatio, noSpeechProbability, temperature,
)

/**
 * A word of a given text with its place in a recording.
 *
 * @property word the word, without punctuation
 * @property start where it begins, in seconds
 * @property end where it ends, in seconds
 */
data class AlignedWord(val word: String, val start: Double, val end: Double)
