package dev.mynah

import dev.mynah.core.GenerationStream as CoreStream
import kotlin.time.Duration
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.awaitCancellation
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.FlowCollector
import kotlinx.coroutines.flow.filterIsInstance
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.flow.map
import kotlinx.coroutines.launch
import kotlinx.coroutines.yield

/** An event of a generation. Later versions add kinds: a `when` needs an `else`. */
abstract class GenerationEvent internal constructor() {
    /**
     * The model has computed a part of the prompt.
     *
     * @property done computed tokens
     * @property total tokens of the prompt
     */
    data class Prefill(val done: Int, val total: Int) : GenerationEvent()

    /**
     * A piece of the answer.
     *
     * @property text the piece
     */
    data class Text(val text: String) : GenerationEvent()

    /**
     * A piece of the thoughts before the answer.
     *
     * @property text the piece
     */
    data class Reasoning(val text: String) : GenerationEvent()

    /**
     * A part of the arguments of a call that is being written. The parts of one call join to the JSON of its
     * arguments.
     *
     * @property index the number of calls before this one in the answer
     * @property name the name of the tool
     * @property arguments the next part; empty when the call begins
     */
    data class ToolCallDelta(val index: Int, val name: String, val arguments: String) : GenerationEvent()

    /**
     * A complete call of a tool.
     *
     * @property call the call
     */
    data class Call(val call: ToolCall) : GenerationEvent()

    /**
     * What the model wrote as a call, and what is not one.
     *
     * @property call what it wrote
     */
    data class RejectedCall(val call: RejectedToolCall) : GenerationEvent()

    /**
     * The result of a call, before it goes back to the model. The text of another answer follows. Only a
     * [ChatSession] with tools calls them.
     *
     * @property result the result
     */
    data class CallResult(val result: ToolResult) : GenerationEvent()

    /**
     * A token, if [GenerationParameters.topLogprobs] asks for candidates.
     *
     * @property id its id
     * @property logprob its log-probability, before any filter of the sampler
     * @property top the most likely tokens at its position, the most likely first
     */
    data class Token(val id: Int, val logprob: Float, val top: List<Candidate>) : GenerationEvent()

    /**
     * The last event.
     *
     * @property result the outcome
     */
    data class Finished(val result: GenerationResult) : GenerationEvent()

    /**
     * A candidate for the position of a token.
     *
     * @property id its id
     * @property logprob its log-probability
     */
    data class Candidate(val id: Int, val logprob: Float)
}

/** Why a generation ended. Later versions add reasons: a `when` needs an `else`. */
enum class FinishReason {
    /** The model generated an end-of-sequence token or a stop text. */
    STOP,

    /** The generation reached the maximum number of tokens, or the context is full. */
    LENGTH,

    /** The caller cancelled it. */
    CANCELLED,
}

/**
 * The outcome of a generation.
 *
 * @property text the answer
 * @property reasoning the thoughts before the answer
 * @property toolCalls the calls of tools, in their order
 * @property rejectedToolCalls what the model wrote as calls, and what are none
 * @property promptTokens the tokens of the prompt
 * @property generatedTokens the tokens of the answer, without the end-of-sequence token
 * @property finishReason why it ended
 * @property stats its statistics
 */
@ConsistentCopyVisibility
data class GenerationResult internal constructor(
    val text: String,
    val reasoning: String,
    val toolCalls: List<ToolCall>,
    val rejectedToolCalls: List<RejectedToolCall>,
    val promptTokens: List<Int>,
    val generatedTokens: List<Int>,
    val finishReason: FinishReason,
    val stats: Stats,
) {
    /**
     * Statistics of a generation.
     *
     * @property tokensPerSecond generated tokens per second, after the first one
     * @property prefillTokensPerSecond prompt tokens per second, without cached ones
     * @property timeToFirstToken from the request to the first token
     * @property cachedTokens tokens of the prompt that the KV cache of a session held already
     * @property droppedMessages messages that were dropped because the context is too short for them
     * @property peakMemory the peak memory of all arrays, in bytes
     */
    @ConsistentCopyVisibility
    data class Stats internal constructor(
        val tokensPerSecond: Double,
        val prefillTokensPerSecond: Double,
        val timeToFirstToken: Duration,
        val cachedTokens: Int,
        val droppedMessages: Int,
        val peakMemory: Long,
    )
}

