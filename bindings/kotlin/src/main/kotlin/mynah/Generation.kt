package mynah

import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.awaitCancellation
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.flow.mapNotNull
import kotlinx.coroutines.launch
import kotlinx.coroutines.yield
import mynah.core.FinishReason as CoreFinishReason
import mynah.core.GenerationStream as CoreStream
import mynah.core.Summary as CoreSummary

/** What a generation yields. */
sealed interface GenerationEvent {
    /**
     * A part of the prompt is computed.
     *
     * @property done tokens computed
     * @property total tokens in all
     */
    data class Prefill(val done: Int, val total: Int) : GenerationEvent

    /**
     * The next token.
     *
     * @property id its id
     * @property text the characters that it completes; none while one is still in parts or may belong to a stop text
     * @property logprob the natural logarithm of its probability, before anything was filtered
     * @property top the likeliest tokens in its place, best first, as many as were asked for
     */
    data class Token(
        val id: Int,
        val text: String,
        val logprob: Float,
        val top: List<TokenProbability>,
    ) : GenerationEvent

    /** The end; nothing follows. */
    data class Finished(val summary: Summary) : GenerationEvent
}

/**
 * A token that might have been.
 *
 * @property id its id
 * @property logprob the natural logarithm of its probability
 */
data class TokenProbability(val id: Int, val logprob: Float)

/** Why a generation ended. */
enum class FinishReason {
    /** The model ended its text. */
    STOP,

    /** As many tokens as wanted were generated, or the model's context is full. */
    LENGTH,

    /** Somebody cancelled it. */
    CANCELLED,
}

/**
 * What a generation was like.
 *
 * @property finishReason why it ended
 * @property remainingText the end of the text that no token carried
 * @property promptTokens length of the prompt in tokens
 * @property cachedTokens how many of them a session remembered
 * @property droppedMessages how many messages were left out because they did not fit
 * @property generatedTokens tokens generated, without the one that ended the text
 * @property timeToFirstToken from the request to the first token, in seconds
 * @property prefillTokensPerSecond computed prompt tokens a second
 * @property tokensPerSecond generated tokens a second, after the first
 * @property peakMemory the most bytes that arrays took at once
 */
data class Summary(
    val finishReason: FinishReason,
    val remainingText: String,
    val promptTokens: Int,
    val cachedTokens: Int,
    val droppedMessages: Int,
    val generatedTokens: Int,
    val timeToFirstToken: Double,
    val prefillTokensPerSecond: Double,
    val tokensPerSecond: Double,
    val peakMemory: Long,
)

/**
 * A whole answer.
 *
 * @property text what was generated
 * @property tokens its tokens, without the one that ended the text
 * @property summary what the generation was like
 */
data class GenerationResult(val text: String, val tokens: List<Int>, val summary: Summary)

/** The text that an event carries. */
val GenerationEvent.text: String
    get() = when (this) {
        is GenerationEvent.Prefill -> ""
        is GenerationEvent.Token -> text
        is GenerationEvent.Finished -> summary.remainingText
    }

/** The pieces of the text alone, as they come. */
fun Flow<GenerationEvent>.text(): Flow<String> = mapNotNull { event -> event.text.ifEmpty { null } }

/** Collects a generation to its end. */
suspend fun Flow<GenerationEvent>.result(): GenerationResult {
    val text = StringBuilder()
    val tokens = mutableListOf<Int>()
    var summary: Summary? = null
    collect { event ->
        text.append(event.text)
        when (event) {
            is GenerationEvent.Prefill -> {}
            is GenerationEvent.Token -> tokens += event.id
            is GenerationEvent.Finished -> summary = event.summary
        }
    }
    return GenerationResult(text.toString(), tokens, checkNotNull(summary) { "this flow lacks its end" })
}

/** Events that cross the boundary at once, when as many are there. */
private const val BATCH = 32

/** A generation that starts when it is collected, and that stops the device when that ends. */
internal fun generation(start: () -> CoreStream): Flow<GenerationEvent> = flow {
    open { start() }.use { stream ->
        coroutineScope {
            // Whoever cancels stops the device, before the collector's dispatcher finds the time.
            val watch = launch(Dispatchers.Unconfined, CoroutineStart.UNDISPATCHED) {
                try {
                    awaitCancellation()
                } finally {
                    stream.cancel()
                }
            }
            while (true) {
                val events = stream.events(BATCH)
                if (events.isEmpty()) break
                events.forEach { emit(it) }
                // A collector that is slower than the device never waits for it.
                if (events.size == BATCH) yield()
            }
            watch.cancel()
        }
    }
}

internal fun CoreSummary.toMynah() = Summary(
    finishReason = when (finishReason) {
        CoreFinishReason.STOP -> FinishReason.STOP
        CoreFinishReason.LENGTH -> FinishReason.LENGTH
        CoreFinishReason.CANCELLED -> FinishReason.CANCELLED
    },
    remainingText = remainingText,
    promptTokens = promptTokens.toCount(),
    cachedTokens = cachedTokens.toCount(),
    droppedMessages = droppedMessages.toCount(),
    generatedTokens = generatedTokens.toCount(),
    timeToFirstToken = timeToFirstToken,
    prefillTokensPerSecond = prefillTokensPerSecond,
    tokensPerSecond = tokensPerSecond,
    peakMemory = peakMemory.toLong(),
)
