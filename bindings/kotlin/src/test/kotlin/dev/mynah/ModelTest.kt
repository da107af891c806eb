package dev.mynah

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
import kotlinx.coroutines.joinAll
import kotlinx.coroutines.launch
import kotlinx.coroutines.withTimeout
import kotlinx.serialization.json.Json
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
        val fractions = mutableListOf<Double>()
        Model.load(ModelSource.Demo) { if (it is LoadEvent.Loading) fractions += it.fraction }.use { model ->
            assertEquals(fractions.sorted(), fractions)
            assertTrue(fractions.all { it in 0.0..1.0 })
            assertEquals("llama", model.info.modelType)
            assertEquals(512, model.info.contextLength)

            val prompt = Prompt.Text("What is 3 + 4?")
            val result = model.generate(prompt, greedy).result()
            assertTrue("7" in result.text)
            assertEquals(FinishReason.STOP, result.finishReason)
            assertEquals(model.countTokens(prompt), result.promptTokens.size)
            assertEquals(result.text, model.decode(result.generatedTokens))
            assertTrue(result.stats.timeToFirstToken.isPositive() && result.stats.peakMemory > 0)
        }
    }

    @Test
    fun `a string is a message of the user, and raw text is continued`() = test {
        val question = "What is 3 + 4?"
        val answer = demo.generateText(question, greedy)
        val message = ChatMessage.user(question)
        val rendered = demo.renderChatTemplate(listOf(message))
        assertTrue(question in rendered && rendered.endsWith("assistant\n"))
        val tokens = demo.encode(rendered, addSpecialTokens = false)
        assertEquals(tokens, answer.promptTokens)
        for (same in listOf(Prompt.Text(question), Prompt.Chat(message), Prompt.Tokens(tokens))) {
            val result = demo.generate(same, greedy).result()
            assertEquals(answer.text to tokens, result.text to result.promptTokens)
        }
        assertEquals(answer.text, demo.generate(question, greedy).result().text)
        assertEquals(answer.text, demo.generateText(listOf(message), greedy).text)
        val raw = demo.generate(Prompt.Raw(question), greedy).result()
        assertEquals(demo.encode(question), raw.promptTokens)
        assertTrue(raw.text != answer.text)
    }

    @Test
    fun `the content of a message is a list of parts, a role is any word, and JSON is that of templates`() = test {
        val parts = ChatMessage(Role.User, listOf(Content.Text("What is "), Content.Text("3 + 4?")))
        assertEquals("What is 3 + 4?", parts.text)
        val template =
            "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ m.reasoning_content }}{{ m.name }}{% endfor %}"
        val options = LoadOptions { overrides = ModelOverrides { chatTemplate = template } }
        Model.load(ModelSource.Demo, options).use { model ->
            val other = ChatMessage(Role("developer"), "Hi", reasoning = " because", name = " Ada")
            val text = model.renderChatTemplate(listOf(parts, other))
            assertEquals("<user>What is 3 + 4?<developer>Hi because Ada", text)
        }
        val json = """{"role":"user","content":[{"type":"text","text":"What is "},{"type":"text","text":"3 + 4?"}]}"""
        assertEquals(json, Json.encodeToString(parts))
        assertEquals(parts, Json.decodeFromString<ChatMessage>(json))
        val string = Json.decodeFromString<ChatMessage>("""{"role": "tool", "content": "7"}""")
        assertEquals(ChatMessage(Role.Tool, "7"), string)
    }

    @Test
    fun `a model answers after its collector has stopped early`() = test {
        val first = demo.generate("Who are you?", endless).first { it is GenerationEvent.Text }
        assertTrue(first is GenerationEvent.Text)
        assertTrue("7" in demo.generateText("What is 3 + 4?", greedy).text)
    }

    @Test
    fun `loading is a flow that exists before the model`() = test {
        val events = Model.loading(ModelSource.Demo).toList()
        val model = (events.last() as LoadEvent.Ready).model
        assertTrue(events.size > 1 && events.dropLast(1).all { it is LoadEvent.Loading })
        model.use { assertTrue(it.generateText("Hi", greedy).generatedTokens.isNotEmpty()) }
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
        Device.suspend()
        val loading = launch(start = CoroutineStart.UNDISPATCHED) { Model.load(ModelSource.Demo) }
        loading.cancelAndJoin()
        Device.resume()
        // The engine thread takes its tasks in order.
        Model.load(ModelSource.Demo).unload()
        becomes(before) { Device.memory().active }
    }

    @Test
    fun `an object that opens after its coroutine was cancelled is closed`() = test {
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
    fun `parameters override those of the model`() = test {
        assertEquals(4096, demo.defaultGenerationParameters.maxTokens)
        val two = demo.defaultGenerationParameters.with {
            maxTokens = 2
            temperature = 0f
        }
        val short = demo.generateText("Who are you?", two)
        assertEquals(2, short.generatedTokens.size)
        assertEquals(FinishReason.LENGTH, short.finishReason)
        val banned = short.generatedTokens.associateWith { Float.NEGATIVE_INFINITY }
        val other = demo.generateText("Who are you?", two.with { logitBias = banned })
        assertTrue(other.generatedTokens.none { it in short.generatedTokens })
        val first = short.generatedTokens.first()
        val stopped = demo.generateText("Who are you?", two.with { extraStopTokens = setOf(first) })
        assertEquals(FinishReason.STOP to emptyList<Int>(), stopped.finishReason to stopped.generatedTokens)
        val seeded = GenerationParameters {
            temperature = 2f
            seed = -1
            maxTokens = 20
        }
        val samples = List(2) { demo.generateText("Who are you?", seeded).generatedTokens }
        assertEquals(samples[0], samples[1])
        // Every parameter crosses the boundary in both directions.
        assertEquals(demo.defaultGenerationParameters, demo.defaultGenerationParameters.toCore().toMynah())
        val all = GenerationParameters {
            maxTokens = 1
            minTokens = 2
            temperature = 3f
            topK = 4
            topP = 5f
            minP = 6f
            typicalP = 7f
            topNSigma = 8f
            xtc = Xtc(9f, 10f)
            dry = Dry {
                multiplier = 11f
                base = 12f
                allowedLength = 13
                context = 14
                breakers = listOf("15")
            }
            repetitionPenalty = 16f
            presencePenalty = 17f
            frequencyPenalty = 18f
            penaltyContext = 19
            logitBias = mapOf(20 to 21f)
            seed = -22
            topLogprobs = 23
            stop = listOf("24")
            extraStopTokens = setOf(25)
            stopOnEos = true
            specialTokens = true
            prefillStepSize = 26
        }
        assertEquals(all, all.toCore().toMynah())
    }

    @Test
    fun `tokens are reported with the candidates that topLogprobs asks for`() = test {
        val events = demo.generate("Who are you?", greedy.with { topLogprobs = 3 }).toList()
        val tokens = events.filterIsInstance<GenerationEvent.Token>()
        val result = (events.last() as GenerationEvent.Finished).result
        assertEquals(result.generatedTokens, tokens.map { it.id })
        assertTrue(tokens.isNotEmpty())
        assertTrue(demo.generate("Who are you?", greedy).toList().none { it is GenerationEvent.Token })
        for (token in tokens) {
            assertEquals(3, token.top.size)
            assertEquals(GenerationEvent.Candidate(token.id, token.logprob), token.top.first())
        }
    }

    @Test
    fun `variables reach the template`() = test {
        val messages = listOf(ChatMessage.user("Hi"))
        val bare = demo.renderChatTemplate(messages, ChatTemplateOptions { addGenerationPrompt = false })
        assertTrue("Hi" in bare && !bare.endsWith("assistant\n"))
        val infinite = ChatTemplateOptions { extraContext = mapOf("x" to JsonPrimitive(Double.POSITIVE_INFINITY)) }
        assertFails(MynahException.Code.InvalidRequest) { demo.renderChatTemplate(messages, infinite) }
        val echo = LoadOptions {
            overrides = ModelOverrides { chatTemplate = "{{ enable_thinking }} {{ reasoning_effort }} {{ x.y }}" }
        }
        Model.load(ModelSource.Demo, echo).use { model ->
            val options = ChatTemplateOptions {
                enableThinking = false
                reasoningEffort = "low"
                extraContext = mapOf("x" to Json.parseToJsonElement("""{"y": [1]}"""))
            }
            val text = model.renderChatTemplate(messages, options)
            assertTrue(text.equals("false low [1]", ignoreCase = true), text)
        }
    }

    @Test
    fun `errors can be told apart and read`(@TempDir folder: Path) = test {
        val missing = assertFails(MynahException.Code.NotFound) { Model.load("/no/such/model") }
        assertTrue("/no/such/model" in missing.message)

        val long = Prompt.Chat(ChatMessage.user("one two ".repeat(600)))
        val tokens = demo.encode(demo.renderChatTemplate(long.messages), addSpecialTokens = false).size
        val overflow = assertFails(MynahException.Code.ContextOverflow) { demo.generate(long).result() }
        assertEquals(tokens to 512, overflow.tokens to overflow.limit)

        val wrong = mapOf(
            "top_p" to greedy.with { topP = 7f },
            "maxTokens" to greedy.with { maxTokens = -1 },
            "extraStopTokens" to greedy.with { extraStopTokens = setOf(-1) },
            "stop" to greedy.with { stop = listOf("") },
        )
        for ((name, parameters) in wrong) {
            val error = assertFails(MynahException.Code.InvalidRequest) { demo.generateText("Hi", parameters) }
            assertTrue(name in error.message, error.message)
        }
        assertFails(MynahException.Code.InvalidRequest) { demo.decode(listOf(-1)) }
        assertFails(MynahException.Code.InvalidRequest) { demo.generate(Prompt.Raw("")).result() }
        assertFails(MynahException.Code.NotFound) { Model.load("no//such name") }
        val offline = ModelSource.Hub("org/name", cache = folder, offline = true)
        assertFails(MynahException.Code.Offline) { Model.load(offline) }
        folder.resolve("config.json").writeText("""{"model_type": "nonsense"}""")
        val unknown = assertFails(MynahException.Code.Unsupported) { Model.load(ModelSource.Directory(folder)) }
        assertTrue("nonsense" in unknown.message)
        folder.resolve("config.json").writeText("{")
        assertFails(MynahException.Code.Damaged) { Model.load(ModelSource.Directory(folder)) }
    }

    @Test
    fun `a model is loaded as the options say`() = test {
        val question = "What is 3 + 4?"
        val full = demo.generateText(question, greedy)
        val short = LoadOptions {
            maxContextLength = 32
            prewarm = true
        }
        Model.load(ModelSource.Demo, short).use { model ->
            assertEquals(32, model.info.contextLength)
            assertFails(MynahException.Code.ContextOverflow) { model.generateText("one two ".repeat(40)) }
        }
        val window = LoadOptions {
            maxContextLength = 128
            kvCache = KvCacheOptions.Window(96, keep = 4)
        }
        Model.load(ModelSource.Demo, window).use { model ->
            val long = endless.with { maxTokens = 200 }
            assertEquals(200, model.generateText(question, long).generatedTokens.size)
            assertEquals(200, ChatSession(model).respond("Who are you?", long).result.generatedTokens.size)
        }
        for (cache in listOf(KvCacheOptions.Full, KvCacheOptions.Quantized(8, groupSize = 32))) {
            Model.load(ModelSource.Demo, LoadOptions { kvCache = cache }).use { model ->
                assertEquals(full.text, model.generateText(question, greedy).text)
            }
        }

        val overrides = LoadOptions {
            this.overrides = ModelOverrides {
                extraEosTokens = setOf("<|im_end|>")
                tokenizer = ModelSource.Demo
                chatTemplate = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
            }
        }
        Model.load(ModelSource.Demo, overrides).use { model ->
            assertEquals("<user>Hi", model.renderChatTemplate(listOf(ChatMessage.user("Hi"))))
        }
        val budget = LoadOptions { memory = MemoryPolicy.Budget(1) }
        assertFails(MynahException.Code.OutOfMemory) { Model.load(ModelSource.Demo, budget) }
        assertNull(Device.memory().limit)
        Model.load(ModelSource.Demo, LoadOptions { memory = MemoryPolicy.Unlimited }).close()
        assertNull(Device.memory().limit)
        assertTrue(Device.memory().peak > 0)
    }

    @Test
    fun `wrong load options are named`() = test {
        // The demo model has no adapter.
        val none = LoadOptions { adapter = ModelSource.Demo }
        val error = assertFails<MynahException> { Model.load(ModelSource.Demo, none) }
        assertTrue("adapter_config.json" in error.message, error.message)
        for ((name, options) in mapOf(
            "maxContextLength" to LoadOptions { maxContextLength = -1 },
            "context" to LoadOptions { maxContextLength = 0 },
            "memory budget" to LoadOptions { memory = MemoryPolicy.Budget(-1) },
            "no such token" to LoadOptions { overrides = ModelOverrides { extraEosTokens = setOf("no such token") } },
            "chat template" to LoadOptions { overrides = ModelOverrides { chatTemplate = "{% if %}" } },
            "bits" to LoadOptions { kvCache = KvCacheOptions.Quantized(5) },
            "keep" to LoadOptions { kvCache = KvCacheOptions.Window(96, keep = -1) },
        )) {
            val refused = assertFails(MynahException.Code.InvalidRequest) { Model.load(ModelSource.Demo, options) }
            assertTrue(name in refused.message, refused.message)
        }
    }

    @Test
    fun `events tell the state of a model and its changes`() = test {
        val model = Model.load(ModelSource.Demo)
        val seen = Channel<LifecycleState>(Channel.UNLIMITED)
        val job = launch(Dispatchers.Default) { model.events.collect { seen.send(it) } }
        assertEquals(LifecycleState.READY, seen.receive())
        model.suspend()
        assertEquals(LifecycleState.SUSPENDED, seen.receive())
        assertEquals(LifecycleState.SUSPENDED, model.events.value)
        assertTrue(Device.isSuspended.value)
        model.resume()
        assertEquals(LifecycleState.READY, seen.receive())
        model.unload()
        assertEquals(LifecycleState.UNLOADED, seen.receive())
        assertEquals(LifecycleState.UNLOADED, model.events.value)
        job.cancelAndJoin()
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
    fun `an unloaded model refuses all calls`() = test {
        for (end in listOf<suspend (Model) -> Unit>({ it.unload() }, { it.close() })) {
            val model = Model.load(ModelSource.Demo)
            val session = ChatSession(model)
            assertFails(MynahException.Code.Unloaded) {
                model.generate("Hi", endless).collect { if (it is GenerationEvent.Text) end(model) }
            }
            assertFails(MynahException.Code.Unloaded) { model.generateText("Hi") }
            assertFails(MynahException.Code.Unloaded) { model.encode("Hi") }
            assertFails(MynahException.Code.Unloaded) { model.memory() }
            assertFails(MynahException.Code.Unloaded) { session.respond("Hi") }
            assertFails(MynahException.Code.Unloaded) { ChatSession(model) }
            assertEquals("llama", model.info.modelType)
            model.unload()
            model.close()
            session.close()
            assertFails(MynahException.Code.Unloaded) { session.context }
        }
    }

    @Test
    fun `closing frees the weights at once, even if a session exists`() = test {
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
        assertEquals(before, Device.memory().active)
        session.close()
    }

    @Test
    fun `models close on all threads at once, on interrupted threads, and while the device is suspended`() = test {
        val models = List(2 * Runtime.getRuntime().availableProcessors() + 2) { Model.load(ModelSource.Demo) }
        Device.suspend()
        try {
            withTimeout(60_000) {
                models.drop(1).map { launch(Dispatchers.Default) { it.close() } }.joinAll()
            }
            assertTrue(models.drop(1).all { it.events.value == LifecycleState.UNLOADED })
            Thread.currentThread().interrupt()
            models.first().close()
            assertTrue(Thread.interrupted())
            assertEquals(LifecycleState.UNLOADED, models.first().events.value)
        } finally {
            Device.resume()
        }
        assertFails(MynahException.Code.Unloaded) { models.first().memory() }
    }

    @Test
    fun `the store lists and deletes models`(@TempDir folder: Path) = test {
        val store = ModelStore(folder)
        assertTrue(store.list().isEmpty())
        val snapshot = folder.resolve("models--org--name/snapshots/${"a".repeat(40)}").createDirectories()
        snapshot.resolve("config.json").writeText("{}")
        val model = store.list().single()
        assertEquals("org/name", model.id)
        assertEquals(2, model.bytes)
        assertFalse(model.revisions.single().isComplete)
        assertEquals(2, store.delete("org/name"))
        assertFails(MynahException.Code.NotFound) { store.delete("org/name") }
        assertTrue(ModelStore().directory.isAbsolute)
    }

    @Test
    fun `a generation waits while the device is suspended, and loses nothing`() = test {
        val expected = demo.generateText("Who are you?", greedy).text
        assertEquals(Device.Availability.Available, Device.availability)
        Device.suspend()
        val answer = async { demo.generateText("Who are you?", greedy).text }
        Device.resume()
        assertEquals(expected, answer.await())
    }

    @Test
    fun `a memory limit refuses a model with the numbers`() = test {
        assertFails(MynahException.Code.InvalidRequest) { Device.setMemoryLimit(-1) }
        Device.setMemoryLimit(1)
        try {
            val error = assertFails(MynahException.Code.OutOfMemory) { Model.load(ModelSource.Demo) }
            assertTrue(error.needed!! > error.available!!)
        } finally {
            Device.setMemoryLimit(null)
        }
    }

    @Test
    fun `loading and closing in a loop leaves nothing behind`() = test {
        suspend fun once() = Model.load(ModelSource.Demo).use { model ->
            model.generate("Hi", greedy).first { it is GenerationEvent.Text }
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

/** The resident memory of the process; 0 on systems without `/proc`. */
private fun residentBytes(): Long {
    val status = Path.of("/proc/self/status").toFile()
    val line = if (status.exists()) status.readLines().first { it.startsWith("VmRSS") } else "0"
    return line.filter(Char::isDigit).toLong() * 1024
}
