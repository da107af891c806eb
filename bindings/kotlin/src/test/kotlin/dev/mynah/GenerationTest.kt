package dev.mynah

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
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test

class GenerationTest {
    @Test
    fun `each collector has a generation of its own`() = test {
        val flow = demo.generate("What is 3 + 4?", greedy)
        val first = flow.toList()
        assertTrue(first.first() is GenerationEvent.Prefill && first.last() is GenerationEvent.Finished)
        assertEquals(first.dropLast(1), flow.toList().dropLast(1))
        assertEquals(flow.result().text, flow.text().toList().joinToString(""))
        assertFails<IllegalStateException> { flow.filter { it !is GenerationEvent.Finished }.result() }
    }

    @Test
    fun `cancelling the coroutine stops the device within a step`() = test {
        val session = ChatSession(demo)
        val seen = Channel<Unit>(Channel.UNLIMITED)
        val job = launch {
            val answer = session.streamResponse("Who are you?", endless)
            answer.collect { if (it is GenerationEvent.Text) seen.send(Unit) }
        }
        repeat(5) { seen.receive() }
        job.cancel()
        val used = session.context.used
        job.join()
        assertTrue(settle { session.context.used } - used <= 1)
        assertEquals(listOf(Role.User, Role.Assistant), session.transcript.value.map { it.role })
    }

    @Test
    fun `cancelling stops a wait for the device`() = test {
        val session = ChatSession(demo)
        Device.suspend()
        try {
            val job = launch(Dispatchers.Default) { session.respond("Who are you?", endless) }
            becomes(1) { session.transcript.value.size }
            job.cancel()
            job.join()
        } finally {
            Device.resume()
        }
        assertEquals(0, settle { session.context.used })
        // The next call follows.
        assertTrue(session.respond("What is 3 + 4?", greedy).content.isNotEmpty())
    }

    @Test
    fun `a collector that takes a few events stops the device`() = test {
        val session = ChatSession(demo)
        val answer = session.streamResponse("Who are you?", endless)
        assertEquals(3, answer.filter { it is GenerationEvent.Text }.take(3).toList().size)
        val used = session.context.used
        assertTrue(settle { session.context.used } - used <= 1)
    }

    @Test
    fun `a collector that waits makes the device wait`() = test {
        val session = ChatSession(demo)
        val seen = Channel<Unit>(Channel.CONFLATED)
        val job = launch {
            session.streamResponse("Who are you?", endless).collect {
                seen.send(Unit)
                awaitCancellation()
            }
        }
        seen.receive()
        val used = settle { session.context.used }
        val prompt = demo.countTokens(Prompt.Text("Who are you?"))
        // Events in the core, events of one batch, and the token that the device computes.
        assertTrue(used - prompt in 1..32 + 32 + 2, "$used tokens after $prompt")
        job.cancel()
    }

    @Test
    fun `an exception of a collector reaches the caller`() = test {
        val error = assertFails<IllegalStateException> {
            demo.generate("Hi", endless).collect { error("enough") }
        }
        assertEquals("enough", error.message)
        assertTrue(demo.generateText("Hi", greedy).text.isNotEmpty())
    }

    @Test
    fun `concurrent generations do not mix`() = test {
        val questions = List(8) { "What is $it + ${9 - it}?" }
        val alone = questions.map { demo.generateText(it, greedy).text }
        val together = withContext(Dispatchers.Default) {
            questions.map { async { demo.generateText(it, greedy).text } }.awaitAll()
        }
        assertEquals(alone, together)
    }

    @Test
    fun `coroutines never run on the engine thread, whatever their dispatcher`() = test {
        val expected = demo.generateText("Hi", greedy).text
        Executors.newSingleThreadExecutor().asCoroutineDispatcher().use { single ->
            for (dispatcher in listOf(Dispatchers.Unconfined, single, Dispatchers.IO)) {
                val threads = mutableSetOf<String>()
                val text = withContext(dispatcher) {
                    demo.generate("Hi", greedy).text().toList(TracingList(threads)).joinToString("")
                }
                assertEquals(expected, text)
                assertTrue("mynah" !in threads, "$threads")
            }
        }
    }

    @Test
    fun `the engine thread becomes a Java thread once`() = test {
        suspend fun coreThreads(): Set<Thread> {
            demo.generateText("Hi", greedy)
            return Thread.getAllStackTraces().keys.filter { it.name == "mynah" }.toSet()
        }
        val threads = coreThreads()
        assertTrue(threads.isNotEmpty() && threads.all { it.isDaemon })
        repeat(3) { assertTrue(threads.containsAll(coreThreads())) }
    }
}

/** Records the threads that add to it. */
private class TracingList(private val threads: MutableSet<String>) : ArrayList<String>() {
    override fun add(element: String): Boolean {
        threads += Thread.currentThread().name
        return super.add(element)
    }
}
