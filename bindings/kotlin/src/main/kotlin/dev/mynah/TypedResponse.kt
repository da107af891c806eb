package dev.mynah

import kotlinx.serialization.DeserializationStrategy
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonElement

/**
 * A value while the model writes it.
 *
 * @property json the JSON generated so far, with unfinished strings and lists closed
 * @property value the value, as soon as the JSON generated so far can be decoded to it
 */
@ConsistentCopyVisibility
data class Partial<out T> internal constructor(val json: JsonElement, val value: T?)

internal fun <T> partial(deserializer: DeserializationStrategy<T>, text: String): Partial<T> {
    val json = Json.parseToJsonElement(text)
    val value = try {
        Json.decodeFromJsonElement(deserializer, json)
    } catch (_: IllegalArgumentException) {
        null
    }
    return Partial(json, value)
}

/** The value of an answer. */
internal fun <T> value(deserializer: DeserializationStrategy<T>, result: GenerationResult): T = try {
    Json.decodeFromString(deserializer, result.text)
} catch (error: IllegalArgumentException) {
    throw MynahException(
        MynahException.Code.InvalidRequest,
        when (result.finishReason) {
            FinishReason.STOP -> "the answer is no ${deserializer.descriptor.serialName}: ${error.message}"
            else -> "the answer ended before the value did; `maxTokens` allows a longer one"
        },
    )
}