/** Only the text. */
fun Flow<GenerationEvent>.text(): Flow<String> = filterIsInstance<GenerationEvent.Text>().map { it.text }

/** Collects a generation to its end. */
suspend fun Flow<GenerationEvent>.result(): GenerationResult {
    var result: GenerationResult? = null
    collect { if (it is GenerationEvent.Finished) result = it.result }
    return checkNotNull(result) { "the flow has no event `Finished`; collect the whole generation" }
}

/** The most events that cross from the core in one call. */
private const val BATCH = 32

/** A generation that starts when the flow is collected and stops when the collection ends. */
internal fun generation(start: () -> CoreStream): Flow<GenerationEvent> = flow {
    open { start() }.use { stream ->
        coroutineScope {
            // A cancellation stops the device at once, even if the collector's dispatcher is busy.
            val watch = launch(Dispatchers.Unconfined, CoroutineStart.UNDISPATCHED) {
                try {
                    awaitCancellation()
                } finally {
                    stream.cancel()
                }
            }
            val answer = Answer(stream)
            while (true) {
                val events = stream.events(BATCH)
                if (events.isEmpty()) break
                events.forEach { answer.deliver(it, this@flow) }
                // A collector that is slower than the device never suspends otherwise.
                if (events.size == BATCH) yield()
            }
            watch.cancel()
        }
    }
}

/** The answer so far. */
private class Answer(private val stream: CoreStream) {
    private val text = StringBuilder()
    private val reasoning = StringBuilder()
    private val calls = mutableListOf<ToolCall>()
    private val rejected = mutableListOf<RejectedToolCall>()
    private val tokens = mutableListOf<Int>()

    /** Emits the public events of an event of the core. */
    suspend fun deliver(event: CoreEvent, collector: FlowCollector<GenerationEvent>) {
        when (event) {
            is CoreEvent.Prefill -> collector.emit(GenerationEvent.Prefill(event.done, event.total))
            is CoreEvent.Token -> {
                tokens += event.id
                if (event.text.isNotEmpty()) deliver(event.text, collector)
                if (event.top.isNotEmpty()) {
                    collector.emit(GenerationEvent.Token(event.id, event.logprob, event.top))
                }
            }
            is CoreEvent.Text -> deliver(event.text, collector)
            is CoreEvent.Reasoning -> {
                reasoning.append(event.text)
                collector.emit(GenerationEvent.Reasoning(event.text))
            }
            is CoreEvent.ToolCallDelta ->
                collector.emit(GenerationEvent.ToolCallDelta(event.index, event.name, event.arguments))
            is CoreEvent.Call -> {
                calls += event.call
                collector.emit(GenerationEvent.Call(event.call))
            }
            is CoreEvent.RejectedCall -> {
                rejected += event.call
                collector.emit(GenerationEvent.RejectedCall(event.call))
            }
            is CoreEvent.Finished -> collector.emit(GenerationEvent.Finished(result(event)))
        }
    }

    private suspend fun deliver(piece: String, collector: FlowCollector<GenerationEvent>) {
        text.append(piece)
        collector.emit(GenerationEvent.Text(piece))
    }

    private fun result(end: CoreEvent.Finished): GenerationResult {
        val prompt = call { stream.promptTokens() }.map { it.toMynah() }
        return GenerationResult(
            text.toString(), reasoning.toString(), calls, rejected, prompt, tokens, end.reason, end.stats,
        )
    }
}
