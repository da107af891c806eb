package dev.mynah

import dev.mynah.core.Dry as CoreDry
import dev.mynah.core.GenerationParameters as CoreParameters
import dev.mynah.core.Xtc as CoreXtc

/**
 * Parameters of a generation. The model's recommendations replace fields that are null. [Builder]
 * documents the fields.
 *
 * ```kotlin
 * val short = GenerationParameters { maxTokens = 64 }
 * val greedy = short.with { temperature = 0f }
 * ```
 */
class GenerationParameters private constructor(fields: Fields) {
    private val values = Builder(fields.copy())

    /** Parameters with the fields that [build] sets. */
    constructor(build: Builder.() -> Unit = {}) : this(Builder(Fields()).apply(build).fields)

    val maxTokens: Int? get() = values.maxTokens
    val minTokens: Int? get() = values.minTokens
    val temperature: Float? get() = values.temperature
    val topK: Int? get() = values.topK
    val topP: Float? get() = values.topP
    val minP: Float? get() = values.minP
    val typicalP: Float? get() = values.typicalP
    val topNSigma: Float? get() = values.topNSigma
    val xtc: Xtc? get() = values.xtc
    val dry: Dry? get() = values.dry
    val repetitionPenalty: Float? get() = values.repetitionPenalty
    val presencePenalty: Float? get() = values.presencePenalty
    val frequencyPenalty: Float? get() = values.frequencyPenalty
    val penaltyContext: Int? get() = values.penaltyContext
    val logitBias: Map<Int, Float>? get() = values.logitBias
    val seed: Long? get() = values.seed
    val topLogprobs: Int? get() = values.topLogprobs
    val stop: List<String>? get() = values.stop
    val reasoning: Reasoning? get() = values.reasoning
    val toolChoice: ToolChoice? get() = values.toolChoice
    val output: OutputFormat? get() = values.output
    val extraStopTokens: Set<Int>? get() = values.extraStopTokens
    val stopOnEos: Boolean? get() = values.stopOnEos
    val specialTokens: Boolean? get() = values.specialTokens
    val prefillStepSize: Int? get() = values.prefillStepSize

    /** An edited copy. */
    fun with(edit: Builder.() -> Unit): GenerationParameters =
        GenerationParameters(Builder(values.fields.copy()).apply(edit).fields)

    override fun equals(other: Any?) = other is GenerationParameters && other.values.fields == values.fields

    override fun hashCode() = values.fields.hashCode()

    override fun toString() = "GenerationParameters${values.fields}"

    /** The fields of [GenerationParameters]. */
    @OptionsDsl
    class Builder internal constructor(internal val fields: Fields) {
        /** The most tokens to generate; by default 4,096. The context may end sooner. */
        var maxTokens: Int? by fields.field(null)

        /** The minimum number of tokens before the text may end. */
        var minTokens: Int? by fields.field(null)

        /** Values above 1 flatten the distribution, values below 1 sharpen it; 0 is greedy sampling. */
        var temperature: Float? by fields.field(null)

        /** Samples from the `topK` most likely tokens; 0 disables it. */
        var topK: Int? by fields.field(null)

        /** Samples from the smallest set of most likely tokens with this total probability; 1 disables it. */
        var topP: Float? by fields.field(null)

        /** Excludes tokens less likely than this fraction of the most likely token's probability. */
        var minP: Float? by fields.field(null)

        /**
         * Locally typical sampling: keeps tokens of near-average surprise up to this total probability;
         * 1 disables it.
         */
        var typicalP: Float? by fields.field(null)

        /**
         * Excludes tokens whose logit is more than this number of standard deviations below the largest;
         * 0 disables it.
         */
        var topNSigma: Float? by fields.field(null)

        /** XTC sampling: sometimes excludes the most likely tokens. */
        var xtc: Xtc? by fields.field(null)

        /** DRY sampling: penalizes repeated sequences. */
        var dry: Dry? by fields.field(null)

        /** Divides positive logits of recent tokens and multiplies negative ones; 1 disables it. */
        var repetitionPenalty: Float? by fields.field(null)

        /** Subtracted from the logits of recent tokens; 0 disables it. */
        var presencePenalty: Float? by fields.field(null)

        /** Subtracted from the logit of a recent token once per occurrence; 0 disables it. */
        var frequencyPenalty: Float? by fields.field(null)

        /** The number of recent tokens that the three penalties consider. */
        var penaltyContext: Int? by fields.field(null)

        /** Added to the logits of tokens, by id. */
        var logitBias: Map<Int, Float>? by fields.field(null)

        /** Makes sampling repeatable on the same machine. */
        var seed: Long? by fields.field(null)

        /** The number of most likely tokens to report with each token, as [GenerationEvent.Token]. */
        var topLogprobs: Int? by fields.field(null)

        /** Texts that end the generation; the answer does not contain them. */
        var stop: List<String>? by fields.field(null)

        /** How much the model thinks before it answers. */
        var reasoning: Reasoning? by fields.field(null)

        /** Whether the model calls the tools of the prompt. */
        var toolChoice: ToolChoice? by fields.field(null)

        /** What the text of the answer consists of. */
        var output: OutputFormat? by fields.field(null)

