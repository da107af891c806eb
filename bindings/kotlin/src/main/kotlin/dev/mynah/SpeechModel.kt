package dev.mynah

import dev.mynah.core.LoadedModel as CoreLoaded
import dev.mynah.core.ModelKind
import dev.mynah.core.Script as CoreScript
import dev.mynah.core.SpeakOptions as CoreOptions
import dev.mynah.core.SpeechModel as CoreSpeechModel
import dev.mynah.core.VoiceReference as CoreReference
import dev.mynah.core.defaultSpeakOptions
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.flow

/**
 * Samples of one channel between -1 and 1.
 *
 * @property samples the samples
 * @property sampleRate samples a second, in Hz
 */
class AudioChunk internal constructor(val samples: FloatArray, val sampleRate: Int)

/**
 * A model of text to speech in memory. Any coroutine may use it. [close] frees its memory.
 *
 * ```kotlin
 * SpeechModel.load("org/name").use { model ->
 *     model.synthesize("Hello.").collect { play(it.samples) }
 * }
 * ```
 */
class SpeechModel private constructor(private val core: CoreSpeechModel) : AutoCloseable {
    /** The `model_type` of the config. */
    val modelType: String = call { core.modelType() }

    /** Samples a second, in Hz. */
    val sampleRate: Int = call { core.sampleRate() }.toMynah()

    /** The names of its voices. */
    val voices: List<String> = call { core.voices() }

    /** What is spoken. */
    sealed interface Script {
        /**
         * A text in ordinary letters.
         *
         * @property text the text
         */
        data class Text(val text: String) : Script

        /**
         * The phonemes of a text, in the alphabet of the model.
         *
         * @property phonemes the phonemes
         */
        data class Phonemes(val phonemes: String) : Script
    }

    /** How it is spoken. [Builder] documents the fields. */
    class Options private constructor(fields: Fields) {
        private val values = Builder(fields.copy())

        /** Options with the fields that [build] sets. */
        constructor(build: Builder.() -> Unit = {}) : this(Builder(Fields()).apply(build).fields)

        val voices: List<String> get() = values.voices
        val speed: Float get() = values.speed
        val seed: Long? get() = values.seed
        val pronunciations: Map<String, String> get() = values.pronunciations
        val reference: Reference? get() = values.reference
        val temperature: Float? get() = values.temperature
        val topP: Float? get() = values.topP
        val topK: Int? get() = values.topK
        val repetitionPenalty: Float? get() = values.repetitionPenalty
        val maxTokens: Int? get() = values.maxTokens

        override fun equals(other: Any?) = other is Options && other.values.fields == values.fields

        override fun hashCode() = values.fields.hashCode()

        override fun toString() = "Options${values.fields}"

        /** The fields of [Options]. */
        @OptionsDsl
        class Builder internal constructor(internal val fields: Fields) {
            /**
             * Names of voices; several are averaged. When empty, the model's first one, or its usual voice where a
             * text does without a name.
             */
            var voices: List<String> by fields.field(usual.voices)

            /** Divides the durations. */
            var speed: Float by fields.field(usual.speed)

            /**
             * The seed of random numbers. Without one, those of decoders are zero, and tokens are sampled with the
             * seed 0.
             */
            var seed: Long? by fields.field(usual.seed?.toLong())

            /** Phonemes of words, in the alphabet of the model, instead of the usual ones. */
            var pronunciations: Map<String, String> by fields.field(usual.pronunciations)

            /** A voice to be cloned, for models that do. */
            var reference: Reference? by fields.field(null)

            /** Of models that sample tokens: divides the logits, 0 is greedy decoding. The model's own when null. */
            var temperature: Float? by fields.field(usual.temperature)

            /** Likewise: samples only the most probable tokens that make up this probability. */
            var topP: Float? by fields.field(usual.topP)

            /** Likewise: how many of the most probable tokens can be sampled (top-k); 0 is no limit. */
            var topK: Int? by fields.field(usual.topK?.toMynah())

            /** Likewise: divides the positive logits of recent tokens; 1 changes nothing. */
            var repetitionPenalty: Float? by fields.field(usual.repetitionPenalty)

            /** Likewise: the most tokens of a piece. */
            var maxTokens: Int? by fields.field(usual.maxTokens?.toMynah())
        }
    }

    /**
     * A recording of a voice to be cloned.
     *
     * @property audio the recording
     * @property text what is said in it
     */
    data class Reference(val audio: Media, val text: String = "")

    /** The same model with a codec, which it needs if it writes the codes of another repository's codec. */
    fun with(codec: AudioCodec): SpeechModel = SpeechModel(call { core.withCodec(codec.core) })

    /**
     * Speaks a script when the flow is collected. Each chunk comes as soon as it is computed. The computation
     * stops after the current chunk when the collection ends.
     *
     * The flow throws [MynahException].
     */
    fun synthesize(script: Script, options: Options = Options()): Flow<AudioChunk> = flow {
        open { core.speak(script.toCore(), options.toCore()) }.use { speaking ->
            pulling(speaking::cancel) {
                while (true) emit(AudioChunk((await { speaking.next() } ?: break).toFloats(), sampleRate))
            }
        }
    }

    /**
     * Speaks a text when the flow is collected.
     *
     * The flow throws [MynahException].
     */
    fun synthesize(text: String, voice: String? = null, speed: Float = 1f): Flow<AudioChunk> {
        val options = Options {
            voices = listOfNotNull(voice)
            this.speed = speed
        }
        return synthesize(Script.Text(text), options)
    }

    /**
     * Frees the memory of the model even if a synthesis runs.
     *
     * @throws MynahException when the device fails
     */
    suspend fun unload() = await { core.unload() }

    /** Drops this handle. The memory is free when running syntheses have ended. */
    override fun close() = core.close()

    /** Loads models. */
    companion object {
        private val usual by lazy { call { defaultSpeakOptions() } }

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
        ): SpeechModel =
            SpeechModel((loaded(ModelKind.SPEECH, source, options, onProgress) as CoreLoaded.Speech).model)

        /**
         * Loads a model by its name or the path of a directory.
         *
         * @throws MynahException
         */
        suspend fun load(
            id: String,
            options: LoadOptions = LoadOptions(),
            onProgress: (LoadEvent) -> Unit = {},
        ): SpeechModel = load(ModelSource.Named(id), options, onProgress)
    }
}

private fun SpeechModel.Script.toCore(): CoreScript = when (this) {
    is SpeechModel.Script.Text -> CoreScript.Text(text)
    is SpeechModel.Script.Phonemes -> CoreScript.Phonemes(phonemes)
}

private fun SpeechModel.Options.toCore() = CoreOptions(
    voices, speed, seed?.toULong(), pronunciations, reference?.let { CoreReference(it.audio.recording(), it.text) },
    temperature, topP, topK?.toCore("topK"), repetitionPenalty, maxTokens?.toCore("maxTokens"),
)
