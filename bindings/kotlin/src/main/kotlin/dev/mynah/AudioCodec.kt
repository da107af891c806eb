package dev.mynah

import dev.mynah.core.AudioCodec as CoreCodec
import dev.mynah.core.Codes as CoreCodes
import dev.mynah.core.EncodedAudio as CoreEncoded
import dev.mynah.core.LoadedModel as CoreLoaded
import dev.mynah.core.ModelKind
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.flow

/** Audio as a codec stores it. */
sealed interface EncodedAudio {
    /**
     * Codes of one stretch after the other; most codecs have one stretch.
     *
     * @property stretches the stretches
     */
    data class Codes(val stretches: List<Stretch>) : EncodedAudio

    /**
     * Continuous features of each frame.
     *
     * @property frames the frames, each with its bins
     */
    data class Features(val frames: List<List<Float>>) : EncodedAudio

    /**
     * Codes of one stretch of audio.
     *
     * @property codebooks the codes of each codebook, in the order of time; codebooks may differ in their
     * frame rate
     * @property scale factor of the decoded samples, in codecs that normalise what they encode
     */
    data class Stretch(val codebooks: List<List<Int>>, val scale: Float? = null)
}

/** An audio codec or vocoder in memory. Any coroutine may use it. [close] frees its memory. */
class AudioCodec private constructor(internal val core: CoreCodec) : AutoCloseable {
    /** The `model_type` of the config. */
    val modelType: String = call { core.modelType() }

    /** Samples a second, in Hz. */
    val sampleRate: Int = call { core.sampleRate() }.toMynah()

    /** The number of channels of its audio. */
    val channels: Int = call { core.channels() }.toMynah()

    /**
     * Encodes a recording of any rate and number of channels.
     *
     * @throws MynahException
     */
    suspend fun encode(audio: Media): EncodedAudio = cancelling { core.encode(audio.recording(), it) }.toMynah()

    /**
     * Decodes codes or features to samples, channel after channel within each frame. Without a seed, the
     * noise of decoders that have some is zero.
     *
     * @throws MynahException
     */
    suspend fun decode(encoded: EncodedAudio, seed: Long? = null): FloatArray =
        cancelling { core.decode(encoded.toCore(), seed?.toULong(), it) }.samples.toFloats()

    /**
     * Decodes codes in parts, as if they came one after the other. Together the pieces are the samples of
     * [decode]; a piece comes as soon as no later code changes it.
     *
     * The flow throws [MynahException].
     */
    fun decode(parts: List<EncodedAudio.Stretch>, seed: Long? = null): Flow<FloatArray> = flow {
        open { core.decodeParts(parts.map { it.toCore() }, seed?.toULong()) }.use { decoding ->
            pulling(decoding::cancel) {
                while (true) emit((await { decoding.next() } ?: break).samples.toFloats())
            }
        }
    }

    /**
     * Frees the memory of the codec even if calls run.
     *
     * @throws MynahException when the device fails
     */
    suspend fun unload() = await { core.unload() }

    /** Drops this handle. The memory is free when running calls have ended. */
    override fun close() = core.close()

    /** Loads codecs. */
    companion object {
        /**
         * Loads a codec, and downloads it first if it is not on the disk; see [Model.load]. Options of
         * prompts and caches have no effect.
         *
         * @throws MynahException
         */
        suspend fun load(
            source: ModelSource,
            options: LoadOptions = LoadOptions(),
            onProgress: (LoadEvent) -> Unit = {},
        ): AudioCodec =
            AudioCodec((loaded(ModelKind.CODEC, source, options, onProgress) as CoreLoaded.Codec).model)

        /**
         * Loads a codec by its name or the path of a directory.
         *
         * @throws MynahException
         */
        suspend fun load(
            id: String,
            options: LoadOptions = LoadOptions(),
            onProgress: (LoadEvent) -> Unit = {},
        ): AudioCodec = load(ModelSource.Named(id), options, onProgress)
    }
}

private fun CoreEncoded.toMynah(): EncodedAudio = when (this) {
    is CoreEncoded.Codes -> EncodedAudio.Codes(
        stretches.map { stretch ->
            EncodedAudio.Stretch(stretch.codebooks.map { codes -> codes.map { it.toInt() } }, stretch.scale)
        },
    )
    is CoreEncoded.Features -> EncodedAudio.Features(frames)
}

private fun EncodedAudio.toCore(): CoreEncoded = when (this) {
    is EncodedAudio.Codes -> CoreEncoded.Codes(stretches.map { it.toCore() })
    is EncodedAudio.Features -> CoreEncoded.Features(frames)
}

private fun EncodedAudio.Stretch.toCore() =
    CoreCodes(codebooks.map { codes -> codes.map { it.toCore("a code") } }, scale)
