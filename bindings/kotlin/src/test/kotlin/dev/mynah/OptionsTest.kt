package dev.mynah

import kotlinx.serialization.json.JsonPrimitive
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertNotEquals
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test

class OptionsTest {
    @Test
    fun `a builder sets fields and the rest keep their defaults`() {
        val parameters = GenerationParameters { maxTokens = 64 }
        assertEquals(64, parameters.maxTokens)
        assertNull(parameters.temperature)
        val load = LoadOptions { prewarm = true }
        assertTrue(load.prewarm)
        assertEquals(KvCacheOptions.Automatic, load.kvCache)
        assertEquals(NetworkPolicy.AUTOMATIC, load.network)
        assertTrue(ChatTemplateOptions().addGenerationPrompt)
        assertFalse(ChatTemplateOptions { addGenerationPrompt = false }.addGenerationPrompt)
    }

    @Test
    fun `with edits a copy`() {
        val first = GenerationParameters {
            maxTokens = 64
            topK = 3
        }
        val second = first.with {
            assertEquals(3, topK)
            topK = null
            dry = Dry { base = 2f }
        }
        assertEquals(3, first.topK)
        assertNull(first.dry)
        assertEquals(64, second.maxTokens)
        assertNull(second.topK)
        assertEquals(2f, second.dry?.base)
        assertEquals(8, ChatOptions().with { cacheBits = 8 }.cacheBits)
        assertEquals("x", ChatTemplateOptions().with { template = "x" }.template)
        assertEquals(7, LoadOptions().with { maxContextLength = 7 }.maxContextLength)
    }

    @Test
    fun `a builder that escapes changes nothing`() {
        lateinit var escaped: GenerationParameters.Builder
        val parameters = GenerationParameters { escaped = this }
        escaped.maxTokens = 1
        assertEquals(GenerationParameters(), parameters)
        val copy = parameters.with { escaped = this }
        escaped.maxTokens = 1
        assertNull(copy.maxTokens)
    }

    @Test
    fun `options are equal if their fields are equal`() {
        fun parameters(tokens: Int) = GenerationParameters {
            maxTokens = tokens
            xtc = Xtc(0.5f, 0.1f)
            dry = Dry { breakers = listOf("\n") }
        }
        assertEquals(parameters(1), parameters(1))
        assertEquals(parameters(1).hashCode(), parameters(1).hashCode())
        assertNotEquals(parameters(1), parameters(2))
        // Setting the default is the same as not setting a field.
        assertEquals(GenerationParameters(), GenerationParameters { maxTokens = null })
        assertEquals(LoadOptions(), LoadOptions { overrides = ModelOverrides { extraEosTokens = emptySet() } })
        assertNotEquals(LoadOptions(), LoadOptions { overrides = ModelOverrides { chatTemplate = "" } })
        assertEquals(ChatOptions { cacheBits = 4 }, ChatOptions { cacheBits = 4 })
        assertNotEquals(ChatOptions { cacheBits = 4 }, ChatOptions { cacheBits = 8 })
        val variables = mapOf("x" to JsonPrimitive(1))
        assertEquals(ChatTemplateOptions { extraContext = variables }, ChatTemplateOptions { extraContext = variables })
        assertEquals(ModelSource.Hub("org/name", revision = "x"), ModelSource.Hub("org/name", revision = "x"))
        assertNotEquals(ModelSource.Hub("org/name", token = "x"), ModelSource.Hub("org/name"))
    }

    @Test
    fun `a description names the fields and hides the access token`() {
        assertEquals("GenerationParameters(maxTokens=64, topK=3)", "${greedy.with {
            temperature = null
            topK = 3
            maxTokens = 64
        }}")
        val options = LoadOptions { adapter = ModelSource.Hub("org/name", token = "secret") }
        assertTrue("org/name" in "$options" && "secret" !in "$options")
    }
}
