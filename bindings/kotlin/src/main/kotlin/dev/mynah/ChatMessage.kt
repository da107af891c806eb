package dev.mynah

import dev.mynah.core.ChatMessage as CoreMessage
import dev.mynah.core.Content as CoreContent
import kotlinx.serialization.KSerializer
import kotlinx.serialization.Serializable
import kotlinx.serialization.SerializationException
import kotlinx.serialization.builtins.ListSerializer
import kotlinx.serialization.descriptors.SerialDescriptor
import kotlinx.serialization.encoding.Decoder
import kotlinx.serialization.encoding.Encoder
import kotlinx.serialization.json.JsonArray
import kotlinx.serialization.json.JsonDecoder
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonEncoder
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.JsonPrimitive
import kotlinx.serialization.json.JsonTransformingSerializer

/**
 * One message of a transcript.
 *
 * Its JSON is that of chat templates: `content` is a string or a list of parts such as
 * `{"type": "text", "text": "…"}`. That of a picture has its bytes.
 *
 * @property role the role of the speaker
 * @property content the content in its order
 * @property reasoning what the assistant reasoned before it answered
 * @property name the name of the speaker
 * @property toolCalls the calls that the assistant makes
 * @property toolCallId the id of the call whose result a message of the role `tool` is
 */
@Serializable
class ChatMessage(
    val role: Role,
    @Serializable(with = ContentListSerializer::class) val content: List<Content>,
    val reasoning: String? = null,
    val name: String? = null,
    val toolCalls: List<ToolCall> = emptyList(),
    val toolCallId: String? = null,
) {
    /** A message with text. */
    constructor(role: Role, text: String, reasoning: String? = null, name: String? = null) :
        this(role, listOf(Content.Text(text)), reasoning, name)

    /** A message with pictures and clips before its text. */
    constructor(role: Role, text: String, images: List<Media>, videos: List<Media> = emptyList()) : this(
        role,
        images.map { Content.Image(it) } + videos.map { Content.Video(it) } + Content.Text(text),
    )

    /** The text of all parts of the content. */
    val text: String get() = content.filterIsInstance<Content.Text>().joinToString("") { it.text }

    override fun equals(other: Any?) =
        other is ChatMessage && other.role == role && other.content == content &&
            other.reasoning == reasoning && other.name == name &&
            other.toolCalls == toolCalls && other.toolCallId == toolCallId

    override fun hashCode() = listOf(role, content, reasoning, name, toolCalls, toolCallId).hashCode()

    override fun toString(): String {
        val calls = toolCalls.takeIf { it.isNotEmpty() }?.let { "toolCalls=$it" }
        val rest = listOfNotNull(
            reasoning?.let { "reasoning=$it" }, name?.let { "name=$it" }, calls, toolCallId?.let { "toolCallId=$it" },
        )
        return (listOf("ChatMessage($role", "$content") + rest).joinToString(postfix = ")")
    }

    companion object {
        /** A system prompt. */
        fun system(text: String) = ChatMessage(Role.System, text)

        /** A message of the user. */
        fun user(text: String) = ChatMessage(Role.User, text)

        /** A message of the user with pictures and clips before its text. */
        fun user(text: String, images: List<Media>, videos: List<Media> = emptyList()) =
            ChatMessage(Role.User, text, images, videos)

        /** The result of a call. */
        fun tool(call: ToolCall, result: String) =
            ChatMessage(Role.Tool, listOf(Content.Text(result)), name = call.name, toolCallId = call.id)

        /** A message of the assistant. */
        fun assistant(text: String) = ChatMessage(Role.Assistant, text)
    }
}

/**
 * The role of a speaker. A template may know roles beside the usual ones.
 *
 * @property name the name of the role in chat templates
 */
@Serializable
@JvmInline
value class Role(val name: String) {
    override fun toString() = name

    companion object {
        val System = Role("system")
        val User = Role("user")
        val Assistant = Role("assistant")
        val Tool = Role("tool")
    }
}

/** One part of the content of a message. Later versions add kinds: a `when` needs an `else`. */
@Serializable(with = ContentSerializer::class)
abstract class Content internal constructor() {
    /**
     * Text.
     *
     * @property text the text
     */
    class Text(val text: String) : Content() {
        override fun equals(other: Any?) = other is Text && other.text == text

        override fun hashCode() = text.hashCode()

        override fun toString() = "Text($text)"
    }

    /**
     * A picture.
     *
     * @property media the picture
     */
    data class Image(val media: Media) : Content()

    /**
     * A clip.
     *
     * @property media the clip
     */
    data class Video(val media: Media) : Content()
}

/** JSON of one part: an object with its `type`. */
internal object ContentSerializer : KSerializer<Content> {
    override val descriptor: SerialDescriptor = JsonElement.serializer().descriptor

    override fun serialize(encoder: Encoder, value: Content) {
        val (type, part) = when (value) {
            is Content.Text -> "text" to JsonPrimitive(value.text)
            is Content.Image -> "image" to MediaSerializer.embedded(value.media)
            is Content.Video -> "video" to MediaSerializer.toJson(value.media)
            else -> throw SerializationException("content of ${value.javaClass} has no JSON")
        }
        (encoder as JsonEncoder).encodeJsonElement(JsonObject(mapOf("type" to JsonPrimitive(type), type to part)))
    }

    override fun deserialize(decoder: Decoder): Content {
        val part = (decoder as JsonDecoder).decodeJsonElement() as? JsonObject
            ?: throw SerializationException("a part of the content is not a JSON object")
        return when (val type = part.string("type")) {
            "text" -> Content.Text(part.string("text"))
            "image" -> Content.Image(part.media("image"))
            "video" -> Content.Video(part.media("video"))
            else -> throw MynahException(
                MynahException.Code.Unsupported,
                "this version of Mynah does not support content of type `$type`; update it",
            )
        }
    }

    private fun JsonObject.media(name: String): Media = MediaSerializer.fromJson(
        this[name] ?: throw SerializationException("a part of the content has no field `$name`"),
    )

    private fun JsonObject.string(name: String): String =
        (this[name] as? JsonPrimitive)?.takeIf { it.isString }?.content
            ?: throw SerializationException("a part of the content has no text in its field `$name`")
}

/** JSON of the content: parts, or one string. */
internal object ContentListSerializer :
    JsonTransformingSerializer<List<Content>>(ListSerializer(ContentSerializer)) {
    override fun transformDeserialize(element: JsonElement): JsonElement {
        if (element !is JsonPrimitive || !element.isString) return element
        return JsonArray(listOf(JsonObject(mapOf("type" to JsonPrimitive("text"), "text" to element))))
    }
}

internal fun ChatMessage.toCore() =
    CoreMessage(role.name, content.map { it.toCore() }, reasoning, name, toolCalls.map { it.toCore() }, toolCallId)

private fun Content.toCore(): CoreContent = when (this) {
    is Content.Text -> CoreContent.Text(text)
    is Content.Image -> CoreContent.Image(media.image())
    is Content.Video -> CoreContent.Video(media.video())
    else -> error("content of $javaClass comes from outside of this package")
}