        /** Further end-of-sequence tokens. */
        var extraStopTokens: Set<Int>? by fields.field(null)

        /** Whether an end-of-sequence token ends the generation. */
        var stopOnEos: Boolean? by fields.field(null)

        /** Whether the answer contains the text of special tokens. */
        var specialTokens: Boolean? by fields.field(null)

        /** Tokens of the prompt per prefill step; a cancellation waits for at most one step. */
        var prefillStepSize: Int? by fields.field(null)
    }
}

/**
 * XTC sampling: of the tokens above the threshold only the least likely stays.
 *
 * @property probability the probability that it acts on a token, from 0 to 1
 * @property threshold the threshold, from 0 to 0.5
 */
data class Xtc(val probability: Float, val threshold: Float)

/**
 * DRY sampling: a token that would extend a repetition of `n` tokens loses
 * `multiplier * base^(n - allowedLength)`. Fields that are null have their usual values. [Builder]
 * documents the fields.
 */
class Dry private constructor(fields: Fields) {
    private val values = Builder(fields.copy())

    /** Options with the fields that [build] sets. */
    constructor(build: Builder.() -> Unit = {}) : this(Builder(Fields()).apply(build).fields)

    val multiplier: Float? get() = values.multiplier
    val base: Float? get() = values.base
    val allowedLength: Int? get() = values.allowedLength
    val context: Int? get() = values.context
    val breakers: List<String>? get() = values.breakers

    override fun equals(other: Any?) = other is Dry && other.values.fields == values.fields

    override fun hashCode() = values.fields.hashCode()

    override fun toString() = "Dry${values.fields}"

    /** The fields of [Dry]. */
    @OptionsDsl
    class Builder internal constructor(internal val fields: Fields) {
        /** The penalty of the shortest repetition. */
        var multiplier: Float? by fields.field(null)

        /** The growth per further token. */
        var base: Float? by fields.field(null)

        /** The length up to which repetitions are free. */
        var allowedLength: Int? by fields.field(null)

        /** The number of recent tokens to search. */
        var context: Int? by fields.field(null)

        /** Sequence breakers: a repetition does not extend over these texts. */
        var breakers: List<String>? by fields.field(null)
    }
}

internal fun GenerationParameters?.toCore() = if (this == null) CoreParameters() else CoreParameters(
    maxTokens = maxTokens?.toCore("maxTokens"),
    minTokens = minTokens?.toCore("minTokens"),
    temperature = temperature,
    topK = topK?.toCore("topK"),
    topP = topP,
    minP = minP,
    typicalP = typicalP,
    topNSigma = topNSigma,
    xtc = xtc?.run { CoreXtc(probability, threshold) },
    dry = dry?.run {
        val length = allowedLength?.toCore("allowedLength")
        CoreDry(multiplier, base, length, context?.toCore("context"), breakers)
    },
    repetitionPenalty = repetitionPenalty,
    presencePenalty = presencePenalty,
    frequencyPenalty = frequencyPenalty,
    penaltyContext = penaltyContext?.toCore("penaltyContext"),
    logitBias = logitBias?.mapKeys { (token, _) -> token.toCore("a token of logitBias") },
    seed = seed?.toULong(),
    topLogprobs = topLogprobs?.toCore("topLogprobs"),
    stop = stop,
    reasoning = reasoning?.toCore(),
    toolChoice = toolChoice?.toCore(),
    output = output?.toCore(),
    endTokens = extraStopTokens?.map { it.toCore("a token of extraStopTokens") },
    ignoreEnd = stopOnEos?.not(),
    specialTokens = specialTokens,
    prefillChunk = prefillStepSize?.toCore("prefillStepSize"),
)

internal fun CoreParameters.toMynah(): GenerationParameters {
    val core = this
    return GenerationParameters {
        maxTokens = core.maxTokens?.toMynah()
        minTokens = core.minTokens?.toMynah()
        temperature = core.temperature
        topK = core.topK?.toMynah()
        topP = core.topP
        minP = core.minP
        typicalP = core.typicalP
        topNSigma = core.topNSigma
        xtc = core.xtc?.run { Xtc(probability, threshold) }
        dry = core.dry?.toMynah()
        repetitionPenalty = core.repetitionPenalty
        presencePenalty = core.presencePenalty
        frequencyPenalty = core.frequencyPenalty
        penaltyContext = core.penaltyContext?.toMynah()
        logitBias = core.logitBias?.mapKeys { (token, _) -> token.toMynah() }
        seed = core.seed?.toLong()
        topLogprobs = core.topLogprobs?.toMynah()
        stop = core.stop
        reasoning = core.reasoning?.toMynah()
        toolChoice = core.toolChoice?.toMynah()
        output = core.output?.toMynah()
        extraStopTokens = core.endTokens?.map { it.toMynah() }?.toSet()
        stopOnEos = core.ignoreEnd?.not()
        specialTokens = core.specialTokens
        prefillStepSize = core.prefillChunk?.toMynah()
    }
}

private fun CoreDry.toMynah(): Dry {
    val core = this
    return Dry {
        multiplier = core.multiplier
        base = core.base
        allowedLength = core.allowedLength?.toMynah()
        context = core.context?.toMynah()
        breakers = core.breakers
    }
}
