package dev.mynah

import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.awaitCancellation
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.serialization.SerialName
import kotlinx.serialization.Serializable
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.buildJsonObject
import kotlinx.serialization.json.decodeFromJsonElement
import kotlinx.serialization.json.putJsonObject
import kotlinx.serialization.serializer
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test

class StructuredTest {
    @Serializable
    enum class Colour { RED, GREEN }

    @Serializable
    data class Answer(val colour: Colour, val count: Byte, val ready: Boolean?, val note: Colour = Colour.RED)

    private val random = GenerationParameters { temperature = 1f; seed = 3; maxTokens = 300 }

    @Test
    fun `a type has a schema`() {
        val expected = """
            {"type": "object", "properties": {"colour": {"enum": ["RED", "GREEN"]},
             "count": {"type": "integer", "minimum": -128, "maximum": 127},
             "ready": {"anyOf": [{"type": "boolean"}, {"type": "null"}]}, "note": {"enum": ["RED", "GREEN"]}},
             "required": ["colour", "count", "ready"], "additionalProperties": false}
        """
        assertEquals(Json.parseToJsonElement(expected), jsonSchema(serializer<Answer>().descriptor))
    }

    @Test
    fun `a typed answer is a value`() = test {
        ChatSession(demo).use { session ->
            val response = session.respond(Prompt.Text("?"), serializer<Answer>(), parameters = random)
            assertEquals(response.content, Json.decodeFromString<Answer>(response.result.text))
        }
    }

    @Test
    fun `an answer in parts grows to its value`() = test {
        ChatSession(demo).use { session ->
            val parts = session.streamResponse(Prompt.Text("?"), serializer<Answer>(), parameters = random).toList()
            assertTrue(parts.size > 2)
            assertNull(parts.first().value)
            assertEquals(parts.last().value, Json.decodeFromJsonElement<Answer>(parts.last().json))
        }
    }

    @Test
    fun `what cannot be enforced is an error`() = test {
        ChatSession(demo).use { session ->
            val schema = buildJsonObject { putJsonObject("not") {} }
            val impossible = GenerationParameters { output = OutputFormat.Schema(schema) }
            val error = assertFails(MynahException.Code.InvalidRequest) { session.respond("?", impossible) }
            assertTrue("`/not`" in error.message, error.message)
        }
    }

    @Serializable
    sealed interface Shape {
        @Serializable
        @SerialName("circle")
        data class Circle(val radius: UByte) : Shape

        @Serializable
        @SerialName("line")
        data class Line(val names: Map<String, JsonElement>) : Shape
    }

    @Test
    fun `a sealed type is one of its classes`() = test {
        val expected = """
            {"anyOf": [
              {"type": "object", "properties": {"type": {"const": "circle"}, "radius": {"type": "integer", "minimum": 0, "maximum": 255}},
               "required": ["type", "radius"], "additionalProperties": false},
              {"type": "object", "properties": {"type": {"const": "line"}, "names": {"type": "object", "additionalProperties": {}}},
               "required": ["type", "names"], "additionalProperties": false}]}
        """
        assertEquals(Json.parseToJsonElement(expected), jsonSchema(serializer<Shape>().descriptor))
        ChatSession(demo).use { session ->
            val short = random.with { maxTokens = 400; seed = 5 }
            val circle = serializer<Shape.Circle>()
            val schema = jsonSchema(circle.descriptor)
            assertTrue(session.respond(Prompt.Text("?"), circle, schema, short).content.radius <= 255u)
        }
    }

    @Serializable
    data class Place(val colour: Colour)

    /** A model whose template knows tools, with a tool, named so that the first answer has to call it. */
    private suspend fun withTool(
        options: ToolOptions,
        called: suspend (Place) -> JsonElement,
        body: suspend (ChatSession, GenerationParameters) -> Unit,
    ) {
        val template = "{{ tools | tojson }}{% for m in messages %}{{ m.role }} {{ m.content }}{% endfor %}{# <tool_call> #}"
        val overrides = ModelOverrides { chatTemplate = template }
        Model.load(ModelSource.Demo, LoadOptions { this.overrides = overrides }).use { model ->
            val tool = Tool.of("lookup", body = called)
            ChatSession(model, tools = listOf(tool), toolOptions = options).use { session ->
                body(session, random.with { toolChoice = ToolChoice.Named("lookup"); maxTokens = 60 })
            }
        }
    }

    @Test
    fun `tools are called and their results go back`() = test {
        val called = mutableListOf<Place>()
        val lookup: suspend (Place) -> JsonElement = { place ->
            called += place
            error("no network")
        }
        withTool(ToolOptions(maxRounds = 1), lookup) { session, named ->
            val events = session.streamResponse(Prompt.Text("?"), named).toList()
            assertEquals(1, called.size)
            val results = events.filterIsInstance<GenerationEvent.CallResult>().map { it.result }
            assertEquals(listOf("Error: no network"), results.map { it.text })
            assertTrue(results.single().isError)
            assertEquals(1, events.count { it is GenerationEvent.Finished })
            assertTrue(events.last() is GenerationEvent.Finished)
            val transcript = session.transcript.value
            assertEquals(listOf(Role.User, Role.Assistant, Role.Tool, Role.Assistant), transcript.map { it.role })
            assertEquals("Error: no network", transcript[2].text)
            assertEquals("lookup", transcript[1].toolCalls.single().name)
            assertFalse(session.isResponding.value)
        }
    }

    @Test
    fun `a refused call does not run`() = test {
        val asked = mutableListOf<String>()
        val options = ToolOptions(maxRounds = 1) { call -> asked += call.name; false }
        withTool(options, { error("it runs") }) { session, named ->
            session.respond(Prompt.Text("?"), named)
            assertEquals(listOf("lookup"), asked)
            assertEquals("Error: the user did not allow this call.", session.transcript.value[2].text)
        }
    }

    @Test
    fun `a collector that stops while tools run leaves no open call`() = test {
        val running = CompletableDeferred<Unit>()
        val lookup: suspend (Place) -> JsonElement = {
            running.complete(Unit)
            awaitCancellation()
        }
        withTool(ToolOptions(), lookup) { session, named ->
            val job = launch { session.respond(Prompt.Text("?"), named) }
            running.await()
            job.cancelAndJoin()
            // The text around the call stays.
            val transcript = session.transcript.value
            assertTrue(transcript.none { it.role == Role.Tool || it.toolCalls.isNotEmpty() }, "$transcript")
            assertFalse(session.isResponding.value)
        }
    }
}
