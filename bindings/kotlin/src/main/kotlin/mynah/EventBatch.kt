package mynah

import java.nio.ByteBuffer
import java.nio.ByteOrder
import mynah.core.EventBatch
import mynah.core.GenerationStream as CoreStream

/**
 * The next events, up to [max]; none after the end. What is there already is not waited for: a
 * coroutine that waits goes to sleep and is woken, which costs more than all the rest.
 */
internal suspend fun CoreStream.events(max: Int): List<GenerationEvent> =
    call { ready(max.toUInt()) }.events().ifEmpty { await { next(max.toUInt()) }.events() }

/** Its events in order; see its documentation for how tokens are packed. */
internal fun EventBatch.events(): List<GenerationEvent> = buildList {
    prefills.mapTo(this) { GenerationEvent.Prefill(it.done.toCount(), it.total.toCount()) }
    val packed = ByteBuffer.wrap(tokens).order(ByteOrder.LITTLE_ENDIAN)
    while (packed.hasRemaining()) {
        val (id, logprob) = packed.probability()
        val (length, candidates) = packed.getInt() to packed.getInt()
        val text = String(tokens, packed.position(), length, Charsets.UTF_8)
        packed.position(packed.position() + length)
        add(GenerationEvent.Token(id, text, logprob, List(candidates) { packed.probability() }))
    }
    summary?.let { add(GenerationEvent.Finished(it.toMynah())) }
}

private fun ByteBuffer.probability() = TokenProbability(getInt().toUInt().toMynah(), getFloat())
