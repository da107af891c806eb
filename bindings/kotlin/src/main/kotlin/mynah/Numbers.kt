package mynah

/** A count as the library takes it. */
internal fun Int.toCore(name: String): UInt =
    if (this >= 0) toUInt() else throw MynahException.InvalidRequest("$name is $this and must not be negative")

/** A size as the library takes it. */
internal fun Long.toCore(name: String): ULong =
    if (this >= 0) toULong() else throw MynahException.InvalidRequest("$name is $this and must not be negative")

/** A count of the library, which may stand for "no limit". */
internal fun UInt.toMynah(): Int = coerceAtMost(Int.MAX_VALUE.toUInt()).toInt()

internal fun ULong.toCount(): Int = coerceAtMost(Int.MAX_VALUE.toULong()).toInt()
