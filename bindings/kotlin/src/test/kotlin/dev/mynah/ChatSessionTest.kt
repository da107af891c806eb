package dev.mynah

import java.nio.file.Path
import kotlin.io.path.createDirectory
import kotlin.io.path.deleteExisting
import kotlin.io.path.readBytes
import kotlin.io.path.readText
import kotlin.io.path.writeBytes
import kotlin.io.path.writeText
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.async
import kotlinx.coroutines.awaitAll
import kotlinx.coroutines.awaitCancellation
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext
import kotlinx.coroutines.yield
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonPrimitive
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

class ChatSessionTest {
    @Test
    fun `a turn computes only its own tokens`() = test {
        val session = ChatSession(demo, instructions = "You are a small model.")
        val first = session.respond("What is 3 + 4?", greedy)
        assertTrue("7" in first.content)
        assertEquals(first.content, "$first")
        assertEquals(0, first.result.stats.cachedTokens)
        val second = session.respond("Who are you?", greedy)
        assertTrue(second.result.stats.cachedTokens >= first.result.promptTokens.size)
        val roles = listOf(Role.System, Role.User, Role.Assistant, Role.User, Role.Assistant)
        assertEquals(roles, session.transcript.value.map { it.role })
        assertEquals(ContextUsage(session.context.used, 512), session.context)
        // The same answer, computed without the cache.
        val anew = demo.generateText(session.transcript.value.dropLast(1), greedy)
        assertEquals(anew.text, second.content)
    }

    @Test
    fun `a fork continues without its original`() = test {
        val session = ChatSession(demo)
        session.respond("What is 3 + 4?", greedy)
        val fork = session.fork()
        val other = fork.respond("Who are you?", greedy)
        assertTrue(other.result.stats.cachedTokens > 0)
        assertEquals(2, session.transcript.value.size)
        assertEquals(4, fork.transcript.value.size)
        fork.close()
        assertEquals(other.content, session.respond("Who are you?", greedy).content)
    }

    @Test
    fun `messages continue a conversation, and raw text does not`() = test {
        val session = ChatSession(demo)
        val said = listOf(ChatMessage.user("Hi"), ChatMessage.assistant("Hello."), ChatMessage.user("Who are you?"))
        val answer = session.respond(Prompt.Chat(said), greedy)
        assertEquals(said + ChatMessage.assistant(answer.content), session.transcript.value)
        val again = ChatSession(demo, transcript = said)
        assertEquals(answer.content, again.respond(Prompt.Chat(), greedy).content)
        for (input in listOf(Prompt.Raw("Hi"), Prompt.Tokens(listOf(1)))) {
            assertFails(MynahException.Code.InvalidRequest) { session.respond(input, greedy) }
        }
        assertEquals(4, session.transcript.value.size)
    }

    @Test
    fun `options of the template reach the conversation`() = test {
        val template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{{ mood }}"
        val load = LoadOptions { overrides = ModelOverrides { chatTemplate = template } }
        Model.load(ModelSource.Demo, load).use { model ->
            val options = ChatOptions {
                this.template = ChatTemplateOptions { extraContext = mapOf("mood" to JsonPrimitive("!")) }
            }
            val result = ChatSession(model, options = options).respond("Hi", greedy).result
            assertEquals("<user>Hi!", model.decode(result.promptTokens))
        }
    }

    @Test
    fun `a restored conversation continues with its cache`(@TempDir folder: Path) = test {
        val session = ChatSession(demo)
        session.save(folder)
        assertTrue(ChatSession.restore(folder, demo).transcript.value.isEmpty())
        session.respond("What is 3 + 4?", greedy)
        session.save(folder)
        val restored = ChatSession.restore(folder, demo)
        assertEquals(session.transcript.value, restored.transcript.value)
        assertEquals(session.context, restored.context)
        val answer = restored.respond("Who are you?", greedy)
        assertTrue(answer.result.stats.cachedTokens > 0)
        assertEquals(session.respond("Who are you?", greedy).content, answer.content)

        session.save(folder, includingCache = false)
        val bare = ChatSession.restore(folder, demo)
        assertEquals(0, bare.context.used)
        assertEquals(session.transcript.value, bare.transcript.value)
    }

