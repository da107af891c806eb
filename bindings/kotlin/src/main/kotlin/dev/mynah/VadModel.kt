package dev.mynah

import dev.mynah.core.Detection
import dev.mynah.core.LoadedModel as CoreLoaded
import dev.mynah.core.ModelKind
import dev.mynah.core.SpeechSegment as CoreSegment
import dev.mynah.core.VadModel as CoreVadModel

/**
 * A stretch of speech.
 *
 * @property startSeconds where it begins
 * @property endSeconds where it ends
 */
@ConsistentCopyVisibility
data class VadSpeechSegment internal constructor(val startSeconds: Double, val endSeconds: Double)

/**
 * Whether there is speech.
 *
 * @property probabilities the probability of speech in each frame
 * @property frameStrideSamples samples from one frame to the next
 * @property sampleRate samples a second, in Hz
 * @property segments the stretches of speech
 */
@ConsistentCopyVisibility
data class VadOutput internal constructor(
    val probabilities: List<Float>,
    val frameStrideSamples: Int,
    val sampleRate: Int,
    val segments: List<VadSpeechSegment>,
)

/**
 * Whether a speaker has finished.
 *
 * @property probability the probability of that
 * @property prediction whether it is more than the threshold of the model
 */
@ConsistentCopyVisibility
data class VadEndpointOutput internal constructor(val probability: Float, val prediction: Boolean)

/**
 * Who speaks when.
 *
 * @property segments the stretches of speech in the order of their beginnings
 * @property numSpeakers the number of speakers that the model tells apart
 * @property probabilities the probability of each speaker in each frame
 * @property frameStrideSamples samples from one frame to the next
 * @property sampleRate samples a second, in Hz
 */
@ConsistentCopyVisibility
data class DiarizationOutput internal constructor(
    val segments: List<Segment>,
    val numSpeakers: Int,
    val probabilities: List<List<Float>>,
    val frameStrideSamples: Int,
    val sampleRate: Int,
) {
    /**
     * A stretch of speech of one speaker.
     *
     * @property speaker speakers are numbered from 0 on
     * @property startSeconds where it begins
     * @property endSeconds where it ends
     */
    @ConsistentCopyVisibility
    data class Segment internal constructor(val speaker: Int, val startSeconds: Double, val endSeconds: Double)
}

/**
 * A model of voice activity, of the ends of turns, or of speakers, in memory. Any coroutine may use it.
 * [close] frees its memory.
 *
 * ```kotlin
 * VadModel.load("org/name").use { model ->
 *     model.detect(Media.File(recording)).segments.forEach { println(it.startSeconds) }
 * }
 * ```
 */
class VadModel private constructor(private val core: CoreVadModel) : AutoCloseable {
    /** The `model_type` of the config. */
    val modelType: String = call { core.modelType() }

    /**
     * Finds the speech in a recording.
     *
     * @throws MynahException also for a model of turns or speakers
     */
    suspend fun detect(audio: Media): VadOutput {
        val speech = heard(audio) as? Detection.Speech
            ?: throw otherTask("finds no speech; it tells the ends of turns or the speakers")
        return VadOutput(
            speech.probabilities,
            speech.frameStride.toMynah(),
            speech.sampleRate.toMynah(),
            speech.segments.map { VadSpeechSegment(it.start, it.end) },
        )
    }

    /**
     * Finds the speech in samples of one channel between -1 and 1.
     *
     * @throws MynahException also for a model of turns or speakers
     */
    suspend fun detect(audio: FloatArray, sampleRate: Int = 16_000): VadOutput =
        detect(Media.Samples(audio, sampleRate))

    /**
     * Tells whether the speaker has finished at the end of a recording.
     *
     * @throws MynahException also for another kind of detector
     */
    suspend fun detectEndpoint(audio: Media): VadEndpointOutput {
        val turn = heard(audio) as? Detection.Turn ?: throw otherTask("tells no ends of turns")
        return VadEndpointOutput(turn.probability, turn.hasEnded)
    }

    /**
     * Tells the speakers of a recording apart.
     *
     * @throws MynahException also for another kind of detector
     */
    suspend fun diarize(audio: Media): DiarizationOutput {
        val found = heard(audio) as? Detection.Speakers ?: throw otherTask("tells no speakers apart")
        val segments = found.segments.flatMapIndexed { speaker, segments: List<CoreSegment> ->
            segments.map { DiarizationOutput.Segment(speaker, it.start, it.end) }
        }
        return DiarizationOutput(
            segments.sortedWith(compareBy({ it.startSeconds }, { it.speaker })),
            found.segments.size,
            found.probabilities,
            found.frameStride.toMynah(),
            found.sampleRate.toMynah(),
        )
    }

    private suspend fun heard(audio: Media): Detection = cancelling { core.detect(audio.recording(), it) }

    private fun otherTask(reason: String) =
        MynahException(MynahException.Code.Unsupported, "a model of type $modelType $reason")

    /**
     * Frees the memory of the model even if calls run.
     *
     * @throws MynahException when the device fails
     */
    suspend fun unload() = await { core.unload() }

    /** Drops this handle. The memory is free when running calls have ended. */
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
        ): VadModel = VadModel((loaded(ModelKind.VAD, source, options, onProgress) as CoreLoaded.Vad).model)

        /**
         * Loads a model by its name or the path of a directory.
         *
         * @throws MynahException
         */
        suspend fun load(
            id: String,
            options: LoadOptions = LoadOptions(),
            onProgress: (LoadEvent) -> Unit = {},
        ): VadModel = load(ModelSource.Named(id), options, onProgress)
    }
}
