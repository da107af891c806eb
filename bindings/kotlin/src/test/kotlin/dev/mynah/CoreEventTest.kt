package dev.mynah

import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.time.Duration.Companion.milliseconds
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test

/** Packs events as the core does. */
private class Packer {
    private val buffer = ByteBuffer.allocate(1 shl 16).order(ByteOrder.LITTLE_ENDIAN)

    val bytes: ByteArray get() = buffer.array().copyOf(buffer.position())

    fun record(kind: Int, pack: ByteBuffer.() -> Unit) = apply {
        buffer.put(kind.toByte()).putInt(0)
        val start = buffer.position()
        buffer.pack()
        buffer.putInt(start - 4, buffer.position() - start)
    }

    fun prefill(done: Long, total: Long) = record(1) { putLong(done).putLong(total) }

    fun text(text: String) = record(3) { put(text.toByteArray()) }

    fun token(token: CoreEvent.Token) = record(2) {
        val utf8 = token.text.toByteArray()
        putInt(token.id).putFloat(token.logprob).putInt(utf8.size).putInt(token.top.size).put(utf8)
        token.top.forEach { putInt(it.id).putFloat(it.logprob) }
    }

    fun finished(reason: Int) = record(255) {
        put(reason.toByte())
        (1L..5L).forEach { putLong(it) }
        putDouble(0.5).putDouble(6.0).putDouble(7.0)
    }
}

class CoreEventTest {
    private val top =
        listOf(GenerationEvent.Candidate(7, -0.5f), GenerationEvent.Candidate(1 shl 20, Float.NEGATIVE_INFINITY))
    private val tokens = List(32) { id ->
        when {
            id == 0 -> CoreEvent.Token(Int.MAX_VALUE, -0.25f, top, "né 👩‍👩‍👧")
            id % 2 == 0 -> CoreEvent.Token(id, -id.toFloat(), emptyList(), "")
            else -> CoreEvent.Token(id, -id.toFloat(), emptyList(), "${id}é")
        }
    }
    private val finished = CoreEvent.Finished(
        FinishReason.LENGTH,
        GenerationResult.Stats(7.0, 6.0, 500.milliseconds, cachedTokens = 2, droppedMessages = 3, peakMemory = 5),
    )

    private fun packed() = Packer().prefill(3, 4).apply { tokens.forEach { token(it) } }.text("…é").finished(2).bytes

    private val expected = listOf(CoreEvent.Prefill(3, 4)) + tokens + CoreEvent.Text("…é") + finished

    @Test
    fun `events are unpacked as documented`() {
        assertEquals(expected, unpackEvents(packed()))
        assertTrue(unpackEvents(ByteArray(0)).isEmpty())
    }

    @Test
    fun `unknown kinds and unknown bytes of known kinds are skipped`() {
        val packer = Packer()
        val kinds = (0..255) - listOf(1, 2, 3, 4, 5, 7, 8, 255)
        kinds.forEach { kind -> packer.record(kind) { put(ByteArray(kind)) } }
        packer.record(1) { putLong(3).putLong(4).putLong(5) }
        packer.record(2) { putInt(9).putFloat(-1f).putInt(1).putInt(0).put('x'.code.toByte()).putInt(77) }
        packer.text("end")
        val events = listOf(
            CoreEvent.Prefill(3, 4),
            CoreEvent.Token(9, -1f, emptyList(), "x"),
            CoreEvent.Text("end"),
        )
        assertEquals(events, unpackEvents(packer.bytes))
    }

    @Test
    fun `a buffer that is cut off anywhere is an error, not other events`() = test {
        val packed = packed()
        val starts = buildList {
            var at = 0
            while (at < packed.size) {
                add(at)
                at += 5 + ByteBuffer.wrap(packed).order(ByteOrder.LITTLE_ENDIAN).getInt(at + 1)
            }
        }
        for (length in packed.indices) {
            val cut = packed.copyOf(length)
            when (val complete = starts.indexOf(length)) {
                -1 -> assertFails(MynahException.Code.Internal) { unpackEvents(cut) }
                else -> assertEquals(expected.take(complete), unpackEvents(cut))
            }
        }
    }

    @Test
    fun `lengths that exceed their payload are errors`() = test {
        for (wrong in listOf(2, 1000, Int.MAX_VALUE, Int.MIN_VALUE, -1)) {
            val header = Packer().text("x").bytes
            ByteBuffer.wrap(header).order(ByteOrder.LITTLE_ENDIAN).putInt(1, wrong)
            assertFails(MynahException.Code.Internal) { unpackEvents(header) }
            // The bytes of the next record do not belong to this one.
            val text = Packer().record(2) { putLong(1).putInt(wrong).putInt(0).put(0) }.text("next")
            assertFails(MynahException.Code.Internal) { unpackEvents(text.bytes) }
            val candidates = Packer().record(2) { putLong(1).putInt(0).putInt(wrong).putLong(0) }.text("next")
            assertFails(MynahException.Code.Internal) { unpackEvents(candidates.bytes) }
        }
        assertFails(MynahException.Code.Internal) { unpackEvents(Packer().finished(9).bytes) }
    }
}
