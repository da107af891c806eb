package mynah

import java.io.IOException
import java.nio.file.Path
import kotlin.io.path.deleteExisting
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
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

class ChatSessionTest {
    @Test
    fun `a turn costs its own tokens only`() = test {
        val session = ChatSession(demo, instructions = "You are a small model.")
        val first = session.respond("What is 3 + 4?", greedy)
        assertTrue("7" in first.text)
        assertEquals(0, first.summary.cachedTokens)
        val second = session.respond("Who are you?", greedy)
        assertTrue(second.summary.cachedTokens >= first.summary.promptTokens)
        val roles = listOf("system", "user", "assistant", "user", "assistant")
        assertEquals(roles, session.transcript.value.map { it.role })
        // The same, computed anew.
        val anew = demo.generate(Prompt.Chat(session.transcript.value.dropLast(1)), greedy).result()
        assertEquals(anew.text, second.text)
    }

    @Test
    fun `a fork goes its own way`() = test {
        val session = ChatSession(demo)
        session.respond("What is 3 + 4?", greedy)
        val fork = session.fork()
        val other = fork.respond("Who are you?", greedy)
        assertTrue(other.summary.cachedTokens > 0)
        assertEquals(2, session.transcript.value.size)
        assertEquals(4, fork.transcript.value.size)
        fork.close()
        assertEquals(other.text, session.respond("Who are you?", greedy).text)
    }

    @Test
    fun `a saved conversation goes on`(@TempDir folder: Path) = test {
        val session = ChatSession(demo)
        session.save(folder)
        assertTrue(ChatSession.restore(folder, demo).transcript.value.isEmpty())
        session.respond("What is 3 + 4?", greedy)
        session.save(folder)
        val restored = ChatSession.restore(folder, demo)
        assertEquals(session.transcript.value, restored.transcript.value)
        assertEquals(session.tokensUsed, restored.tokensUsed)
        val answer = restored.respond("Who are you?", greedy)
        assertTrue(answer.summary.cachedTokens > 0)
        assertEquals(session.respond("Who are you?", greedy).text, answer.text)

        session.save(folder, includingCache = false)
        val bare = ChatSession.restore(folder, demo)
        assertEquals(0, bare.tokensUsed)
        assertEquals(session.transcript.value, bare.transcript.value)
        folder.resolve("cache.safetensors").writeText("nonsense")
        assertFails<MynahException.Damaged> { ChatSession.restore(folder, demo) }
        folder.resolve("transcript.json").writeText("nonsense")
        assertFails<MynahException.Damaged> { ChatSession.restore(folder, demo) }
        folder.resolve("transcript.json").deleteExisting()
        assertFails<IOException> { ChatSession.restore(folder, demo) }
    }

    @Test
    fun `calls queue`() = test {
        val session = ChatSession(demo)
        val questions = List(4) { "What is $it + 1?" }
        withContext(Dispatchers.Default) {
            questions.map { async { session.respond(it, greedy) } }.awaitAll()
        }
        val (asked, answered) = session.transcript.value.withIndex().partition { it.index % 2 == 0 }
        assertEquals(questions.toSet(), asked.map { it.value.content }.toSet())
        assertTrue(answered.all { it.value.role == "assistant" })
    }

    @Test
    fun `a cancelled call leaves the queue`() = test {
        val session = ChatSession(demo)
        val job = launch { session.streamResponse("Who are you?", endless).collect { awaitCancellation() } }
        session.transcript.first { it.isNotEmpty() }
        val waiting = launch { session.respond("Hi", greedy) }
        yield()
        waiting.cancel()
        waiting.join()
        assertEquals(listOf(Message.user("Who are you?")), session.transcript.value)
        job.cancel()
        job.join()
        session.respond("Hi", greedy)
        assertEquals("Hi", session.transcript.value[1].content)
    }

    @Test
    fun `a refused request changes nothing`() = test {
        val session = ChatSession(demo)
        assertFails<MynahException.InvalidRequest> { session.respond("Hi", greedy.copy(topP = 2f)) }
        assertTrue(session.transcript.value.isEmpty())
        assertFails<MynahException.InvalidRequest> {
            ChatSession(demo, options = SessionOptions(quantization = CacheBits(5)))
        }
        assertFails<MynahException.InvalidRequest> {
            ChatSession(demo, options = SessionOptions(overflow = Overflow.DropOldest(-1)))
        }
    }

    @Test
    fun `old turns make room`() = test {
        val options = SessionOptions(overflow = Overflow.DropOldest(reserve = 64))
        val turn = listOf(Message.user("one two ".repeat(60)), Message.assistant("three"))
        val short = ChatSession(demo, transcript = turn, options = options)
        assertEquals(0, short.respond("Hi", greedy).summary.droppedMessages)
        val long = ChatSession(demo, transcript = List(8) { turn }.flatten(), options = options)
        assertTrue(long.respond("Hi", greedy).summary.droppedMessages > 0)
    }

    @Test
    fun `observers see the transcript grow`() = test {
        val session = ChatSession(demo)
        val sizes = mutableListOf<Int>()
        val observer = launch(Dispatchers.Unconfined) { session.transcript.collect { sizes += it.size } }
        session.streamResponse("Hi", greedy).toList()
        observer.cancel()
        assertEquals(listOf(0, 1, 2), sizes)
    }
}
