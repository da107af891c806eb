package mynah

import mynah.core.Dry as CoreDry
import mynah.core.GenerationParameters as CoreParameters
import mynah.core.Xtc as CoreXtc

/**
 * How to continue a prompt; what is null is as the model recommends.
 *
 * @property maxTokens the most tokens to generate
 * @property minTokens no token ends the text before so many are generated
 * @property temperature flattens the distribution above 1 and sharpens it below; 0 always takes the likeliest token
 * @property topK draws from that many likeliest tokens; 0 from all
 * @property topP draws from the smallest set of likeliest tokens with this probability in sum; 1 from all
 * @property minP excludes tokens less likely than this share of the likeliest one
 * @property typicalP draws from the tokens whose information is nearest to the expected one, with this
 * probability in sum; 1 from all
 * @property topNSigma excludes tokens whose logit is more than so many standard deviations below the largest; 0 none
 * @property xtc now and then excludes the likeliest tokens
 * @property dry makes it unlikely that sequences repeat
 * @property repetitionPenalty divides the logits of recent tokens, or multiplies negative ones; 1 does nothing
 * @property presencePenalty is subtracted from the logits of recent tokens; 0 does nothing
 * @property frequencyPenalty is subtracted from the logit of a recent token once for each time that it occurs
 * @property penaltyContext how many tokens are recent to the three penalties
 * @property logitBias what is added to the logits of tokens
 * @property seed makes draws repeatable on the same machine
 * @property topLogprobs how many of the likeliest tokens come with each token
 * @property stop texts that end the generation; neither they nor a beginning of them is given out
 * @property endTokens further tokens that end the text
 * @property ignoreEnd whether to go on after the model has ended its text
 * @property specialTokens whether to give the text of special tokens, which is left out otherwise
 * @property prefillChunk tokens of the prompt that are computed in one step
 */
data class GenerationParameters(
    val maxTokens: Int? = null,
    val minTokens: Int? = null,
    val temperature: Float? = null,
    val topK: Int? = null,
    val topP: Float? = null,
    val minP: Float? = null,
    val typicalP: Float? = null,
    val topNSigma: Float? = null,
    val xtc: Xtc? = null,
    val dry: Dry? = null,
    val repetitionPenalty: Float? = null,
    val presencePenalty: Float? = null,
    val frequencyPenalty: Float? = null,
    val penaltyContext: Int? = null,
    val logitBias: Map<Int, Float>? = null,
    val seed: Long? = null,
    val topLogprobs: Int? = null,
    val stop: List<String>? = null,
    val endTokens: List<Int>? = null,
    val ignoreEnd: Boolean? = null,
    val specialTokens: Boolean? = null,
    val prefillChunk: Int? = null,
)

/**
 * Of the tokens above a threshold only the least likely one stays.
 *
 * @property probability how often it acts, from 0 to 1
 * @property threshold the least probability of a top choice, from 0 to 0.5
 */
data class Xtc(val probability: Float, val threshold: Float)

/**
 * A token that would prolong a repetition of `n` tokens loses `multiplier * base^(n - allowedLength)`.
 * What is null is as usual.
 *
 * @property multiplier the penalty of the shortest repetition
 * @property base how fast it grows
 * @property allowedLength repetitions shorter than this are free
 * @property context how many of the last tokens are looked at
 * @property breakers texts over which no repetition reaches
 */
data class Dry(
    val multiplier: Float? = null,
    val base: Float? = null,
    val allowedLength: Int? = null,
    val context: Int? = null,
    val breakers: List<String>? = null,
)

internal fun GenerationParameters.toCore() = CoreParameters(
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
    endTokens = endTokens?.toCore(),
    ignoreEnd = ignoreEnd,
    specialTokens = specialTokens,
    prefillChunk = prefillChunk?.toCore("prefillChunk"),
)

internal fun CoreParameters.toMynah() = GenerationParameters(
    maxTokens = maxTokens?.toMynah(),
    minTokens = minTokens?.toMynah(),
    temperature = temperature,
    topK = topK?.toMynah(),
    topP = topP,
    minP = minP,
    typicalP = typicalP,
    topNSigma = topNSigma,
    xtc = xtc?.run { Xtc(probability, threshold) },
    dry = dry?.run { Dry(multiplier, base, allowedLength?.toMynah(), context?.toMynah(), breakers) },
    repetitionPenalty = repetitionPenalty,
    presencePenalty = presencePenalty,
    frequencyPenalty = frequencyPenalty,
    penaltyContext = penaltyContext?.toMynah(),
    logitBias = logitBias?.mapKeys { (token, _) -> token.toMynah() },
    seed = seed?.toLong(),
    topLogprobs = topLogprobs?.toMynah(),
    stop = stop,
    endTokens = endTokens?.map { it.toMynah() },
    ignoreEnd = ignoreEnd,
    specialTokens = specialTokens,
    prefillChunk = prefillChunk?.toMynah(),
)