    @Test
    fun `an unusable cache never loses a conversation`(@TempDir folder: Path) = test {
        val session = ChatSession(demo)
        session.respond("What is 3 + 4?", greedy)
        session.save(folder)
        val expected = session.respond("Who are you?", greedy).content
        val said = session.transcript.value.take(2)
        val file = folder.resolve("cache.safetensors")
        val saved = file.readBytes()
        // JSON in a string of JSON.
        val version = """version\":"""
        val at = saved.toString(Charsets.ISO_8859_1).indexOf(version)
        assertTrue(at > 0, "the file has no version")
        val later = saved.clone().also { it[at + version.length] = '9'.code.toByte() }
        for ((name, bytes) in mapOf(
            "an empty file" to ByteArray(0),
            "a cut header" to saved.copyOf(20),
            "a cut file" to saved.copyOf(saved.size / 2),
            "a cut tensor" to saved.copyOf(saved.size - 1),
            "another version" to later,
            "no safetensors" to "nonsense".toByteArray(),
            "a header of 2^63 bytes" to ByteArray(64) { -1 },
        )) {
            file.writeBytes(bytes)
            // A model whose prefix cache does not know the conversation.
            Model.load(ModelSource.Demo).use { model ->
                val restored = ChatSession.restore(folder, model)
                assertEquals(said, restored.transcript.value, name)
                assertEquals(0, restored.context.used, name)
                val answer = restored.respond("Who are you?", greedy)
                assertEquals(0, answer.result.stats.cachedTokens, name)
                assertEquals(expected, answer.content, name)
            }
        }
        file.deleteExisting()
        file.createDirectory()
        assertEquals(said, ChatSession.restore(folder, demo).transcript.value)
        file.deleteExisting()

        // The cache of another KV cache format.
        file.writeBytes(saved)
        val quantized = LoadOptions { kvCache = KvCacheOptions.Quantized(8, groupSize = 32) }
        Model.load(ModelSource.Demo, quantized).use { model ->
            val restored = ChatSession.restore(folder, model)
            assertEquals(said, restored.transcript.value)
            assertEquals(0, restored.respond("Who are you?", greedy).result.stats.cachedTokens)
        }
        // The file itself is still a good one.
        assertTrue(ChatSession.restore(folder, demo).context.used > 0)
    }

    @Test
    fun `a transcript that cannot be read is an error`(@TempDir folder: Path) = test {
        val file = folder.resolve("transcript.json")
        assertFails(MynahException.Code.NotFound) { ChatSession.restore(folder, demo) }
        for (text in listOf("nonsense", "[]", """{"transcript": [{"role": "user", "content": [{"text": "x"}]}]}""")) {
            file.writeText(text)
            val error = assertFails(MynahException.Code.Damaged) { ChatSession.restore(folder, demo) }
            assertTrue("transcript.json" in error.message, error.message)
        }
        file.writeText(
            """{"transcript": [{"role": "user", "content": [{"type": "smell", "smell": "x"}]}], "options": {}}""",
        )
        val error = assertFails(MynahException.Code.Unsupported) { ChatSession.restore(folder, demo) }
        assertTrue("smell" in error.message, error.message)
    }

    @Test
    fun `options are restored with a conversation`(@TempDir folder: Path) = test {
        val turn = listOf(ChatMessage.user("one two ".repeat(60)), ChatMessage.assistant("three"))
        val transcript = List(8) { turn }.flatten()
        ChatSession(demo, transcript = transcript, options = ChatOptions { overflow = Overflow.DropOldest(64) })
            .save(folder)
        assertTrue(ChatSession.restore(folder, demo).respond("Hi", greedy).result.stats.droppedMessages > 0)
        for (overflow in listOf(null, Overflow.Error, Overflow.DropOldest(7), Overflow.Window(96, keep = 5))) {
            val options = ChatOptions {
                this.overflow = overflow
                cacheBits = 8
                checkpointBytes = 9
                template = ChatTemplateOptions {
                    addGenerationPrompt = false
                    continueFinalMessage = true
                    enableThinking = false
                    reasoningEffort = "low"
                    extraContext = mapOf("x" to JsonPrimitive(1))
                    template = "rag"
                }
            }
            val text = SavedConversation(turn, SavedChatOptions(options)).toJson()
            val saved = SavedConversation.fromJson(text, folder)
            assertEquals(turn, saved.transcript)
            assertEquals(options, saved.options.restore())
        }
    }

