package mynah

import java.nio.file.Path
import kotlin.io.path.createDirectories
import kotlin.io.path.writeText
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.async
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.channels.Channel
import kotlinx.coroutines.currentCoroutineContext
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.job
import kotlinx.coroutines.launch
import kotlinx.serialization.json.JsonPrimitive
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

class ModelTest {
    @Test
    fun `a model loads and answers`() = test {
        val shares = mutableListOf<Double>()
        Model.load(ModelSource.Demo) { if (it is LoadEvent.Loading) shares += it.share }.use { model ->
            assertEquals(shares.sorted(), shares)
            assertTrue(shares.all { it in 0.0..1.0 })
            assertEquals("llama", model.info.modelType)
            assertEquals(512, model.info.context)

            val prompt = ask("What is 3 + 4?")
            val result = model.generate(prompt, greedy).result()
            assertTrue("7" in result.text)
            assertEquals(FinishReason.STOP, result.summary.finishReason)
            assertEquals(model.countTokens(prompt), result.summary.promptTokens)
            assertEquals(result.text, model.decode(result.tokens))
            val rendered = model.render(prompt.messages)
            assertTrue("What is 3 + 4?" in rendered && rendered.endsWith("assistant\n"))
            assertEquals(result.summary.promptTokens, model.encode(rendered, specialTokens = false).size)
            val again = model.generate(Prompt.Tokens(model.encode(rendered, specialTokens = false)), greedy)
            assertEquals(result.text, again.result().text)
        }
    }

    @Test
    fun `loading is a flow that exists before the model`() = test {
        val events = Model.loading(ModelSource.Demo).toList()
        val model = (events.last() as LoadEvent.Ready).model
        assertTrue(events.size > 1 && events.dropLast(1).all { it is LoadEvent.Loading })
        model.use { assertTrue(it.generateText("Hi", greedy).tokens.isNotEmpty()) }
    }

    @Test
    fun `a listener that throws ends the loading`() = test {
        val enough = IllegalArgumentException("enough")
        val error = assertFails<IllegalArgumentException> { Model.load(ModelSource.Demo) { throw enough } }
        assertEquals("enough", error.message)
    }

    @Test
    fun `a cancelled coroutine loads nothing and leaves nothing`() = test {
        demo
        Device.shrinkCaches()
        val before = Device.memory().active
        Device.pause()
        val loading = launch(start = CoroutineStart.UNDISPATCHED) { Model.load(ModelSource.Demo) }
        loading.cancelAndJoin()
        Device.resume()
        // What is asked for later is done later.
        Model.load(ModelSource.Demo).unload()
        becomes(before) { Device.memory().active }
    }

    @Test
    fun `what was opened for a coroutine that is gone is closed`() = test {
        var isClosed = false
        val job = launch(start = CoroutineStart.LAZY) {
            open {
                currentCoroutineContext().job.cancel()
                AutoCloseable { isClosed = true }
            }
        }
        job.join()
        assertTrue(job.isCancelled && isClosed)
    }

    @Test
    fun `parameters go over those of the model`() = test {
        assertEquals(512, demo.defaultGenerationParameters.maxTokens)
        val two = demo.defaultGenerationParameters.copy(maxTokens = 2, temperature = 0f)
        val short = demo.generate(ask("Who are you?"), two).result()
        assertEquals(2, short.tokens.size)
        assertEquals(FinishReason.LENGTH, short.summary.finishReason)
        val banned = short.tokens.associateWith { Float.NEGATIVE_INFINITY }
        val other = demo.generate(ask("Who are you?"), two.copy(logitBias = banned)).result()
        assertTrue(other.tokens.none { it in short.tokens })
        val seeded = GenerationParameters(temperature = 2f, seed = -1, maxTokens = 20)
        val draws = List(2) { demo.generate(ask("Who are you?"), seeded).result().tokens }
        assertEquals(draws[0], draws[1])
    }

    @Test
    fun `likely tokens come when asked for`() = test {
        val events = demo.generate(ask("Who are you?"), greedy.copy(topLogprobs = 3)).toList()
        val tokens = events.filterIsInstance<GenerationEvent.Token>()
        assertTrue(tokens.isNotEmpty())
        for (token in tokens) {
            assertEquals(3, token.top.size)
            assertEquals(TokenProbability(token.id, token.logprob), token.top.first())
        }
    }

    @Test
    fun `variables reach the template`() = test {
        val options = TemplateOptions(addGenerationPrompt = false, variables = mapOf("x" to JsonPrimitive("y")))
        val bare = demo.render(listOf(Message.user("Hi")), options)
        assertTrue("Hi" in bare && !bare.endsWith("assistant\n"))
        val infinite = TemplateOptions(variables = mapOf("x" to JsonPrimitive(Double.POSITIVE_INFINITY)))
        assertFails<MynahException.InvalidRequest> { demo.render(listOf(Message.user("Hi")), infinite) }
    }

