package dev.mynah

import dev.mynah.core.GenerationStream as CoreStream
import java.nio.BufferUnderflowException
import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.time.Duration.Companion.seconds
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.jsonObject

/** An event of the core. */
internal sealed interface CoreEvent {
    data class Prefill(val done: Int, val total: Int) : CoreEvent

    /** A token, with the text that it completes. */
    data class Token(
        val id: Int,
        val logprob: Float,
        val top: List<GenerationEvent.Candidate>,
        val text: String,
    ) : CoreEvent

    data class Text(val text: String) : CoreEvent

    data class Reasoning(val text: String) : CoreEvent

    data class ToolCallDelta(val index: Int, val name: String, val arguments: String) : CoreEvent

    data class Call(val call: ToolCall) : CoreEvent

    data class RejectedCall(val call: RejectedToolCall) : CoreEvent

    data class Finished(val reason: FinishReason, val stats: GenerationResult.Stats) : CoreEvent
}

/**
 * The next events, at most [max]; none after the end. Waiting events are returned without suspending
 * the coroutine: suspending and resuming it costs more than everything else.
 */
internal suspend fun CoreStream.events(max: Int): List<CoreEvent> =
    unpackEvents(call { ready(max.toUInt()) }).ifEmpty { unpackEvents(await { next(max.toUInt()) }) }

private const val PREFILL = 1
private const val TOKEN = 2
private const val TEXT = 3
private const val REASONING = 4
private const val TOOL_CALL = 5
private const val TOOL_CALL_DELTA = 7
private const val REJECTED_TOOL_CALL = 8
private const val FINISHED = 255

/** The bytes of a record before its payload: its kind, and the length of the payload. */
private const val HEADER = 5

/** The bytes of a candidate: its id and its log-probability. */
private const val CANDIDATE = 8

/**
 * The events of a buffer, which holds records of a kind byte, the length of the payload, and the
 * payload; the module `events` of the bindings documents the payloads. Records of unknown kinds are
 * skipped, and so are bytes of a payload after the known ones.
 */
internal fun unpackEvents(packed: ByteArray): List<CoreEvent> {
    val buffer = ByteBuffer.wrap(packed).order(ByteOrder.LITTLE_ENDIAN)
    try {
        return buildList {
            while (buffer.hasRemaining()) {
                val kind = buffer.get().toUByte().toInt()
                val end = buffer.end(buffer.getInt())
                // Reading past the payload throws.
                buffer.limit(end)
                when (kind) {
                    PREFILL -> add(CoreEvent.Prefill(buffer.count(), buffer.count()))
                    TOKEN -> add(buffer.token())
                    TEXT -> add(CoreEvent.Text(buffer.text(buffer.remaining())))
                    REASONING -> add(CoreEvent.Reasoning(buffer.text(buffer.remaining())))
                    TOOL_CALL -> add(CoreEvent.Call(buffer.toolCall()))
                    TOOL_CALL_DELTA -> {
                        val index = buffer.id()
                        add(CoreEvent.ToolCallDelta(index, buffer.lengthAndText(), buffer.lengthAndText()))
                    }
                    REJECTED_TOOL_CALL -> {
                        val name = buffer.lengthAndText().ifEmpty { null }
                        val call = RejectedToolCall(name, buffer.lengthAndText(), buffer.lengthAndText())
                        add(CoreEvent.RejectedCall(call))
                    }
                    FINISHED -> add(buffer.finished())
                }
                buffer.limit(packed.size).position(end)
            }
        }
    } catch (_: BufferUnderflowException) {
        val reason = "an event of the core is cut off at byte ${buffer.position()} of ${packed.size}; report a bug"
        throw MynahException(MynahException.Code.Internal, reason)
    }
}

/** The position after [length] bytes, which is unsigned. */
private fun ByteBuffer.end(length: Int): Int {
    if (length < 0 || length > remaining()) throw BufferUnderflowException()
    return position() + length
}

private fun ByteBuffer.text(length: Int): String {
    val end = end(length)
    return String(array(), position(), length, Charsets.UTF_8).also { position(end) }
}

/** A text behind its length. */
private fun ByteBuffer.lengthAndText(): String = text(getInt())

private fun ByteBuffer.toolCall(): ToolCall {
    val (id, name) = lengthAndText() to lengthAndText()
    return ToolCall(id, name, Json.parseToJsonElement(lengthAndText()).jsonObject)
}

private fun ByteBuffer.count(): Int = getLong().toULong().toCount()

private fun ByteBuffer.token(): CoreEvent.Token {
    val id = id()
    val logprob = getFloat()
    val length = getInt()
    val candidates = getInt()
    val text = text(length)
    if (candidates < 0 || candidates > remaining() / CANDIDATE) throw BufferUnderflowException()
    val top = List(candidates) { GenerationEvent.Candidate(id(), getFloat()) }
    return CoreEvent.Token(id, logprob, top, text)
}

private fun ByteBuffer.id(): Int = getInt().toUInt().toMynah()

private fun ByteBuffer.finished(): CoreEvent.Finished {
    val reason = when (val code = get().toInt()) {
        1 -> FinishReason.STOP
        2 -> FinishReason.LENGTH
        3 -> FinishReason.CANCELLED
        else -> throw MynahException(
            MynahException.Code.Internal,
            "the core reports the unknown finish reason $code; report a bug",
        )
    }
    // The reader counts the tokens of the prompt and of the answer itself.
    getLong()
    val cached = count()
    val dropped = count()
    getLong()
    val peak = getLong()
    val first = getDouble().seconds
    val prefill = getDouble()
    val decode = getDouble()
    return CoreEvent.Finished(reason, GenerationResult.Stats(decode, prefill, first, cached, dropped, peak))
}
