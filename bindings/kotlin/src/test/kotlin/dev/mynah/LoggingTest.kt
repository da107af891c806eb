package dev.mynah

import java.nio.file.Path
import java.util.concurrent.ConcurrentLinkedQueue
import kotlin.io.path.writeText
import org.junit.jupiter.api.AfterEach
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

class LoggingTest {
    private val records = ConcurrentLinkedQueue<LogRecord>()

    @AfterEach
    fun removeHandler() {
        Mynah.setLogHandler(handler = null)
    }

    @Test
    fun `an unusable cache is logged as a warning`(@TempDir folder: Path) = test {
        val session = ChatSession(demo)
        session.respond("Hi", greedy)
        session.save(folder)
        folder.resolve("cache.safetensors").writeText("nonsense")
        assertTrue(Mynah.setLogHandler(LogLevel.WARNING) { records += it })
        ChatSession.restore(folder, demo)
        val warning = records.single { "cache.safetensors" in it.message }
        assertEquals(LogLevel.WARNING, warning.level)
        assertTrue(warning.target.startsWith("mynah"), warning.target)

        records.clear()
        Mynah.setLogHandler(LogLevel.ERROR) { records += it }
        ChatSession.restore(folder, demo)
        Mynah.setLogHandler(handler = null)
        ChatSession.restore(folder, demo)
        assertTrue(records.isEmpty(), "$records")
    }

    @Test
    fun `a handler that throws harms nothing, and threads of the core stay daemons`() = test {
        val threads = ConcurrentLinkedQueue<Thread>()
        Mynah.setLogHandler(LogLevel.TRACE) {
            threads += Thread.currentThread()
            records += it
            error("the handler fails")
        }
        Model.load(ModelSource.Demo).use { assertTrue("7" in it.generateText("What is 3 + 4?", greedy).text) }
        Mynah.setLogHandler(handler = null)
        // The threads of the test call the core too.
        val ofTheCore = threads.filter { it.name == "mynah" }
        assertTrue(ofTheCore.all { it.isDaemon })
        assertTrue(threads.none { it.name.startsWith("Thread-") && !it.isDaemon }, "$threads")
        assertTrue(records.size == threads.size)
    }
}