    @Test
    fun `errors can be told apart and read`(@TempDir folder: Path) = test {
        val missing = assertFails<MynahException> { Model.load("/no/such/model") }
        assertTrue("/no/such/model" in missing.message!!)

        val long = ask("one two ".repeat(600))
        val tokens = demo.encode(demo.render(long.messages), specialTokens = false).size
        val overflow = assertFails<MynahException.ContextOverflow> { demo.generate(long).result() }
        assertEquals(tokens.toLong(), overflow.tokens)
        assertEquals(512, overflow.limit)

        val wrong = mapOf(
            "top_p" to greedy.copy(topP = 7f),
            "maxTokens" to greedy.copy(maxTokens = -1),
            "stop" to greedy.copy(stop = listOf("")),
        )
        for ((name, parameters) in wrong) {
            val error = assertFails<MynahException.InvalidRequest> { demo.generateText("Hi", parameters) }
            assertTrue(name in error.message!!, error.message)
        }
        assertFails<MynahException.InvalidRequest> { demo.decode(listOf(-1)) }
        assertFails<MynahException.InvalidRequest> { demo.generateText("") }
        assertFails<MynahException.NotFound> { Model.load("no//such name") }
        assertFails<MynahException> {
            Model.load(ModelSource.Hub("org/name", cache = folder, offline = true))
        }
        folder.resolve("config.json").writeText("""{"model_type": "nonsense"}""")
        val unknown = assertFails<MynahException.Unsupported> { Model.load(ModelSource.Directory(folder)) }
        assertTrue("nonsense" in unknown.message!!)
        folder.resolve("config.json").writeText("{")
        assertFails<MynahException.Damaged> { Model.load(ModelSource.Directory(folder)) }
    }

    @Test
    fun `a model is loaded as the options say`() = test {
        val question = ask("What is 3 + 4?")
        val whole = demo.generate(question, greedy).result()
        Model.load(ModelSource.Demo, LoadOptions(maxContextLength = 32, prewarm = true)).use { model ->
            assertEquals(32, model.info.context)
            assertFails<MynahException.ContextOverflow> { model.generateText("one two ".repeat(40)) }
        }
        val ring = LoadOptions(maxContextLength = 128, session = SessionOptions(Overflow.Ring(96, keep = 4)))
        Model.load(ModelSource.Demo, ring).use { model ->
            val endless = greedy.copy(ignoreEnd = true, maxTokens = 200)
            assertEquals(200, model.generate(question, endless).result().tokens.size)
            assertEquals(200, ChatSession(model).respond("Who are you?", endless).tokens.size)
        }
        val packed = LoadOptions(session = SessionOptions(quantization = CacheBits(8, groupSize = 32)))
        Model.load(ModelSource.Demo, packed).use { model ->
            assertEquals(whole.text, model.generate(question, greedy).result().text)
        }

        val overrides = ModelOverrides(
            extraEndTokens = setOf("<|im_end|>"),
            tokenizer = ModelSource.Demo,
            chatTemplate = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}",
        )
        Model.load(ModelSource.Demo, LoadOptions(overrides = overrides)).use { model ->
            assertEquals("<user>Hi", model.render(listOf(Message.user("Hi"))))
        }
        val budget = LoadOptions(memory = MemoryPolicy.Budget(1))
        assertFails<MynahException.OutOfMemory> { Model.load(ModelSource.Demo, budget) }
        assertEquals(1, Device.memory().limit)
        Model.load(ModelSource.Demo, LoadOptions(memory = MemoryPolicy.Unlimited)).close()
        assertNull(Device.memory().limit)
        assertTrue(Device.memory().peak > 0)

        val none = LoadOptions(adapter = ModelSource.Demo)
        val error = assertFails<MynahException.Damaged> { Model.load(ModelSource.Demo, none) }
        assertTrue("adapter_config.json" in error.message!!, error.message)

