package mynah

import mynah.core.CacheBits as CoreBits
import mynah.core.Overflow as CoreOverflow
import mynah.core.SessionOptions as CoreOptions

/**
 * How a session remembers; what is null is as the model was loaded.
 *
 * @property overflow what happens when the context is full
 * @property quantization keeps keys and values in fewer bits
 * @property snapshotBytes the most bytes that are spent on going back where the model cannot go back by itself
 */
data class SessionOptions(
    val overflow: Overflow? = null,
    val quantization: CacheBits? = null,
    val snapshotBytes: Long? = null,
)

/** What happens when the context is full. */
sealed interface Overflow {
    /** A prompt that does not fit is refused, and generation ends where the context does. */
    data object Error : Overflow

    /**
     * The oldest turns are left out.
     *
     * @property reserve tokens that shall be free for the answer
     */
    data class DropOldest(val reserve: Int) : Overflow

    /**
     * There is no end: the first tokens and the latest are remembered.
     *
     * @property positions tokens remembered in all
     * @property keep how many of them are the first ones
     */
    data class Ring(val positions: Int, val keep: Int) : Overflow
}

/**
 * Keys and values in fewer bits.
 *
 * @property bits 4 or 8
 * @property groupSize how many elements share a scale: 32, 64 or 128
 * @property after from how many positions on
 */
data class CacheBits(val bits: Int, val groupSize: Int = 64, val after: Int = 0)

internal fun SessionOptions.toCore() = CoreOptions(
    overflow = overflow?.toCore(),
    quantization = quantization?.run {
        // What is more than a byte holds is as wrong as its largest value.
        val bits = bits.toCore("bits").coerceAtMost(255u).toUByte()
        CoreBits(bits, groupSize.toCore("groupSize"), after.toCore("after"))
    },
    snapshotBytes = snapshotBytes?.toCore("snapshotBytes"),
)

private fun Overflow.toCore(): CoreOverflow = when (this) {
    Overflow.Error -> CoreOverflow.Error
    is Overflow.DropOldest -> CoreOverflow.DropOldest(reserve.toCore("reserve"))
    is Overflow.Ring -> CoreOverflow.Ring(positions.toCore("positions"), keep.toCore("keep"))
}
