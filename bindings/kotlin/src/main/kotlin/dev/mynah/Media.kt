package dev.mynah

import dev.mynah.core.Audio as CoreAudio
import dev.mynah.core.AudioInput as CoreInput
import dev.mynah.core.Image as CoreImage
import dev.mynah.core.Video as CoreVideo
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.file.Path
import java.util.Base64
import kotlin.io.path.pathString
import kotlin.io.path.readBytes
import kotlinx.serialization.KSerializer
import kotlinx.serialization.Serializable
import kotlinx.serialization.SerializationException
import kotlinx.serialization.descriptors.SerialDescriptor
import kotlinx.serialization.encoding.Decoder
import kotlinx.serialization.encoding.Encoder
import kotlinx.serialization.json.JsonDecoder
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonEncoder
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import kotlinx.serialization.json.buildJsonObject
import kotlinx.serialization.json.double
import kotlinx.serialization.json.float
import kotlinx.serialization.json.int
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonPrimitive
import kotlinx.serialization.json.put
import kotlinx.serialization.json.putJsonArray

/**
 * A picture, a clip or a recording: a file, its bytes, or what it is made of. It is read when a model needs
 * it.
 *
 * Pictures are JPEG, PNG, WebP and GIF. Clips are GIF, directories of pictures, and frames; movies are
 * decoded by the application. Recordings are WAV, AIFF, FLAC, MP3, M4A and Ogg.
 *
 * ```kotlin
 * val answer = session.respond(Prompt.Chat(ChatMessage.user("What is this?", listOf(Media.File(path)))))
 * ```
 */
@Serializable(with = MediaSerializer::class)
sealed class Media {
    /** What the core has made of it. */
    private val image = lazy(::makeImage)
    private val video = lazy(::makeVideo)

    /**
     * A file.
     *
     * @property path its path
     */
    data class File(val path: Path) : Media()

    /**
     * The bytes of a file.
     *
     * @property bytes the bytes, which do not change
     */
    class Bytes(val bytes: ByteArray) : Media() {
        override fun equals(other: Any?) = other is Bytes && other.bytes.contentEquals(bytes)

        override fun hashCode() = bytes.contentHashCode()

        override fun toString() = "Bytes(${bytes.size})"
    }

    /**
     * A picture of rows of pixels, with one byte for each of red, green and blue.
     *
     * @property pixels the bytes, which do not change
     * @property width the number of pixels of a row
     */
    class Rgb(val pixels: ByteArray, val width: Int) : Media() {
        override fun equals(other: Any?) =
            other is Rgb && other.width == width && other.pixels.contentEquals(pixels)

        override fun hashCode() = pixels.contentHashCode()

        override fun toString() = "Rgb(${pixels.size / 3 / width.coerceAtLeast(1)} rows of $width pixels)"
    }

    /**
     * A clip of pictures of one size.
     *
     * @property frames the pictures
     * @property framesPerSecond the frames of each second: a model takes as many of them as it needs;
     * without it, all of them
     */
    data class Frames(val frames: List<Media>, val framesPerSecond: Double? = null) : Media()

    /**
     * Samples between -1 and 1, channel after channel within each frame.
     *
     * @property samples the samples, which do not change
     * @property sampleRate frames a second, in Hz
     * @property channels the number of channels
     */
    class Samples(val samples: FloatArray, val sampleRate: Int, val channels: Int = 1) : Media() {
        override fun equals(other: Any?) = other is Samples && other.sampleRate == sampleRate &&
            other.channels == channels && other.samples.contentEquals(samples)

        override fun hashCode() = samples.contentHashCode()

        override fun toString() = "Samples(${samples.size}, $sampleRate Hz, $channels channels)"
    }

    /** The picture in the core. */
    internal fun image(): CoreImage = image.value

    private fun makeImage(): CoreImage = when (this) {
        is File -> CoreImage.open(path.pathString)
        is Bytes -> CoreImage.fromBytes(bytes)
        is Rgb -> CoreImage.fromRgb(width.toCore("width"), pixels)
        is Frames, is Samples -> throw invalid("a clip or a recording is no picture")
    }

    /** The clip in the core. */
    internal fun video(): CoreVideo = video.value