        for ((name, options) in mapOf(
            "maxContextLength" to LoadOptions(maxContextLength = -1),
            "context" to LoadOptions(maxContextLength = 0),
            "no such token" to LoadOptions(overrides = ModelOverrides(setOf("no such token"))),
            "chat template" to LoadOptions(overrides = ModelOverrides(chatTemplate = "{% if %}")),
            "bits" to LoadOptions(session = SessionOptions(quantization = CacheBits(5))),
        )) {
            val refused = assertFails<MynahException.InvalidRequest> { Model.load(ModelSource.Demo, options) }
            assertTrue(name in refused.message!!, refused.message)
        }
    }

    @Test
    fun `events tell what a model is, and what it becomes`() = test {
        val model = Model.load(ModelSource.Demo)
        val seen = Channel<LifecycleEvent>(Channel.UNLIMITED)
        val job = launch(Dispatchers.Default) { model.events.collect { seen.send(it) } }
        assertEquals(LifecycleEvent.READY, seen.receive())
        Device.pause()
        assertEquals(LifecycleEvent.PAUSED, seen.receive())
        assertEquals(LifecycleEvent.PAUSED, model.events.first())
        Device.resume()
        assertEquals(LifecycleEvent.READY, seen.receive())
        model.unload()
        assertEquals(LifecycleEvent.UNLOADED, seen.receive())
        job.join()
        assertEquals(listOf(LifecycleEvent.UNLOADED), model.events.toList())
        assertTrue("llama" in Model.supportedArchitectures)
    }

    @Test
    fun `inspection reads no weights`() = test {
        val report = Model.inspect(ModelSource.Demo)
        assertEquals("llama", report.modelType)
        assertNull(report.problem)
        assertTrue(report.hasChatTemplate && report.hasTokenizer)
        assertEquals("affine", report.quantization.first().mode)
        assertEquals(8, report.quantization.first().bits)
        assertTrue(report.memory!!.needed > report.bytes)
    }

    @Test
    fun `what is closed says so, whoever uses it`() = test {
        for (end in listOf<suspend (Model) -> Unit>({ it.unload() }, { it.close() })) {
            val model = Model.load(ModelSource.Demo)
            val session = ChatSession(model)
            assertFails<MynahException.Unloaded> {
                model.generate(ask("Hi"), endless).collect { if (it is GenerationEvent.Token) end(model) }
            }
            assertFails<MynahException.Unloaded> { model.generateText("Hi") }
            assertFails<MynahException.Unloaded> { model.encode("Hi") }
            assertFails<MynahException.Unloaded> { model.memory() }
            assertFails<MynahException.Unloaded> { session.respond("Hi") }
            assertFails<MynahException.Unloaded> { ChatSession(model) }
            assertEquals("llama", model.info.modelType)
            model.unload()
            model.close()
            session.close()
            assertFails<MynahException.Unloaded> { session.tokensUsed }
        }
    }

    @Test
    fun `closing frees the weights, though a session lives`() = test {
        demo
        Device.shrinkCaches()
        val before = Device.memory().active
        val model = Model.load(ModelSource.Demo)
        val session = ChatSession(model)
        session.respond("Hi", greedy)
        val memory = model.memory()
        assertTrue(memory.weights > 1_000_000 && memory.caches > 0)
        assertTrue(Device.memory().active >= before + memory.weights + memory.caches)
        model.close()
        becomes(before) { Device.memory().active }
        session.close()
    }

    @Test
    fun `the store lists what is there`(@TempDir folder: Path) = test {
        val store = ModelStore(folder)
        assertTrue(store.list().isEmpty())
        val snapshot = folder.resolve("models--org--name/snapshots/${"a".repeat(40)}").createDirectories()
        snapshot.resolve("config.json").writeText("{}")
        val model = store.list().single()
        assertEquals("org/name", model.repository)
        assertEquals(2, model.bytes)
        assertFalse(model.revisions.single().isComplete)
        assertEquals(2, store.delete("org/name"))
        assertFails<MynahException.NotFound> { store.delete("org/name") }
        assertTrue(ModelStore().directory.isAbsolute)
    }

    @Test
    fun `a device that pauses loses nothing`() = test {
        val expected = demo.generate(ask("Who are you?"), greedy).result().text
        Device.check()
        Device.pause()
        val answer = async { demo.generate(ask("Who are you?"), greedy).result().text }
        Device.resume()
        assertEquals(expected, answer.await())
        assertFails<MynahException.InvalidRequest> { Device.setMemoryLimit(-1) }
        Device.setMemoryLimit(1)
        try {
            val error = assertFails<MynahException.OutOfMemory> { Model.load(ModelSource.Demo) }
            assertTrue(error.needed > error.available)
        } finally {
            Device.setMemoryLimit(null)
        }
    }

    @Test
    fun `loading and closing in a loop leaves nothing behind`() = test {
        suspend fun once() = Model.load(ModelSource.Demo).use { model ->
            model.generate(ask("Hi"), greedy).first { it is GenerationEvent.Token }
        }
        repeat(40) { once() }
        Device.shrinkCaches()
        val active = Device.memory().active
        val resident = residentBytes()
        val threads = Thread.activeCount()
        val rounds = 200
        repeat(rounds) { once() }
        Device.shrinkCaches()
        becomes(active) { Device.memory().active }
        // A model is a megabyte.
        val growth = (residentBytes() - resident) / rounds
        assertTrue(growth < 100_000, "$growth bytes a round")
        assertTrue(Thread.activeCount() <= threads + 4)
    }
}

/** What the process takes; where that cannot be known, always the same. */
private fun residentBytes(): Long {
    val status = Path.of("/proc/self/status").toFile()
    val line = if (status.exists()) status.readLines().first { it.startsWith("VmRSS") } else "0"
    return line.filter(Char::isDigit).toLong() * 1024
}
