package dev.mynah

import dev.mynah.core.Effort as CoreEffort
import dev.mynah.core.Reasoning as CoreReasoning
import dev.mynah.core.ToolChoice as CoreToolChoice

/**
 * How much a model thinks before it answers. Without values its chat template decides.
 *
 * @property effort the effort, or the nearest that the chat template knows
 * @property budget the most tokens of thoughts; after them, the model goes on with its answer
 */
data class Reasoning(val effort: Effort? = null, val budget: Int? = null)

/** How hard a model thinks. */
enum class Effort { OFF, MINIMAL, LOW, MEDIUM, HIGH, EXTRA_HIGH, MAX }

/** Whether a model calls tools. */
sealed interface ToolChoice {
    /** The model decides. */
    data object Auto : ToolChoice

    /** The model learns of no tool and calls none. */
    data object None : ToolChoice

    /** The model calls one tool or more. */
    data object Required : ToolChoice

    /**
     * The model calls this tool.
     *
     * @property name the name of the tool
     */
    data class Named(val name: String) : ToolChoice
}

internal fun Reasoning.toCore() = CoreReasoning(effort?.let { CoreEffort.valueOf(it.name) }, budget?.toCore("budget"))

internal fun CoreReasoning.toMynah() = Reasoning(effort?.let { Effort.valueOf(it.name) }, budget?.toMynah())

internal fun ToolChoice.toCore(): CoreToolChoice = when (this) {
    ToolChoice.Auto -> CoreToolChoice.Auto
    ToolChoice.None -> CoreToolChoice.None
    ToolChoice.Required -> CoreToolChoice.Required
    is ToolChoice.Named -> CoreToolChoice.Named(name)
}

internal fun CoreToolChoice.toMynah(): ToolChoice = when (this) {
    CoreToolChoice.Auto -> ToolChoice.Auto
    CoreToolChoice.None -> ToolChoice.None
    CoreToolChoice.Required -> ToolChoice.Required
    is CoreToolChoice.Named -> ToolChoice.Named(name)
}