    private fun makeVideo(): CoreVideo = when (this) {
        is File -> CoreVideo.open(path.pathString)
        is Bytes -> CoreVideo.fromGif(bytes)
        is Frames -> CoreVideo.fromFrames(frames.map { it.image() }, framesPerSecond)
        is Rgb, is Samples -> throw invalid("a picture or a recording is no clip")
    }

    /** The recording in the core. */
    internal fun recording(): CoreInput = when (this) {
        is File -> CoreInput.File(path.pathString)
        is Samples -> CoreInput.Samples(toCore())
        is Bytes -> throw invalid("write the bytes of the recording to a file, which is read as it is heard")
        is Rgb, is Frames -> throw invalid("a picture or a clip is no recording")
    }
}

internal fun Media.Samples.toCore() =
    CoreAudio(samples.toBytes(), channels.toCore("channels"), sampleRate.toCore("sampleRate"))

private fun invalid(reason: String) = MynahException(MynahException.Code.InvalidRequest, reason)

/** Samples as they cross: 32-bit floats, little endian. */
internal fun FloatArray.toBytes(): ByteArray {
    val buffer = ByteBuffer.allocate(4 * size).order(ByteOrder.LITTLE_ENDIAN)
    buffer.asFloatBuffer().put(this)
    return buffer.array()
}

internal fun ByteArray.toFloats(): FloatArray {
    val floats = FloatArray(size / 4)
    ByteBuffer.wrap(this).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer().get(floats)
    return floats
}

/** The JSON has the bytes of what is in memory, and the path of a file. */
internal object MediaSerializer : KSerializer<Media> {
    override val descriptor: SerialDescriptor = JsonElement.serializer().descriptor

    override fun serialize(encoder: Encoder, value: Media) =
        (encoder as JsonEncoder).encodeJsonElement(toJson(value))

    override fun deserialize(decoder: Decoder): Media =
        fromJson((decoder as JsonDecoder).decodeJsonElement())

    fun toJson(media: Media): JsonObject = buildJsonObject {
        when (media) {
            is Media.File -> put("file", media.path.toAbsolutePath().pathString)
            is Media.Bytes -> put("data", media.bytes.toBase64())
            is Media.Rgb -> {
                put("rgb", media.pixels.toBase64())
                put("width", media.width)
            }
            is Media.Frames -> {
                putJsonArray("frames") { media.frames.forEach { add(toJson(it)) } }
                media.framesPerSecond?.let { put("fps", it) }
            }
            is Media.Samples -> {
                putJsonArray("samples") { media.samples.forEach { add(JsonPrimitive(it)) } }
                put("sampleRate", media.sampleRate)
                put("channels", media.channels)
            }
        }
    }

    /** The JSON of a picture, with the bytes of its file: a saved conversation does not depend on it. */
    fun embedded(media: Media): JsonObject = when (media) {
        is Media.File -> try {
            toJson(Media.Bytes(media.path.readBytes()))
        } catch (error: IOException) {
            throw MynahException(MynahException.Code.NotFound, "${media.path}: ${error.message}")
        }
        else -> toJson(media)
    }

    fun fromJson(json: JsonElement): Media {
        val fields = json as? JsonObject ?: throw SerializationException("media is not a JSON object")
        fun field(name: String) = fields[name] ?: throw SerializationException("media has no field `$name`")
        fun bytes(name: String) = Base64.getDecoder().decode(field(name).jsonPrimitive.content)
        return when {
            "data" in fields -> Media.Bytes(bytes("data"))
            "rgb" in fields -> Media.Rgb(bytes("rgb"), field("width").jsonPrimitive.int)
            "frames" in fields ->
                Media.Frames(field("frames").jsonArray.map(::fromJson), fields["fps"]?.jsonPrimitive?.double)
            "samples" in fields -> {
                val samples = field("samples").jsonArray.map { it.jsonPrimitive.float }.toFloatArray()
                Media.Samples(samples, field("sampleRate").jsonPrimitive.int, field("channels").jsonPrimitive.int)
            }
            else -> Media.File(Path.of(field("file").jsonPrimitive.content))
        }
    }

    private fun ByteArray.toBase64() = Base64.getEncoder().encodeToString(this)
}
