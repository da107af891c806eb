package dev.mynah

import dev.mynah.core.OutputFormat as CoreFormat
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.jsonObject

/**
 * What the text of an answer consists of. What cannot be enforced while a model writes is an error that
 * names the keyword and its place.
 */
sealed interface OutputFormat {
    /** Any text. */
    data object Text : OutputFormat

    /**
     * JSON that is valid under a JSON schema.
     *
     * @property schema the schema
     */
    data class Schema(val schema: JsonObject) : OutputFormat

    /**
     * Text that as a whole matches a regular expression.
     *
     * @property regex the regular expression
     */
    data class Regex(val regex: String) : OutputFormat

    /**
     * Text of a grammar in llguidance's variant of Lark.
     *
     * @property grammar the grammar
     */
    data class Lark(val grammar: String) : OutputFormat
}

internal fun OutputFormat.toCore(): CoreFormat = when (this) {
    OutputFormat.Text -> CoreFormat.Text
    is OutputFormat.Schema -> CoreFormat.Schema(schema.toString())
    is OutputFormat.Regex -> CoreFormat.Regex(regex)
    is OutputFormat.Lark -> CoreFormat.Lark(grammar)
}

internal fun CoreFormat.toMynah(): OutputFormat = when (this) {
    CoreFormat.Text -> OutputFormat.Text
    is CoreFormat.Schema -> OutputFormat.Schema(Json.parseToJsonElement(schema).jsonObject)
    is CoreFormat.Regex -> OutputFormat.Regex(regex)
    is CoreFormat.Lark -> OutputFormat.Lark(grammar)
}