    @Test
    fun `the file of a conversation is the one that Swift reads and writes`(@TempDir folder: Path) = test {
        val file = folder.resolve("transcript.json")
        val fromSwift = """
            {"transcript": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]},
              {"role": "assistant", "content": [{"type": "text", "text": "Hello."}], "reasoning": "A greeting."}],
             "options": {"overflow": {"window": {"_0": 96, "keep": 4}}, "template": {"addGenerationPrompt": true,
              "continueFinalMessage": false, "extraContext": {}}}}
        """
        file.writeText(fromSwift)
        val session = ChatSession.restore(folder, demo)
        val greeting = ChatMessage(Role.Assistant, "Hello.", reasoning = "A greeting.")
        assertEquals(listOf(ChatMessage.user("Hi"), greeting), session.transcript.value)
        session.save(folder)
        assertEquals(Json.parseToJsonElement(fromSwift), Json.parseToJsonElement(file.readText()))
    }

    @Test
    fun `concurrent calls wait for each other`() = test {
        val session = ChatSession(demo)
        val questions = List(4) { "What is $it + 1?" }
        withContext(Dispatchers.Default) {
            questions.map { async { session.respond(it, greedy) } }.awaitAll()
        }
        val (asked, answered) = session.transcript.value.withIndex().partition { it.index % 2 == 0 }
        assertEquals(questions.toSet(), asked.map { it.value.text }.toSet())
        assertTrue(answered.all { it.value.role == Role.Assistant })
    }

    @Test
    fun `a cancelled call leaves the queue`() = test {
        val session = ChatSession(demo)
        val job = launch { session.streamResponse("Who are you?", endless).collect { awaitCancellation() } }
        session.transcript.first { it.isNotEmpty() }
        session.isResponding.first { it }
        val waiting = launch { session.respond("Hi", greedy) }
        yield()
        waiting.cancel()
        waiting.join()
        assertEquals(listOf(ChatMessage.user("Who are you?")), session.transcript.value)
        job.cancel()
        job.join()
        assertFalse(session.isResponding.value)
        session.respond("Hi", greedy)
        assertEquals("Hi", session.transcript.value[1].text)
    }

    @Test
    fun `a refused request leaves the transcript unchanged`() = test {
        val session = ChatSession(demo)
        assertFails(MynahException.Code.InvalidRequest) { session.respond("Hi", greedy.with { topP = 2f }) }
        assertTrue(session.transcript.value.isEmpty())
        for (options in listOf(
            ChatOptions { cacheBits = 5 },
            ChatOptions { cacheBits = 256 + 8 },
            ChatOptions { overflow = Overflow.DropOldest(-1) },
            ChatOptions { checkpointBytes = -1 },
        )) {
            assertFails(MynahException.Code.InvalidRequest) { ChatSession(demo, options = options) }
        }
    }

    @Test
    fun `the oldest turns are dropped when the context is full`() = test {
        val options = ChatOptions { overflow = Overflow.DropOldest(reserve = 64) }
        val turn = listOf(ChatMessage.user("one two ".repeat(60)), ChatMessage.assistant("three"))
        val short = ChatSession(demo, transcript = turn, options = options)
        assertEquals(0, short.respond("Hi", greedy).result.stats.droppedMessages)
        val long = ChatSession(demo, transcript = List(8) { turn }.flatten(), options = options)
        assertTrue(long.respond("Hi", greedy).result.stats.droppedMessages > 0)
    }

    @Test
    fun `observers receive the transcript as it grows`() = test {
        val session = ChatSession(demo)
        val sizes = mutableListOf<Int>()
        val responding = mutableListOf<Boolean>()
        val observers = listOf(
            launch(Dispatchers.Unconfined) { session.transcript.collect { sizes += it.size } },
            launch(Dispatchers.Unconfined) { session.isResponding.collect { responding += it } },
        )
        session.streamResponse("Hi", greedy).toList()
        observers.forEach { it.cancel() }
        assertEquals(listOf(0, 1, 2), sizes)
        assertEquals(listOf(false, true, false), responding)
    }
}
