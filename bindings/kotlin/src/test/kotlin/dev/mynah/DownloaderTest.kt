package dev.mynah

import java.io.IOException
import java.nio.file.Files
import java.nio.file.Path
import java.util.concurrent.ConcurrentLinkedQueue
import kotlin.io.path.readBytes
import kotlin.io.path.writeBytes
import kotlin.io.path.writeText
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.awaitCancellation
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.withTimeout
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

/** The repository that this test is in. */
private val root: Path = generateSequence(Path.of("").toAbsolutePath()) { it.parent }
    .first { Files.exists(it.resolve("Package.swift")) }

private fun content(request: FileRequest) = root.resolve("core/demo/${request.name}").readBytes()

/** Copies from a folder, in halves. */
private val folder = Downloader { request, file, progress ->
    val content = content(request)
    progress(content.size / 2L)
    delay(1)
    file.writeBytes(content)
    progress(content.size.toLong())
}

/** A hub on this machine that has the demo model. */
private class Hub(private val cache: Path) : AutoCloseable {
    private val process = ProcessBuilder(root.resolve("target/debug/hub").toString(), "org/demo").start()
    private val endpoint: String = process.inputReader().readLine()

    val source get() = ModelSource.Hub("org/demo", token = "secret", endpoint = endpoint, cache = cache)

    suspend fun load(downloader: Downloader) = Model.load(source, LoadOptions { this.downloader = downloader })

    override fun close() = process.destroy()
}

class DownloaderTest {
    @Test
    fun `a model is downloaded once`(@TempDir cache: Path) = test {
        Hub(cache).use { hub ->
            val offline = LoadOptions { network = NetworkPolicy.OFFLINE }
            assertFails(MynahException.Code.Offline) { Model.load(hub.source, offline) }
            val store = ModelStore(cache)
            val steps = store.download(hub.source).toList()
            assertEquals(steps.last().total, steps.last().completed)
            assertEquals(1.0, steps.last().fractionCompleted)
            assertEquals(steps.map { it.completed }.sorted(), steps.map { it.completed })
            assertEquals(emptyList<DownloadProgress>(), store.download(hub.source).toList())
            assertTrue(store.list().single().revisions.single().isComplete)
            Model.load(hub.source, offline).use { model ->
                assertTrue("7" in model.generateText("What is 3 + 4?", greedy).text)
            }
            assertFails(MynahException.Code.InvalidRequest) { store.download(ModelSource.Demo).toList() }
        }
    }

    @Test
    fun `the application can download the files`(@TempDir cache: Path) = test {
        Hub(cache).use { hub ->
            val requests = ConcurrentLinkedQueue<FileRequest>()
            val noting = Downloader { request, file, progress ->
                requests += request
                folder.download(request, file, progress)
            }
            hub.load(noting).use { model ->
                assertTrue("7" in model.generateText("What is 3 + 4?", greedy).text)
            }
            val names = listOf(
                "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
            )
            assertEquals(names, requests.map { it.name }.sorted())
            for (request in requests) {
                assertEquals("Bearer secret", request.authorization)
                assertEquals(content(request).size.toLong(), request.size)
                assertTrue(request.url.startsWith("http://127.0.0.1:") && request.url.endsWith(request.name))
                assertTrue("secret" !in request.toString())
                assertEquals("org/demo", request.repository)
                assertTrue(request.commit.length == 40 && request.commit in request.url, request.commit)
                assertTrue(request.hash.length in listOf(40, 64), request.hash)
            }
        }
    }

    @Test
    fun `an exception of the application reaches the caller`(@TempDir cache: Path) = test {
        Hub(cache).use { hub ->
            val error = assertFails(MynahException.Code.Network) {
                hub.load { _, _, _ -> throw IOException("the server room is on fire") }
            }
            assertTrue("the server room is on fire" in error.message, error.message)
            assertFails(MynahException.Code.Cancelled) { hub.load { _, _, _ -> throw CancellationException() } }
            // The next load asks for the files again.
            hub.load(folder).close()
        }
    }

    @Test
    fun `a download that hangs is cancelled`(@TempDir cache: Path) = test {
        Hub(cache).use { hub ->
            for (wait in listOf<suspend (Downloader) -> Any>(
                { hub.load(it) },
                { ModelStore(cache).download(hub.source, it).toList() },
            )) {
                val (started, cancelled) = List(2) { CompletableDeferred<Unit>() }
                val hanging = Downloader { _, _, _ ->
                    started.complete(Unit)
                    try {
                        awaitCancellation()
                    } finally {
                        cancelled.complete(Unit)
                    }
                }
                val job = launch(Dispatchers.Default) { wait(hanging) }
                started.await()
                job.cancelAndJoin()
                withTimeout(60_000) { cancelled.await() }
            }
        }
    }

    @Test
    fun `wrong files are refused, and wrong progress is ignored`(@TempDir cache: Path) = test {
        Hub(cache).use { hub ->
            assertFails(MynahException.Code.Damaged) { hub.load { _, _, _ -> } }
            assertFails(MynahException.Code.Damaged) { hub.load { _, file, _ -> file.writeText("nonsense") } }
            val late = ConcurrentLinkedQueue<(Long) -> Unit>()
            val options = LoadOptions {
                downloader = Downloader { request, file, progress ->
                    late += progress
                    for (bytes in listOf(-1, Long.MAX_VALUE, 0, 17, Long.MIN_VALUE)) {
                        progress(bytes)
                        delay(60)
                    }
                    folder.download(request, file) {}
                }
            }
            val seen = mutableListOf<DownloadProgress>()
            Model.load(hub.source, options) { if (it is LoadEvent.Downloading) seen += it.progress }.close()
            assertTrue(seen.isNotEmpty() && seen.all { it.completed in 0..it.total })
            assertEquals(seen.map { it.completed }.sorted(), seen.map { it.completed })
            late.forEach { it(1) }
        }
    }
}
