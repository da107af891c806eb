package dev.mynah

import java.nio.file.Path
import kotlin.io.path.readBytes
import kotlinx.coroutines.runBlocking
import kotlinx.serialization.json.Json
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertInstanceOf
import org.junit.jupiter.api.Assertions.assertNotEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

class MediaTest {
    private val model by lazy { runBlocking { Model.load(Checkpoints.source("vision")) } }
    private val short = greedy.with { maxTokens = 12; stopOnEos = false }
    private val picture = Checkpoints.path("vision/picture.png")
    private val expected = Checkpoints.expected.part("vision")
    private val square = Media.Rgb(Checkpoints.pixels(0), 16)

    private suspend fun answer(images: List<Media>, videos: List<Media> = emptyList()): List<Int> {
        val message = ChatMessage.user("what is it", images, videos)
        return model.generateText(listOf(message), short).generatedTokens
    }

    @Test
    fun `a picture is answered as in Rust`() = test {
        assertEquals(expected.ints("image"), answer(listOf(Media.File(picture))))
        assertEquals(expected.ints("image"), answer(listOf(Media.Bytes(picture.readBytes()))))
        assertEquals(expected.ints("rgb"), answer(listOf(square)))
        assertEquals(expected.ints("text"), answer(emptyList()))
        assertNotEquals(expected.ints("image"), expected.ints("text"))
        assertNotEquals(expected.ints("image"), expected.ints("rgb"))
    }

    @Test
    fun `a clip is answered as in Rust`() = test {
        val frames = List(4) { Media.Rgb(Checkpoints.pixels(it), 16) }
        assertEquals(expected.ints("video"), answer(emptyList(), listOf(Media.Frames(frames, 2.0))))
    }

    @Test
    fun `a conversation keeps its pictures`(@TempDir folder: Path) = test {
        val session = ChatSession(model)
        val first = session.respond(Prompt.Chat(ChatMessage.user("what is it", listOf(Media.File(picture)))), short)
        assertEquals(expected.ints("image"), first.result.generatedTokens)
        val second = session.respond("and", short)
        assertTrue(second.result.stats.cachedTokens >= first.result.promptTokens.size)
        session.save(folder)
        val restored = ChatSession.restore(folder, model)
        val content = assertInstanceOf(Content.Image::class.java, restored.transcript.value.first().content.first())
        assertInstanceOf(Media.Bytes::class.java, content.media)
        val same = restored.respond("more", short)
        assertTrue(same.result.stats.cachedTokens > 0)
        assertEquals(session.respond("more", short).content, same.content)
    }

    @Test
    fun `bad media is a typed error`() = test {
        suspend fun refused(code: MynahException.Code, image: Media) = assertFails(code) { answer(listOf(image)) }
        suspend fun refusedClip(code: MynahException.Code, clip: Media) =
            assertFails(code) { answer(emptyList(), listOf(clip)) }
        refused(MynahException.Code.InvalidRequest, Media.Bytes("no picture".toByteArray()))
        refused(MynahException.Code.InvalidRequest, Media.Bytes(picture.readBytes().dropLast(40).toByteArray()))
        refused(MynahException.Code.InvalidRequest, Media.Rgb(ByteArray(7), 2))
        refused(MynahException.Code.InvalidRequest, Media.Samples(floatArrayOf(0f), 16_000))
        val missing = refused(MynahException.Code.NotFound, Media.File(Path.of("/nowhere.png")))
        assertTrue("/nowhere.png" in missing.message, missing.message)
        refusedClip(MynahException.Code.InvalidRequest, Media.Frames(emptyList()))
        refusedClip(MynahException.Code.NotFound, Media.File(Path.of("/nowhere.gif")))
        assertFails(MynahException.Code.InvalidRequest) {
            demo.generateText(listOf(ChatMessage.user("What?", listOf(square))), short)
        }
    }

    @Test
    fun `the JSON of media is read back`() {
        val parts = listOf(
            Content.Image(square),
            Content.Image(Media.Bytes(byteArrayOf(1, 2, 3))),
            Content.Video(Media.File(Path.of("/clip.gif"))),
            Content.Video(Media.Frames(listOf(Media.Bytes(byteArrayOf(4))), 2.0)),
            Content.Text("and"),
        )
        val message = ChatMessage(Role.User, parts)
        assertEquals(message, Json.decodeFromString<ChatMessage>(Json.encodeToString(message)))
    }
}
