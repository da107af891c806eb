package dev.mynah

import dev.mynah.core.Tool as CoreTool
import dev.mynah.core.ToolCall as CoreToolCall
import kotlinx.serialization.Serializable
import kotlinx.serialization.json.JsonObject

/**
 * A function that a model may call.
 *
 * @property name letters, digits, `_`, `-` and `.`
 * @property description what the tool does and when to call it, for the model
 * @property parameters the JSON schema of the arguments, an object
 */
@Serializable
data class ToolDefinition(val name: String, val description: String, val parameters: JsonObject)

/**
 * A call of a tool, whose arguments fit the schema of the tool.
 *
 * @property id the id that the message with the result repeats
 * @property name the name of the tool
 * @property arguments the arguments by name
 */
@Serializable
data class ToolCall(val id: String, val name: String, val arguments: JsonObject)

/**
 * What a model wrote as a call, and what is not one.
 *
 * @property name the name of the tool, if the model wrote one
 * @property raw the text of the model
 * @property reason what is wrong with it
 */
data class RejectedToolCall(val name: String?, val raw: String, val reason: String)

internal fun ToolDefinition.toCore() = CoreTool(name, description, parameters.toString())

internal fun ToolCall.toCore() = CoreToolCall(id, name, arguments.toString())
