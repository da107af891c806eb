package dev.mynah

import kotlinx.coroutines.flow.toList
import kotlinx.serialization.Serializable
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.buildJsonObject
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.putJsonObject
import kotlinx.serialization.serializer
import org.junit.jupiter.api.Assertions.assertEquals
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
            val schema = jsonSchema(serializer<Answer>().descriptor)
            val parts = session.streamJson(Prompt.Text("?"), schema, random).toList()
            assertTrue(parts.size > 2)
            assertTrue(parts.last().jsonObject.keys.containsAll(setOf("colour", "count", "ready")))
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
    data class Place(val colour: Colour)

    @Test
    fun `tools are called and their results go back`() = test {
        val template = "{{ tools | tojson }}{% for m in messages %}{{ m.role }} {{ m.content }}{% endfor %}{# <tool_call> #}"
        val overrides = ModelOverrides { chatTemplate = template }
        Model.load(ModelSource.Demo, LoadOptions { this.overrides = overrides }).use { model ->
            ChatSession(model).use { session ->
                val called = mutableListOf<Place>()
                val tool = Tool.of<Place>("lookup") { place ->
                    called += place
                    error("no network")
                }
                val named = random.with { toolChoice = ToolChoice.Named("lookup"); maxTokens = 60 }
                session.respond(Prompt.Text("?"), listOf(tool), named, ToolOptions(maxRounds = 1))
                assertEquals(1, called.size)
                val result = session.transcript.value[2]
                assertEquals(Role.Tool, result.role)
                assertEquals(listOf(Content.Text("Error: no network")), result.content)
                assertEquals("lookup", session.transcript.value[1].toolCalls.single().name)
            }
        }
    }
}
