package mynah

import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.concurrent.Executors
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.asCoroutineDispatcher
import kotlinx.coroutines.async
import kotlinx.coroutines.awaitAll
import kotlinx.coroutines.awaitCancellation
import kotlinx.coroutines.channels.Channel
import kotlinx.coroutines.flow.filter
import kotlinx.coroutines.flow.take
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext
import mynah.core.EventBatch
import mynah.core.FinishReason as CoreFinishReason
import mynah.core.Prefill
import mynah.core.Summary as CoreSummary
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertSame
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test

class GenerationTest {
    @Test
    fun `each collector has a generation of its own`() = test {
        val flow = demo.generate(ask("What is 3 + 4?"), greedy)
        val first = flow.toList()
        assertTrue(first.first() is GenerationEvent.Prefill && first.last() is GenerationEvent.Finished)
        assertEquals(first.map { it.text }, flow.toList().map { it.text })
        assertEquals(flow.result().text, flow.text().toList().joinToString(""))
    }

    @Test
    fun `a batch is taken apart`() {
        val packed = ByteBuffer.allocate(4096).order(ByteOrder.LITTLE_ENDIAN)
        fun pack(id: Int, logprob: Float, text: String, top: List<TokenProbability> = emptyList()) {
            val utf8 = text.toByteArray()
            packed.putInt(id).putFloat(logprob).putInt(utf8.size).putInt(top.size).put(utf8)
            top.forEach { packed.putInt(it.id).putFloat(it.logprob) }
        }
        val top = listOf(TokenProbability(7, -0.5f), TokenProbability(1 shl 20, Float.NEGATIVE_INFINITY))
        val tokens = List(32) { id ->
            when {
                id == 0 -> GenerationEvent.Token(Int.MAX_VALUE, "né 👩‍👩‍👧", -0.25f, top)
                id % 2 == 0 -> GenerationEvent.Token(id, "", -id.toFloat(), emptyList())
                else -> GenerationEvent.Token(id, "${id}é", -id.toFloat(), emptyList())
            }
        }
        tokens.forEach { pack(it.id, it.logprob, it.text, it.top) }
        val summary = CoreSummary(CoreFinishReason.STOP, "…", 1u, 0u, 0u, 32u, 0.0, 0.0, 0.0, 0u)
        val batch = EventBatch(listOf(Prefill(3u, 4u)), packed.array().copyOf(packed.position()), summary)
        val events = batch.events()
        assertEquals(listOf(GenerationEvent.Prefill(3, 4)) + tokens, events.dropLast(1))
        assertEquals("…", (events.last() as GenerationEvent.Finished).summary.remainingText)
        assertTrue(EventBatch(emptyList(), ByteArray(0), null).events().isEmpty())
    }

    @Test
    fun `cancelling the coroutine stops the device within a step`() = test {
        val session = ChatSession(demo)
        val seen = Channel<Unit>(Channel.UNLIMITED)
        val job = launch {
            val answer = session.streamResponse("Who are you?", endless)
            answer.collect { if (it is GenerationEvent.Token) seen.send(Unit) }
        }
        repeat(5) { seen.receive() }
        job.cancel()
        val used = session.tokensUsed
        job.join()
        assertTrue(settle { session.tokensUsed } - used <= 1)
        assertEquals(listOf("user", "assistant"), session.transcript.value.map { it.role })
    }

    @Test
    fun `cancelling stops a wait for the device`() = test {
        val session = ChatSession(demo)
        Device.pause()
        try {
            val job = launch(Dispatchers.Default) { session.respond("Who are you?", endless) }
            becomes(1) { session.transcript.value.size }
            job.cancel()
            job.join()
        } finally {
            Device.resume()
        }
        assertEquals(0, settle { session.tokensUsed })
        // The next call has its turn.
        assertTrue(session.respond("What is 3 + 4?", greedy).text.isNotEmpty())
    }

    @Test
    fun `who takes enough stops the device`() = test {
        val session = ChatSession(demo)
        val answer = session.streamResponse("Who are you?", endless)
        assertEquals(3, answer.filter { it is GenerationEvent.Token }.take(3).toList().size)
        val used = session.tokensUsed
        assertTrue(settle { session.tokensUsed } - used <= 1)
    }

    @Test
    fun `a collector that waits lets the device wait`() = test {
        val session = ChatSession(demo)
        val seen = Channel<Unit>(Channel.CONFLATED)
        val job = launch {
            session.streamResponse("Who are you?", endless).collect {
                seen.send(Unit)
                awaitCancellation()
            }
        }
        seen.receive()
        val used = settle { session.tokensUsed }
        val prompt = demo.countTokens(ask("Who are you?"))
        // What waits in the core, what crossed at once, and the token that is being computed.
        assertTrue(used - prompt in 1..32 + 32 + 2, "$used tokens after $prompt")
        job.cancel()
    }

    @Test
    fun `a collector that throws gets its own exception`() = test {
        val error = assertFails<IllegalStateException> {
            demo.generate(ask("Hi"), endless).collect { error("enough") }
        }
        assertEquals("enough", error.message)
        assertTrue(demo.generate(ask("Hi"), greedy).result().text.isNotEmpty())
    }

    @Test
    fun `many coroutines get their own answers`() = test {
        val questions = List(8) { "What is $it + ${9 - it}?" }
        val alone = questions.map { demo.generate(ask(it), greedy).result().text }
        val together = withContext(Dispatchers.Default) {
            questions.map { async { demo.generate(ask(it), greedy).result().text } }.awaitAll()
        }
        assertEquals(alone, together)
    }

    @Test
    fun `coroutines stay off the device's thread, whatever their dispatcher`() = test {
        val expected = demo.generate(ask("Hi"), greedy).result().text
        Executors.newSingleThreadExecutor().asCoroutineDispatcher().use { single ->
            for (dispatcher in listOf(Dispatchers.Unconfined, single, Dispatchers.IO)) {
                val threads = mutableSetOf<String>()
                val text = withContext(dispatcher) {
                    demo.generate(ask("Hi"), greedy).text().toList(TracingList(threads)).joinToString("")
                }
                assertEquals(expected, text)
                assertTrue("mynah" !in threads, "$threads")
            }
        }
    }

    @Test
    fun `the device's thread becomes a Java thread once`() = test {
        suspend fun deviceThread(): Thread {
            demo.generate(ask("Hi"), greedy).result()
            return Thread.getAllStackTraces().keys.single { it.name == "mynah" }
        }
        val thread = deviceThread()
        assertTrue(thread.isDaemon)
        repeat(3) { assertSame(thread, deviceThread()) }
    }
}

/** Notes on which threads it is filled. */
private class TracingList(private val threads: MutableSet<String>) : ArrayList<String>() {
    override fun add(element: String): Boolean {
        threads += Thread.currentThread().name
        return super.add(element)
    }
}
